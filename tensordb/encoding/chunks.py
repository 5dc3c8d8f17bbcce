"""Chunks of a payload: verified frames back to the bytes of the tensor. Immutable, so that threads may share it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.arrays import Shape, frames_needed, raw_arrays
from tensordb.encoding.codecs import codec_with_id
from tensordb.encoding.filters import Delta, filter_with_id
from tensordb.encoding.format import Descriptor, parse_header
from tensordb.encoding.frames import FrameTable
from tensordb.encoding.layout import layout_of, parameter_frames
from tensordb.encoding.quantizers import Quantizer, quantizer_with_id
from tensordb.encoding.quantizers.exceptions import (
    WORDS,
    Exceptions,
    check_positions,
    most_exceptions,
    position_dtype,
    within,
)
from tensordb.encoding.quantizers.floats import FLOAT_DTYPES, Floats
from tensordb.encoding.quantizers.granularity import PerTensor
from tensordb.encoding.quantizers.sharing import ParameterMap
from tensordb.errors import FormatError, IntegrityError, InvalidInputError, UnsupportedFormatError
from tensordb.forks import computed_once
from tensordb.tensors import dtype_from_name

Bytes = NDArray[np.uint8]
FindBase = Callable[[bytes], "Chunks"]
"""Finds a base by its content id."""
MAX_BASES = 64
_reading = threading.local()


class Chunks:
    """A payload whose header has been verified.

    Attributes:
        descriptor: What the header says.
        codes_dtype: Dtype of what is stored: the quantizer's codes, or the tensor's own.
        layout: How the codes are cut.
        where: Which quantization parameter belongs to which element.
    """

    def __init__(self, payload: memoryview, bases: FindBase | None = None) -> None:
        header = parse_header(payload)
        self.payload = payload
        self.descriptor: Descriptor = header.descriptor
        spec = self.descriptor.spec
        if self.descriptor.page and not spec.shape:
            raise FormatError("payload is a page of a tensor without dimensions; it is forged")
        self.quantizer = self._quantizer()
        self.codes_dtype = self.quantizer.codes_dtype if self.quantizer else spec.dtype
        self.itemsize = _itemsize(spec.dtype)
        self.codes_itemsize = _itemsize(self.codes_dtype)  # a filter takes it for granted that torch has the dtype
        self.filter = filter_with_id(self.descriptor.filter.id, self.descriptor.filter.parameters, self.codes_dtype)
        self.codec = codec_with_id(self.descriptor.codec.id, self.descriptor.codec.parameters)
        self.elements = math.prod(spec.shape)
        self.record_elements = math.prod(spec.shape[1:]) if self.descriptor.page else 0
        self.layout = layout_of(
            self.elements, self.record_elements, self.codes_itemsize, self.descriptor.chunk_elements, self.filter
        )
        self.where = self._parameter_map()
        # The table's own size bounds everything that is computed from the shape.
        arrays = self._arrays_beside()
        codes = self.layout.chunks * self.layout.group_count
        needed = codes + frames_needed(arrays)
        if needed != len(header.words):
            raise FormatError(
                f"frame table has {len(header.words)} entries where the tensor has {needed} frames; it is forged"
            )
        sizes = [
            end - begin for dtype, count in arrays for begin, end in parameter_frames(count, np.dtype(dtype).itemsize)
        ]
        code_sizes = self.layout.frame_sizes()
        loose = 0 if self.filter.sliceable else len(code_sizes)
        self.frames = FrameTable(payload, header, code_sizes + sizes, loose)
        beside = list(raw_arrays(payload, self.frames, codes, arrays))
        self._exceptions = beside[-2:] if self.descriptor.exceptions else []
        self._parameters = beside[: len(beside) - len(self._exceptions)]
        self._bases = bases
        self._base: Chunks | None = None

    def _arrays_beside(self) -> list[Shape]:
        """Return the arrays of the quantizer's parameters and of exceptions."""
        if self.quantizer is None:
            return []
        parameter = np.float32 if self.quantizer.parameter_dtype == "float32" else np.uint16
        arrays: list[Shape] = [(parameter, self.where.total)] * self.quantizer.parameter_count
        count = self.descriptor.exceptions
        if count > most_exceptions(self.elements):
            raise FormatError(f"header promises {count} exceptions among {self.elements} elements; it is forged")
        if count:
            arrays += [(position_dtype(self.elements), count), (WORDS[self.itemsize], count)]
        return arrays

    def _quantizer(self) -> Quantizer | None:
        stage = self.descriptor.quantizer
        if not stage.id:
            return None
        if self.descriptor.spec.dtype not in FLOAT_DTYPES or 0 in self.descriptor.spec.shape:
            raise FormatError(f"payload quantizes {self.descriptor.spec}, which cannot be; it is forged")
        return quantizer_with_id(stage.id, stage.parameters)

    def _parameter_map(self) -> ParameterMap:
        spec, page = self.descriptor.spec, self.descriptor.page
        if self.quantizer is None:
            return ParameterMap.of(PerTensor(), (), 1)
        try:
            return self.quantizer.parameter_map(spec, page)
        except InvalidInputError as error:
            raise FormatError(f"payload quantizes what its shape has not: {error}") from error

    def read_codes(self, first: int, last: int, out: Bytes) -> None:
        """Write the codes of chunks `first` to `last` (exclusive) to `out`, which has their bytes."""
        layout, count = self.layout, self.layout.group_count
        if not self.filter.sliceable:
            for chunk in range(first, last):
                begin = (chunk - first) * layout.chunk_bytes
                self._read_chunk(chunk, out[begin : begin + layout.chunk_bytes])
            return
        indices = range(first * count, last * count)
        contents = self.frames.contents(indices, self.codec)
        addresses = self.frames.addresses(indices, contents)
        whole = out.nbytes // layout.chunk_bytes
        # The last chunk of all may be shorter than the others.
        for begin, end in ((0, whole), (whole, last - first)):
            if begin < end:
                part = out[begin * layout.chunk_bytes : end * layout.chunk_bytes]
                slices = layout.slices(part.nbytes // (end - begin), end - begin)
                slices.chunks = [contents[at : at + count] for at in range(begin * count, end * count, count)]
                slices.addresses = [addresses[at : at + count] for at in range(begin * count, end * count, count)]
                self.filter.gather(slices, part)

    @property
    def base_id(self) -> bytes | None:
        """Content id of the tensor that this one is stored as a difference from."""
        return self.filter.base if isinstance(self.filter, Delta) else None

    def _found_base(self, content_id: bytes) -> Chunks:
        # Without a lock, which a fork might leave taken: two threads may both find it.
        if self._base is None:
            if self._bases is None:
                raise IntegrityError(f"the payload holds what changed since {content_id.hex()}; read it with that base")
            base = self._bases(content_id)
            if not base.goes_with(self.codes_dtype, self.layout.nbytes, self.layout.chunk_bytes):
                raise IntegrityError(f"the base {content_id.hex()} has another dtype or shape; restore it from a copy")
            self._base = base
        return self._base

    def _read_base(self, content_id: bytes, chunk: int, out: Bytes) -> None:
        depth = getattr(_reading, "depth", 0)
        if depth >= MAX_BASES:  # a base that is its own would be read for ever
            raise FormatError(f"payload has more than {MAX_BASES} bases one behind the other; it is forged")
        base = self._found_base(content_id)
        _reading.depth = depth + 1
        try:
            base.read_codes(chunk, chunk + 1, out)
        finally:
            _reading.depth = depth

    def goes_with(self, codes_dtype: str, nbytes: int, chunk_bytes: int) -> bool:
        """Tell whether codes of this dtype, size and chunking can be stored as a difference from these."""
        layout = self.layout
        mine = (self.codes_dtype, layout.nbytes, layout.chunk_bytes, layout.record_bytes)
        return mine == (codes_dtype, nbytes, chunk_bytes, 0)

    def _read_chunk(self, chunk: int, out: Bytes) -> None:
        """Write the codes of a chunk to `out`."""
        groups = self._groups(chunk, out.nbytes)
        if isinstance(self.filter, Delta) and self.filter.is_change(groups):
            self._read_base(self.filter.base, chunk, out)
        self.filter.merge(groups, self.layout.records(out.nbytes), out)

    def _groups(self, chunk: int, nbytes: int) -> list[Bytes]:
        """Return the groups of a chunk, the size of each found from those before it."""
        first, groups = chunk * self.layout.group_count, list[Bytes]()
        for group in range(self.layout.group_count):
            size = self.filter.share(group, nbytes, groups)
            groups.append(self.frames.content(first + group, self.codec, size))
        return groups

    def read_values(self, first: int, last: int, out: Bytes) -> None:
        """Write the tensor's bytes of chunks `first` to `last` (exclusive) to `out`, which has their bytes."""
        if self.quantizer is None:
            self.read_codes(first, last, out)
            return
        start, stop = self.layout.span(first, last)
        codes = np.empty(stop - start, np.uint8)
        self.read_codes(first, last, codes)
        begin, end = start // self.codes_itemsize, stop // self.codes_itemsize
        near = self.where.stretch(begin, end, *(array.read_floats for array in self._parameters))
        self.quantizer.restore(codes, near, self.descriptor.spec.dtype, out)
        self.put_exceptions(out, begin, end)

    def verbatim(self, start: int, length: int) -> memoryview | None:
        """Return the stored bytes of elements, their frames verified; None if they are not stored as they are."""
        per_chunk = self.layout.chunk_bytes // self.codes_itemsize
        first, last = start // per_chunk, -(-(start + length) // per_chunk)
        if self.quantizer is not None or self.codec.id or self.filter.id:
            return None
        if not length:
            return self.payload[:0]
        span = self.frames.raw_span(first, last)
        if span is None:
            return None
        for frame in range(first, last):
            self.frames.verified(frame)
        begin = span[0] + (start - first * per_chunk) * self.itemsize
        return self.payload[begin : begin + length * self.itemsize]

    def record_parameters(self, rows: NDArray[np.int64]) -> tuple[Floats, ...]:
        """Return the quantization parameters of records of a page: ``float32[rows * count]`` each."""
        where = self.where
        arrays = (array.read_floats(0, where.total).reshape(where.records, where.count) for array in self._parameters)
        return tuple(array[rows].reshape(-1) for array in arrays)

    def codes_of_rows(self, rows: NDArray[np.int64]) -> Bytes:
        """Return the codes of records of a page, of which no other chunk is read: it may be damaged."""
        codes = np.empty(self.layout.nbytes, np.uint8)
        nbytes = self.record_elements * self.codes_itemsize
        size = self.layout.chunk_bytes
        begins, ends = rows * nbytes // size, -(-(rows + 1) * nbytes // size)
        for chunk in sorted({each for span in zip(begins, ends, strict=True) for each in range(*span)}):
            begin, end = self.layout.span(chunk, chunk + 1)
            self.read_codes(chunk, chunk + 1, codes[begin:end])
        return codes.reshape(-1, nbytes)[rows].reshape(-1)

    def parameters_of_rows(self, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return the quantization parameters of records of a page, as they are stored."""
        where = self.where
        return [each.read(0, where.total).reshape(-1, where.count)[rows].reshape(-1) for each in self._parameters]

    def exceptions_of_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the exceptions of records of a page that are given in ascending order, as if it had no others.

        Values of other records are not read: they may be damaged.
        """
        if not self._exceptions:
            return np.empty(0, np.int64), np.empty(0, WORDS[self.itemsize])
        found, within_record = np.divmod(self._positions.astype(np.int64), self.record_elements)
        kept = np.isin(found, rows)
        places = np.searchsorted(rows, found[kept]) * self.record_elements + within_record[kept]
        spans = (within(self._positions, row * self.record_elements, (row + 1) * self.record_elements) for row in rows)
        values = [self._exceptions[1].read(first, last) for first, last in spans if first < last]
        return places, np.concatenate(values) if values else np.empty(0, WORDS[self.itemsize])

    def put_exceptions(self, out: Bytes, start: int, stop: int) -> None:
        """Put the exceptions among elements start to stop (exclusive) into `out`, which holds their bytes."""
        if not self._exceptions:
            return
        first, last = within(self._positions, start, stop)
        if first < last:
            exact = self._exceptions[1].read(first, last)
            Exceptions(self._positions[first:last], exact).put(out, start, stop)

    @computed_once
    def _positions(self) -> NDArray[Any]:
        """Positions of exceptions, copied once they are verified: a search must not be led astray later."""
        positions = self._exceptions[0].read(0, self.descriptor.exceptions).copy()
        check_positions(positions, self.elements)
        return positions

    def content(self) -> Iterator[Any]:
        """Yield the bytes of the codes, part by part, and those of the quantization parameters."""
        for index in range(self.layout.batches):
            first, last = self.layout.batch_chunks(index)
            begin, end = self.layout.span(first, last)
            codes = np.empty(end - begin, np.uint8)
            self.read_codes(first, last, codes)
            yield codes
        for frame in range(self.layout.chunks * self.layout.group_count, len(self.frames)):
            yield self.frames.verified(frame)

    def verify(self) -> None:
        """Check every frame and that all of them decode; a base is not needed, and not looked at.

        Raises:
            IntegrityError: if anything is not as it was written.
        """
        self.frames.check_padding()
        codes = self.layout.chunks * self.layout.group_count
        if self.filter.sliceable:
            for frame in range(codes):
                self.frames.contents((frame,), self.codec)
        else:
            for chunk in range(self.layout.chunks):
                first, last = self.layout.span(chunk, chunk + 1)
                out = np.zeros(last - first, np.uint8)  # in place of the base's
                self.filter.merge(self._groups(chunk, out.nbytes), self.layout.records(out.nbytes), out)
        for frame in range(codes, len(self.frames)):
            self.frames.verified(frame)
        self.put_exceptions(np.empty(0, np.uint8), 0, 0)


def _itemsize(dtype: str) -> int:
    try:
        return dtype_from_name(dtype).itemsize
    except InvalidInputError as error:
        raise UnsupportedFormatError(
            f"payload holds {dtype}, which the installed torch lacks; use a newer torch"
        ) from error
