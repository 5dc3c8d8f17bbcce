"""Tensor to payload and back: the only place that knows the order of the stages.

encode: quantizer, filter, codec, frames, header. decode: header, verified frames, codec, filter, quantizer. Decoding
needs the payload and nothing of today's settings. Pure functions of bytes: no I/O, no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from tensordb.encoding.assembly import assemble, chunk_of, describe, stage_record
from tensordb.encoding.choice import plans_for
from tensordb.encoding.chunks import Chunks
from tensordb.encoding.filters.words import word_bytes
from tensordb.encoding.format import MAX_ELEMENTS, MAX_RANK, Descriptor, is_storable
from tensordb.encoding.gather import MOVED, Rows, gather_records, gather_rows, gather_runs, positions_of
from tensordb.encoding.indexing import Index, select, window
from tensordb.encoding.lossy import Stored, quantize_where_possible
from tensordb.encoding.plans import Codes, delta
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.workers import WORTH_WAKING, for_each, start
from tensordb.errors import InvalidInputError
from tensordb.model import Encoding, TensorSpec
from tensordb.tensors import byte_view, empty, spec_of, view_of

__all__ = ["Base", "EncodedTensor", "PayloadReader", "decode_rows_many", "encode"]

_CONTENT_ID_BYTES, _OBJECT_ID_BYTES = 32, 16
_HASHED_APART = 16 << 20
"""From so many bytes on the content is hashed in another thread: waking one costs as much as a few megabytes."""


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
    """

    spec: TensorSpec
    buffers: tuple[Any, ...]
    nbytes: int
    encoding: Encoding
    content_id: bytes
    object_id: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A stored tensor that another one is to be stored as a difference from.

    Attributes:
        content_id: Its content id; reading the other one will ask for it.
        reader: Its payload.
    """

    content_id: bytes
    reader: PayloadReader


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
            smaller; where it is nowhere, or the base has another dtype or shape, the tensor is stored by itself.
        name: What the config's rules know the tensor by; None when it has none.

    Raises:
        InvalidInputError: if a page has no dimension, its records are too large, or it is given a base; or if the
            shape has more than 64 dimensions or the product of those that are not 0 exceeds 2**60.
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
    stored = quantize_where_possible(tensor, config, page)
    codes = byte_view(stored.codes)
    hashing = start if codes.nbytes >= _HASHED_APART else _at_once
    content_id = hashing(lambda: _content_id(stored))
    chunk = chunk_of(stored)
    chunk_bytes = chunk * stored.codes.element_size() or codes.nbytes
    plans = plans_for(config, _codes_of(stored, codes), chunk_bytes)
    if base is not None and _helps(base, stored, content_id, chunk_bytes):
        plans.append(delta(base.content_id, base.reader._chunks.read_codes, word_bytes(stored.codes_dtype)))
    results = (assemble(stored, codes, plan, chunk) for plan in plans)
    descriptor, plan, payload = min(results, key=lambda result: result[2].nbytes)
    identity = blake3(content_id() + descriptor.pack()).digest(_OBJECT_ID_BYTES)
    encoding = describe(descriptor, stored.quantizer, plan, payload.nbytes)
    return EncodedTensor(spec, tuple(payload.buffers), payload.nbytes, encoding, content_id(), identity)


def _helps(base: Base, stored: Stored, content_id: Callable[[], bytes], chunk_bytes: int) -> bool:
    """Tell whether a tensor can be stored as a difference; one that is equal to the base would become its own base."""
    nbytes = stored.codes.numel() * stored.codes.element_size()
    fits = base.reader._chunks.goes_with(stored.codes_dtype, nbytes, chunk_bytes)
    return nbytes > 0 and fits and content_id() != base.content_id


def _codes_of(stored: Stored, data: Any) -> Codes:
    record_bytes = data.nbytes // stored.spec.shape[0] if stored.page and data.nbytes else 0
    bits = stored.quantizer.code_bits if stored.quantizer else 8 * stored.codes.element_size()
    return Codes(data, stored.codes_dtype, stored.spec.shape, record_bytes, bits, stored.quantizer is not None)


def _at_once(work: Callable[[], bytes]) -> Callable[[], bytes]:
    result = work()
    return lambda: result


def _content_id(stored: Stored) -> bytes:
    quantizer = stage_record(stored.quantizer)
    exceptions = len(stored.exceptions) if stored.exceptions else 0
    descriptor = Descriptor(stored.spec, stored.page, quantizer, exceptions=exceptions)
    return _hashed(descriptor, [byte_view(stored.codes), *(data for data, _ in stored.arrays())])


def _hashed(stored: Descriptor, arrays: Iterable[Any]) -> bytes:
    """Return BLAKE3-256 over the spec, the quantizer, and the bytes of codes, parameters and exceptions."""
    # A lossless page is the same content as the same tensor in one piece; a quantized one has other parameters.
    page = stored.page and bool(stored.quantizer.id)
    descriptor = Descriptor(stored.spec, page, stored.quantizer, exceptions=stored.exceptions)
    digest = blake3(b"tensordb content 1\0" + descriptor.pack())
    for data in arrays:
        digest.update(data)
    return digest.digest(_CONTENT_ID_BYTES)


class PayloadReader:
    """A stored tensor, decoded whole or in part. Immutable; threads may share it.

    The header is verified at once, every frame each time it is read. Returned tensors own their memory, but for
    `view`. The payload must not change or be unmapped while the reader is in use.

    Attributes:
        spec: Of the tensor.
        encoding: What was applied, from the payload alone.
    """

    def __init__(self, payload: Any, *, bases: Callable[[bytes], PayloadReader] | None = None) -> None:
        """Take a bytes-like payload.

        Args:
            payload: All of it.
            bases: Finds the payload that has a content id, for a tensor that is stored as a difference.

        Raises:
            IntegrityError: if the header is damaged or the payload is cut short.
            FormatError: if it is no payload, or of a version or stage unknown to this release.
        """
        view = memoryview(payload)
        find = None if bases is None else lambda content_id: bases(content_id)._chunks
        self._chunks: Chunks = Chunks(view if view.format == "B" and view.ndim == 1 else view.cast("B"), find)
        self.spec = self._chunks.descriptor.spec
        self.encoding = describe(self._chunks.descriptor, self._chunks.quantizer, self._chunks, view.nbytes)

    @property
    def base_id(self) -> bytes | None:
        """Content id of the tensor that this one is stored as a difference from, None if it is stored by itself."""
        return self._chunks.base_id

    def decode(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the whole tensor.

        Args:
            out: Where to put it: same dtype and shape, any strides and device. Returned if given.

        Raises:
            InvalidInputError: if `out` has another dtype or shape.
            IntegrityError: if a frame is damaged; what `out` holds is then undefined.
        """
        if out is None:
            return self._fill(empty(self.spec))
        if not isinstance(out, torch.Tensor) or spec_of(out) != self.spec:
            raise InvalidInputError(
                f"out must be a tensor of {self.spec}, got {getattr(out, 'dtype', type(out))} "
                f"{tuple(getattr(out, 'shape', ()))}"
            )
        with torch.no_grad():
            direct = out.device.type == "cpu" and out.is_contiguous() and not (out.is_conj() or out.is_neg())
            if direct:
                self._fill(out.detach())
            else:
                out.copy_(self._fill(empty(self.spec)))
        return out

    def decode_index(self, index: Index) -> torch.Tensor:
        """Return ``tensor[index]``, decoding only the chunks it touches.

        Args:
            index: An int, a slice with any step, an Ellipsis, or a tuple of those.

        Raises:
            IndexError: if an int is out of range.
            InvalidInputError: for any other kind of index.
            IntegrityError: if a frame that is touched is damaged.
        """
        chosen = select(index, self.spec.shape)
        if not len(chosen.starts) or not chosen.length:
            return empty(TensorSpec(self.spec.dtype, chosen.shape))
        data = gather_runs(self._chunks, chosen.starts, chosen.length)
        taken = view_of(data, TensorSpec(self.spec.dtype, chosen.counts))
        return (_turned(taken, chosen.flips) if chosen.flips else taken).reshape(chosen.shape)

    def decode_rows(self, rows: Rows) -> torch.Tensor:
        """Return ``tensor[rows]`` of shape ``[k, …]``: positions along dimension 0, in any order, repeated at will.

        Raises:
            IndexError: if a row is out of range.
            InvalidInputError: if the tensor has no dimension.
            IntegrityError: if a frame that is touched is damaged.
        """
        return decode_rows_many([(self, rows)])

    def view(self, index: Index = ...) -> torch.Tensor:
        """Return ``tensor[index]`` as a tensor that aliases the payload and keeps it alive.

        It must not be written to: that ends the process where the payload is a read-only map, and damages the payload
        elsewhere (torch has no read-only tensors). The checksums of the frames from the first element to the last one
        selected are verified first; what happens to the bytes afterwards is not noticed.

        Args:
            index: As for `decode_index`, but no slice may run backwards. The default is the whole tensor.

        Raises:
            InvalidInputError: if the payload is compressed or quantized.
            IntegrityError: if a frame that is touched is damaged.
        """
        chosen = window(index, self.spec.shape)
        data = self._chunks.verbatim(chosen.start, chosen.length)
        if data is None:
            raise InvalidInputError(
                f"a tensor stored as {self.encoding.compression}, quantization {self.encoding.quantization}, "
                "has no bytes to alias; decode it (copy=True), or store it with the preset 'none'"
            )
        if not chosen.length:
            return empty(TensorSpec(self.spec.dtype, chosen.shape))
        return view_of(data, TensorSpec(self.spec.dtype, (chosen.length,))).as_strided(chosen.shape, chosen.strides)

    def content_id(self) -> bytes:
        """Return the 32 bytes that `encode` gave for the content, from what is stored.

        Raises:
            IntegrityError: if a frame is damaged.
        """
        return _hashed(self._chunks.descriptor, self._chunks.content())

    def verify(self) -> None:
        """Check every frame and that all of them decode, keeping nothing.

        Raises:
            IntegrityError: if anything is not as it was written.
        """
        self._chunks.verify()

    def _fill(self, out: torch.Tensor) -> torch.Tensor:
        chunks, data = self._chunks, byte_view(out)
        layout = chunks.layout

        def read(first: int, last: int) -> None:
            begin, end = layout.span(first, last)
            widen = chunks.itemsize
            narrow = chunks.codes_itemsize
            chunks.read_values(first, last, data[begin // narrow * widen : end // narrow * widen])

        if layout.batches < WORTH_WAKING:
            if layout.chunks:
                read(0, layout.chunks)
        else:
            for_each(layout.batches, lambda index: read(*layout.batch_chunks(index)))
        return out


def _turned(tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor with these dimensions turned round; by size alone, as torch cannot flip every dtype."""
    spec = spec_of(tensor)
    words = byte_view(tensor).view(MOVED[tensor.element_size()]).reshape(spec.shape)
    return view_of(np.ascontiguousarray(np.flip(words, dims)).reshape(-1).view(np.uint8), spec)


def decode_rows_many(requests: Sequence[tuple[PayloadReader, Rows]]) -> torch.Tensor:
    """Return rows of many payloads in one pass, ``[k, …]``: for each reader in turn its rows in the order given.

    Args:
        requests: Readers with positions along dimension 0; all of one dtype and row shape. Pages are fast.

    Raises:
        IndexError: if a row is out of range.
        InvalidInputError: if there are no requests or their rows differ in spec.
        IntegrityError: if a frame that is touched is damaged.
    """
    if not requests:
        raise InvalidInputError("no rows asked for; pass at least one (reader, rows)")
    specs = {(reader.spec.dtype, reader.spec.shape[1:]) for reader, _ in requests}
    if len(specs) > 1 or not requests[0][0].spec.shape:
        raise InvalidInputError(f"rows of one dtype and shape can be read together, not of {specs}; read them apart")
    plain = [(reader._chunks, positions_of(rows, reader.spec.shape[0])) for reader, rows in requests]
    count = sum(len(rows) for _, rows in plain)
    spec = replace(requests[0][0].spec, shape=(count, *requests[0][0].spec.shape[1:]))
    if 0 in spec.shape:
        return empty(spec)
    if all(chunks.record_elements for chunks, _ in plain):
        return view_of(gather_records(plain), spec)
    return view_of(np.concatenate([gather_rows(*request) for request in plain]), spec)
