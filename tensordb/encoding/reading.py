"""Payload to tensor: header, verified frames, codec, filter, quantizer.

Decoding needs the payload and nothing of today's settings. Pure functions of bytes: no I/O, no state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tensordb.encoding.assembly import describe
from tensordb.encoding.chunks import Chunks
from tensordb.encoding.gather import MOVED, Rows, gather_records, gather_rows, gather_runs, positions_of
from tensordb.encoding.identity import content_id, object_id
from tensordb.encoding.indexing import Index, select, window
from tensordb.encoding.short import ShortReads
from tensordb.encoding.workers import WORTH_WAKING, for_each
from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, empty, spec_of, view_of

__all__ = ["PayloadReader", "decode_rows_many"]

_UNKNOWN = object()


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
        self._short: Any = _UNKNOWN

    @property
    def payload_nbytes(self) -> int:
        """Stored bytes."""
        return self._chunks.payload.nbytes

    @property
    def is_page(self) -> bool:
        """Whether dimension 0 counts records."""
        return self._chunks.descriptor.page

    def in_memory(self) -> PayloadReader:
        """Return a reader of a copy of the payload, whose frames are verified now and not again.

        Raises:
            IntegrityError: if a frame is damaged.
        """
        copy = PayloadReader(bytes(self._chunks.payload))
        copy._chunks.frames.verify_once()
        return copy

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
            short = None if self._chunks.record_elements else self._short_reads()
            return self._fill(empty(self.spec)) if short is None else short.decode()
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

    def decode_row(self, row: int) -> torch.Tensor:
        """Return ``tensor[row]`` for a row from 0; else like `decode_rows`, and faster for the one row."""
        short = self._short_reads() if self._chunks.record_elements and 0 <= row < self.spec.shape[0] else None
        return self.decode_rows([row])[0] if short is None else short.decode(row)

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
        return content_id(self._chunks.descriptor, self._chunks.content())

    def object_id(self, content: bytes) -> bytes:
        """Return the 16 bytes that `encode` gave for the object, from its content id."""
        return object_id(content, self._chunks.descriptor.pack())

    def verify(self) -> None:
        """Check every frame and that all of them decode, keeping nothing; a base is not looked at.

        Raises:
            IntegrityError: if anything is not as it was written.
        """
        self._chunks.verify()

    def _short_reads(self) -> ShortReads | None:
        if self._short is _UNKNOWN:  # threads that look at once find the same
            self._short = ShortReads.of(self._chunks)
        found: ShortReads | None = self._short
        return found

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
