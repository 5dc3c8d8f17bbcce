"""Codes to payload: chunks through filter and codec into frames, and a header before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.batches import frames_of
from tensordb.encoding.format import ENTRY_BYTES, Descriptor, StageRecord, header_bytes, pack_header
from tensordb.encoding.frames import RAW, FrameList
from tensordb.encoding.layout import Layout, chunk_elements, layout_of, parameter_frames
from tensordb.encoding.lossy import Stored
from tensordb.encoding.plans import MINIMUM_SAVING, RAW_PLAN, Plan
from tensordb.encoding.workers import InOrder, for_each
from tensordb.model import Encoding
from tensordb.tensors import dtype_from_name, nbytes_of

Write = Callable[[Sequence[Any]], None]
"""Takes buffers that follow those before."""


def stage_record(stage: Any) -> StageRecord:
    """Return a stage as a header stores it; None stands for the stage that does nothing."""
    return StageRecord(stage.id, stage.pack()) if stage is not None else StageRecord()


def chunk_of(stored: Stored) -> int:
    """Return how many elements a chunk is to have; 0 for all.

    Raises:
        InvalidInputError: if a record of a page is too large for a chunk.
    """
    return chunk_elements(math.prod(stored.spec.shape), _record_elements(stored), _itemsize(stored))


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """A payload in pieces.

    Attributes:
        descriptor: What its header says.
        packed: The same as bytes.
        plan: The plan that was kept to.
        frames: All that is stored, the header as the first of its buffers.
        preferred: False where raw would have been preferred, but for the frames that were written already.
    """

    descriptor: Descriptor
    packed: bytes
    plan: Plan
    frames: FrameList
    preferred: bool = True


def assemble(stored: Stored, codes: NDArray[np.uint8], plan: Plan, chunk: int, write: Write | None = None) -> Assembled:
    """Return the whole payload for one plan.

    Args:
        stored: What is to be stored.
        codes: Its codes as bytes.
        plan: How.
        chunk: Elements of a chunk.
        write: Takes the frames as they are made, in their order; the result then has the header alone.
    """
    layout = _layout(stored, plan, chunk)
    frames = FrameList()
    _write(codes, layout, plan, frames, write)
    small = frames.nbytes + ENTRY_BYTES * len(frames.words) <= (1 - MINIMUM_SAVING) * codes.nbytes
    preferred = small or not plan.optional
    if not preferred and write is None:
        return assemble(stored, codes, RAW_PLAN, chunk)
    for data, itemsize in stored.arrays():
        frames.add([(RAW, data[begin:end]) for begin, end in parameter_frames(len(data) // itemsize, itemsize)])
    frames.finish()
    if write is not None:
        frames.pass_on(write)
    descriptor = _descriptor(stored, plan, chunk)
    packed = descriptor.pack()
    header = pack_header(packed, frames.words, frames.checksums)
    frames.buffers.insert(0, header)
    frames.nbytes += len(header)
    return Assembled(descriptor, packed, plan, frames, preferred)


def lead_of(stored: Stored, plan: Plan, chunk: int) -> int:
    """Return the bytes of the header that `assemble` will make."""
    layout = _layout(stored, plan, chunk)
    beside = sum(len(parameter_frames(len(data) // itemsize, itemsize)) for data, itemsize in stored.arrays())
    frames = layout.chunks * layout.group_count + beside
    return header_bytes(_descriptor(stored, plan, chunk).pack(), frames)


def _layout(stored: Stored, plan: Plan, chunk: int) -> Layout:
    elements = math.prod(stored.spec.shape)
    return layout_of(elements, _record_elements(stored), _itemsize(stored), chunk, plan.filter)


def _descriptor(stored: Stored, plan: Plan, chunk: int) -> Descriptor:
    return Descriptor(
        stored.spec,
        stored.page,
        stage_record(stored.quantizer),
        stage_record(plan.filter),
        stage_record(plan.codec),
        chunk,
        stored.error,
        stored.note,
        len(stored.exceptions) if stored.exceptions else 0,
    )


def _record_elements(stored: Stored) -> int:
    return math.prod(stored.spec.shape[1:]) if stored.page else 0


def _itemsize(stored: Stored) -> int:
    return dtype_from_name(stored.codes_dtype).itemsize


def _write(codes: NDArray[np.uint8], layout: Layout, plan: Plan, frames: FrameList, write: Write | None) -> None:
    """Add the frames of all chunks, made on all cores."""
    # One piece of memory for what is stored raw: the system gives large ones out in huge pages. None for what is packed
    # elsewhere at once: threads of a bulk insert would keep it.
    room = None if layout.record_bytes else np.empty(codes.nbytes, np.uint8)

    def take(part: FrameList) -> None:
        frames.extend(part)
        if write is not None:
            frames.pass_on(write)

    in_order = InOrder(take)

    def work(index: int) -> None:
        first, last = layout.batch_chunks(index)
        begin, end = layout.span(first, last)
        part = None if room is None else room[begin:end]
        in_order.put(index, frames_of(codes[begin:end], part, first, layout, plan))

    if layout.chunks == 1:
        take(frames_of(codes, room, 0, layout, plan))
    else:
        for_each(layout.batches, work)
    if plan is RAW_PLAN and write is None and frames.nbytes - frames.padding == codes.nbytes and codes.nbytes:
        # Frames without gaps between them are the codes themselves: one buffer instead of one for each chunk.
        frames.buffers = [codes, bytes(frames.padding)] if frames.padding else [codes]


def describe(descriptor: Descriptor, quantizer: Any, stages: Any, nbytes: int) -> Encoding:
    """Return what a payload's stages are called; `stages` has `filter` and `codec`."""
    names = [stage.name for stage in (stages.filter, stages.codec) if stage.id]
    return Encoding(
        compression="+".join(names) or "none",
        quantization=quantizer.name if quantizer else "none",
        original_nbytes=nbytes_of(descriptor.spec),
        stored_nbytes=nbytes,
        compression_parameters=stages.codec.parameters(),
        quantization_parameters=quantizer.parameters() if quantizer else {},
        error=descriptor.error,
        note=descriptor.note,
    )
