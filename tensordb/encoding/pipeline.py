"""Tensor to payload: quantizer, filter, codec, frames, header. The way back is in `reading`; others know no order.

Pure functions of bytes: no I/O, no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.assembly import Assembled, Write, assemble, chunk_of, describe, lead_of, stage_record
from tensordb.encoding.bases import Base, with_base
from tensordb.encoding.choice import plans_for
from tensordb.encoding.filters import Delta
from tensordb.encoding.format import MAX_ELEMENTS, MAX_RANK, Descriptor, is_storable
from tensordb.encoding.identity import content_id, object_id
from tensordb.encoding.lossy import Stored, quantize_where_possible
from tensordb.encoding.plans import Codes, Plan
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.sealing import Seal
from tensordb.encoding.workers import start
from tensordb.errors import InvalidInputError
from tensordb.forks import computed_once
from tensordb.model import Encoding, TensorSpec
from tensordb.tensors import byte_view, spec_of

__all__ = ["Base", "EncodedTensor", "Prepared", "encode", "prepare", "prepare_stored"]

_HASHED_APART = 16 << 20
"""From so many bytes on the content is hashed in another thread: waking one costs as much as a few megabytes."""
_WORTH_WRITING_EARLY = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTensor:
    """A tensor ready to be stored.

    Attributes:
        spec: Of the tensor.
        buffers: Bytes-like pieces; the payload is their concatenation. They may alias the tensor.
        nbytes: Bytes of the payload.
        encoding: What was applied, with the measured error.
        content_id: 32 bytes that equal tensors share however they are compressed: BLAKE3 over the quantized tensor.
        object_id: 16 bytes that identify the content under this scheme.
        base_id: Content id of the base that it is stored as a difference from, None if it is stored by itself.
        seal: Tells whether the tensor was changed since it was hashed, which buffers that alias it would show.
    """

    spec: TensorSpec
    buffers: tuple[Any, ...]
    nbytes: int
    encoding: Encoding
    content_id: bytes
    object_id: bytes
    base_id: bytes | None = None
    seal: Seal | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tensor that is quantized. The ways to write it are looked for when they are needed, and not to learn its ids.

    Attributes:
        stored: What is to be stored.
        codes: Its codes as bytes.
        chunk: Elements of a chunk.
        content_id: Returns the content id, for which a large tensor is hashed in the background from the beginning.
        config: What applies to this tensor.
        base: What it may be stored as a difference from.
        seal: Tells whether the codes were changed since they were hashed; None where nobody else has them.
    """

    stored: Stored
    codes: NDArray[np.uint8]
    chunk: int
    content_id: Callable[[], bytes]
    config: CompressionConfig
    base: Base | None = None
    seal: Seal | None = None

    @computed_once
    def plans(self) -> tuple[Plan, ...]:
        """The plans to try; the smallest result is to be kept."""
        chunk_bytes = self.chunk * self.stored.codes.element_size() or self.codes.nbytes
        codes = _codes_of(self.stored, self.codes)
        plans = plans_for(self.config, codes, chunk_bytes)
        if self.base is not None:
            plans = with_base(plans, self.base, codes, chunk_bytes, self.content_id)
        return tuple(plans)

    @property
    def lead(self) -> int | None:
        """Bytes of the header, if the frames are worth writing while they are made: a large tensor with one plan."""
        if len(self.plans) > 1 or self.codes.nbytes < _WORTH_WRITING_EARLY:
            return None
        return lead_of(self.stored, self.plans[0], self.chunk)

    @property
    def most(self) -> int:
        """Bytes that the payload will have at most, or hardly more: for finding a segment with room."""
        return (
            self.codes.nbytes
            + self.codes.nbytes // 64
            + (1 << 16)
            + sum(data.nbytes for data, _ in self.stored.arrays())
        )

    def encode(self) -> EncodedTensor:
        """Return the smallest payload that a plan gives."""
        # One after the other, so that no more than the smallest and the next are in memory.
        results = (assemble(self.stored, self.codes, plan, self.chunk) for plan in self.plans)
        return self._encoded(min(results, key=lambda result: result.frames.nbytes))

    def encode_growing(self, write: Write) -> EncodedTensor | None:
        """Write the frames while they are made; the result's only buffer is the header, which precedes them.

        Returns:
            What `encode` would, but for the buffers; None where that would be another payload, because this one saves
            so little that raw is preferred.
        """
        result = assemble(self.stored, self.codes, self.plans[0], self.chunk, write)
        return self._encoded(result) if result.preferred else None

    def _encoded(self, result: Assembled) -> EncodedTensor:
        frames, content = result.frames, self.content_id()
        if self.seal is not None:
            self.seal.check()
        encoding = describe(result.descriptor, self.stored.quantizer, result.plan, frames.nbytes)
        identity = object_id(content, result.packed)
        base = result.plan.filter.base if isinstance(result.plan.filter, Delta) else None
        buffers = tuple(frames.buffers)
        return EncodedTensor(
            self.stored.spec, buffers, frames.nbytes, encoding, content, identity, base, None if base else self.seal
        )


def encode(
    tensor: torch.Tensor,
    config: CompressionConfig,
    *,
    page: bool = False,
    base: Base | None = None,
    name: str | None = None,
) -> EncodedTensor:
    """Return a tensor quantized, compressed and checksummed as `config` asks.

    Args:
        tensor: A snapshot: plain, contiguous, on the CPU, and not changed while the result is in use.
        config: What to apply. Where a quantizer cannot keep its promise the tensor is stored lossless, with a note.
        page: The tensor is ``[N, …]``, N records of the same spec: each is quantized by itself and can be read by
            itself at little cost.
        base: An earlier version of the tensor, no page. Each chunk is stored as what changed since then where that is
            smaller. The tensor is stored by itself where a sample says that this saves less than 1.5 %, where the base
            has another dtype, size or chunks, and below 4 KiB.
        name: What the config's rules know the tensor by; None when it has none.

    Raises:
        InvalidInputError: if a page has no dimension, its records are too large, or it is given a base; or if the
            shape has more than 64 dimensions or the product of those that are not 0 exceeds 2**60.
        ConflictError: if another thread changed the tensor meanwhile.
    """
    return prepare(tensor, config, page=page, base=base, name=name).encode()


def prepare(
    tensor: torch.Tensor,
    config: CompressionConfig,
    *,
    page: bool = False,
    base: Base | None = None,
    name: str | None = None,
) -> Prepared:
    """Return a tensor quantized and ready to be written; arguments and errors are those of `encode`.

    Whether an equal tensor is stored already can be asked by `Prepared.content_id` at the cost of quantizing and
    hashing.
    """
    spec = spec_of(tensor)
    if not is_storable(spec.shape):
        raise InvalidInputError(
            f"shape {spec.shape} cannot be stored, at most {MAX_RANK} dimensions of together {MAX_ELEMENTS} elements; "
            "reshape the tensor"
        )
    if page and not spec.shape:
        raise InvalidInputError("a page needs a dimension that counts its records; stack them with torch.stack(...)")
    if page and base is not None:
        raise InvalidInputError("a page cannot be stored as a difference; encode its tensors one by one")
    config = config.for_tensor(name, replace(spec, shape=spec.shape[1:]) if page else spec)
    return prepare_stored(quantize_where_possible(tensor, config, page), config, base)


def prepare_stored(stored: Stored, config: CompressionConfig, base: Base | None = None) -> Prepared:
    """Return what a quantizer made of a tensor, ready to be written; of the config only the compression counts."""
    codes = byte_view(stored.codes)
    seal = Seal(codes) if stored.quantizer is None else None
    hashing = start if codes.nbytes >= _HASHED_APART else _at_once
    content = hashing(lambda: _content_id(stored, [codes] if seal is None else seal.pieces()))
    return Prepared(stored, codes, chunk_of(stored), content, config, base, seal)


def _codes_of(stored: Stored, data: Any) -> Codes:
    record_bytes = data.nbytes // stored.spec.shape[0] if stored.page and data.nbytes else 0
    bits = stored.quantizer.code_bits if stored.quantizer else 8 * stored.codes.element_size()
    return Codes(data, stored.codes_dtype, stored.spec.shape, record_bytes, bits, stored.quantizer is not None)


def _at_once(work: Callable[[], bytes]) -> Callable[[], bytes]:
    result = work()
    return lambda: result


def _content_id(stored: Stored, codes: Iterable[NDArray[np.uint8]]) -> bytes:
    exceptions = len(stored.exceptions) if stored.exceptions else 0
    descriptor = Descriptor(stored.spec, stored.page, stage_record(stored.quantizer), exceptions=exceptions)
    return content_id(descriptor, chain(codes, (data for data, _ in stored.arrays())))
