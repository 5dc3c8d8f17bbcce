"""Mutations that know a payload's structure: fields, stages, table words and frames, which mostly fit together."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import atheris
import torch

from tensordb.encoding import encode
from tensordb.encoding.format import Descriptor, parse_header
from tensordb.encoding.frames import COMPRESSED, CONSTANT, RAW
from tensordb.errors import TensorDBError
from tensordb.model import TensorSpec

from .every import COMPRESSIONS, QUANTIZATIONS
from .fitting import fit
from .forging import REFUSALS, Parts, made_true, parts_of

GOLDEN = Path(__file__).parent / "golden"
_SIDES = (0, 1, 2, 3, 7, 16, 17, 31, 64, 129, 1000, 1 << 16, 1 << 31, 1 << 60, 1 << 63)
_LENGTHS = (0, 1, 2, 15, 16, 17, 255, 256, 1 << 16, (1 << 30) - 1)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


@cache
def _golden() -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob("*.payload")) if path.stat().st_size < 4096]


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """A changed payload, mostly with true checksums."""
    chance = random.Random(seed)
    try:
        parts = parts_of(data if chance.random() < 0.95 else _fresh(chance))
    except REFUSALS:
        return made_true(atheris.Mutate(data, max_size))[:max_size]
    for _ in range(chance.randint(1, 3)):
        chance.choice(_CHANGES)(parts, chance)
    try:
        if chance.random() < 0.8:
            fit(parts, chance)
        return parts.payload()[:max_size]
    except ValueError:  # words and frames no longer come in pairs
        return data


def _fresh(chance: random.Random) -> bytes:
    """What the package writes today for a small tensor."""
    dtype, shape = chance.choice(_DTYPES), [chance.choice((1, 2, 3, 16, 33)) for _ in range(chance.randint(0, 3))]
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(chance.getrandbits(30))) * 3).to(dtype)
    config = chance.choice([*COMPRESSIONS, *QUANTIZATIONS])
    try:
        return b"".join(encode(tensor, config, page=bool(shape) and chance.random() < 0.5).buffers)
    except TensorDBError:
        return chance.choice(_golden())


def _descriptor(parts: Parts) -> Descriptor:
    whole = replace_frames(parts)
    return parse_header(memoryview(whole)).descriptor


def replace_frames(parts: Parts) -> bytes:
    """The header alone."""
    return Parts(parts.descriptor).payload()


def _other_fields(parts: Parts, chance: random.Random) -> None:
    """Take some fields of another payload's descriptor."""
    try:
        ours, other = _descriptor(parts), _descriptor(parts_of(chance.choice(_golden())))
        taken = {each.name: getattr(other, each.name) for each in fields(Descriptor) if chance.random() < 0.3}
        parts.descriptor = replace(ours, **taken).pack()
    except REFUSALS:
        return


def _shape(parts: Parts, chance: random.Random) -> None:
    try:
        ours = _descriptor(parts)
        shape = list(ours.spec.shape)
        action = chance.randrange(4)
        if action == 0 and shape:
            shape[chance.randrange(len(shape))] = chance.choice(_SIDES)
        elif action == 1:
            shape.insert(chance.randint(0, len(shape)), chance.choice(_SIDES))
        elif action == 2:
            chance.shuffle(shape)
        else:
            shape += [1] * chance.choice((1, 62 - len(shape), 64 - len(shape)))
        parts.descriptor = replace(ours, spec=TensorSpec(ours.spec.dtype, tuple(shape))).pack()
    except (*REFUSALS, ValueError):
        return


def _chunk(parts: Parts, chance: random.Random) -> None:
    try:
        ours = _descriptor(parts)
        parts.descriptor = replace(ours, chunk_elements=chance.choice(_SIDES)).pack()
    except (*REFUSALS, ValueError):
        return


def _descriptor_bytes(parts: Parts, chance: random.Random) -> None:
    parts.descriptor = atheris.Mutate(parts.descriptor, len(parts.descriptor) + 12)


def _word(parts: Parts, chance: random.Random) -> None:
    if parts.words:
        at = chance.randrange(len(parts.words))
        parts.words[at] = chance.choice((RAW, COMPRESSED, CONSTANT, 3)) << 30 | chance.choice(_LENGTHS)


def _frame_bytes(parts: Parts, chance: random.Random) -> None:
    stored = [at for at, frame in enumerate(parts.frames) if frame]
    if stored:
        at = chance.choice(stored)
        frame = parts.frames[at]
        parts.frames[at] = atheris.Mutate(frame, len(frame) + chance.choice((0, 0, 8)))
        parts.words[at] = parts.words[at] >> 30 << 30 | len(parts.frames[at])


def _constant(parts: Parts, chance: random.Random) -> None:
    if parts.words:
        at = chance.randrange(len(parts.words))
        parts.words[at], parts.frames[at] = CONSTANT << 30 | chance.randrange(256), b""


def _swapped(parts: Parts, chance: random.Random) -> None:
    if len(parts.words) > 1:
        one, two = chance.sample(range(len(parts.words)), 2)
        for column in (parts.words, parts.frames):
            column[one], column[two] = column[two], column[one]  # type: ignore[index]


def _more_frames(parts: Parts, chance: random.Random) -> None:
    """Repeat a frame, as a larger tensor has more of them."""
    if parts.words and len(parts.words) < 64:
        at, times = chance.randrange(len(parts.words)), chance.choice((1, 1, 2, 5))
        parts.words[at:at] = [parts.words[at]] * times
        parts.frames[at:at] = [parts.frames[at]] * times


def _fewer_frames(parts: Parts, chance: random.Random) -> None:
    if parts.words:
        at = chance.randrange(len(parts.words))
        del parts.words[at], parts.frames[at]


def _other_frames(parts: Parts, chance: random.Random) -> None:
    """Keep the header and take the frames of another payload."""
    other = parts_of(chance.choice(_golden()))
    parts.words, parts.frames = other.words, other.frames


_CHANGES: list[Callable[[Parts, random.Random], None]] = [
    _other_fields, _shape, _shape, _chunk, _descriptor_bytes, _descriptor_bytes, _word, _frame_bytes, _frame_bytes,
    _frame_bytes, _constant, _swapped, _more_frames, _fewer_frames, _other_frames,
]  # fmt: skip
