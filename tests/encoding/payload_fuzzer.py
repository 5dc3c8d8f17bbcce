"""Coverage-guided fuzzing of the payload reader (atheris). Run by tests/hostile; by hand, for as long as you like:

``python -m tests.encoding.payload_fuzzer -max_total_time=600 NEW_CORPUS_FOLDER tests/encoding/golden``

An input is a payload. It is read as it is, and once more with its checksums made true, as they stop almost everything.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np
import torch
import xxhash

COMPILED = "tensordb.encoding.kernels"
LARGEST_DECODED = 1 << 20
"""Bytes of a tensor above which only the header is looked at: constant frames may rightly claim gigabytes."""
SPARE_MEMORY = 160 << 20
"""Address space that is left once all is loaded: for the corpus, and for one XZ dictionary of 64 MiB."""

ENOUGH = 1000
"""Payloads that must get as far as being read, for a run to have looked at more than the header."""


def _import_all() -> None:
    """Import everything of the room, so that the coverage of all of it guides the search."""
    for module in pkgutil.walk_packages(tensordb.encoding.__path__, "tensordb.encoding."):
        if not module.name.startswith(COMPILED):
            with contextlib.suppress(ImportError):  # what needs an extra that is not installed
                importlib.import_module(module.name)


# What numba compiles must stay as it was written.
with atheris.instrument_imports(include=["tensordb.encoding"], exclude=[COMPILED]):
    import tensordb.encoding

    _import_all()

from tensordb.encoding import PayloadReader, kernels  # noqa: E402
from tensordb.errors import InvalidInputError  # noqa: E402
from tensordb.model import TensorSpec  # noqa: E402
from tensordb.tensors import byte_view, empty, nbytes_of, snapshot  # noqa: E402

from .forging import REFUSALS, made_true  # noqa: E402
from .mutations import mutated  # noqa: E402

opened = 0


def one_input(data: bytes) -> None:
    """Read a payload as it is and made true."""
    for payload in {data, made_true(data)}:
        chance = random.Random(xxhash.xxh3_64_intdigest(payload))
        kernels.ready = lambda nbytes: chance.choice(LOOPS)  # type: ignore[assignment]  # noqa: B023
        with contextlib.suppress(*REFUSALS):
            read(PayloadReader(payload), chance)


def read(reader: PayloadReader, chance: random.Random) -> None:
    """Read in every way; all of them give the same tensor, or all refuse."""
    global opened
    opened += 1
    if opened == ENOUGH:
        print(f"{ENOUGH} payloads passed the checks of the header", flush=True)
    _ = reader.encoding.ratio, reader.encoding.error.snr_db
    if nbytes_of(reader.spec) > LARGEST_DECODED:
        return
    shape = reader.spec.shape
    whole = outcome(reader.decode)
    others = [
        lambda: reader.decode_index(...),
        lambda: reader.decode_index(tuple(slice(None) for _ in shape)),
    ]
    if shape:
        others.append(lambda: reader.decode(strided(reader)))
    if shape and shape[0] <= LARGEST_DECODED:  # an empty tensor may have more rows than memory could list
        others.append(lambda: reader.decode_rows(range(shape[0])))
    for other in others:
        assert outcome(other) == whole, "two ways to read the same differ"
    sound = outcome(reader.verify) is not None
    named = outcome(reader.content_id) is not None
    # A difference is sound by itself, and cannot be decoded without its base.
    alone = reader.base_id is None
    assert not (sound and alone) or (whole is not None and named), "verify() passed what cannot be read"
    with contextlib.suppress(InvalidInputError):  # compressed: no bytes to alias
        assert outcome(reader.view) in (whole, None)
    read_part(reader, whole, chance)


def read_part(reader: PayloadReader, whole: bytes | None, chance: random.Random) -> None:
    """Read a part, which equals that part of the whole."""
    index = tuple(some_index(size, chance) for size in reader.spec.shape)
    part = outcome(lambda: reader.decode_index(index))
    if whole is not None and len(index) < 64:  # NumPy has no more dimensions to hold an element's bytes in
        full = np.frombuffer(whole, np.uint8).reshape(*reader.spec.shape, byte_width(reader))
        assert part == full[index].tobytes(), "a part differs from that part of the whole"
    for wrong in (99, (0,) * (len(index) + 1), "x", len(index)):
        with contextlib.suppress(IndexError, InvalidInputError, *REFUSALS):
            reader.decode_index(wrong)
            reader.decode_rows([wrong])  # type: ignore[list-item]


def some_index(size: int, chance: random.Random) -> int | slice:
    if size and chance.random() < 0.3:
        return chance.randrange(-size, size)
    edge = min(size + 2, 1 << 20)
    return slice(chance.randint(-edge, edge), chance.choice((None, edge)), chance.choice((None, 1, 2, -1, -3)))


def outcome(action: Callable[[], Any]) -> bytes | None:
    """The bytes that a read gave, or None if it was refused."""
    try:
        result = action()
    except REFUSALS:
        return None
    if not isinstance(result, torch.Tensor):
        return b""
    data = byte_view(snapshot(result))
    # torch takes any byte but 0 for true, and makes it 1 where it copies element by element.
    return (data != 0).tobytes() if result.dtype == torch.bool else data.tobytes()


def strided(reader: PayloadReader) -> torch.Tensor:
    """A destination that is not contiguous."""
    first, *others = reader.spec.shape
    return empty(TensorSpec(reader.spec.dtype, (*others, first))).movedim(-1, 0)


def byte_width(reader: PayloadReader) -> int:
    elements = max(1, int(np.prod(reader.spec.shape)))
    return nbytes_of(reader.spec) // elements or 1


def limit_memory() -> None:
    """Let an allocation beyond what is spare fail, which is then found as a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core: coverage is counted without other threads
    kernels.load()
    LOOPS = [None, kernels.ready(0)]
    atheris.Setup(sys.argv, one_input, custom_mutator=mutated)
    limit_memory()
    atheris.Fuzz()
