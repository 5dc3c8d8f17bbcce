"""Where encoded bytes live outside the catalog: append-only segment files, or memory where there is no folder."""

from tensordb.payloads.base import Location, PayloadStore, SegmentInfo
from tensordb.payloads.memory import MemorySegments
from tensordb.payloads.pins import Pin
from tensordb.payloads.segments import SegmentStore

__all__ = ["Location", "MemorySegments", "PayloadStore", "Pin", "SegmentInfo", "SegmentStore"]
