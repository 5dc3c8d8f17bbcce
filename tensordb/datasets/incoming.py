"""Objects on their way into the catalog, and the columns of the records that will name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tensordb.catalog.objects import OBJECT_ID_NBYTES
from tensordb.datasets.batching import Batch
from tensordb.encoding.summing import FIELDS, Statistics
from tensordb.engine import Stored
from tensordb.model import TensorSpec


class Part(NamedTuple):
    """Which records an object is for: what is kept of a batch once its tensor was written."""

    positions: Sequence[int]
    is_page: bool
    object_id: bytes
    spec: TensorSpec
    statistics: Statistics


@dataclass
class Incoming:
    """What one insert brings."""

    stored: dict[bytes, Stored] = field(default_factory=dict)
    refs: dict[bytes, int] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)

    def add(self, batch: Batch, stored: Stored, statistics: Statistics) -> None:
        """Take an object whose records stand at the batch's positions, with the statistics of each."""
        object_id, spec = stored.encoded.object_id, stored.encoded.spec
        self.stored.setdefault(object_id, stored)
        self.refs[object_id] = self.refs.get(object_id, 0) + len(batch.positions)
        record_spec = TensorSpec(spec.dtype, spec.shape[1:]) if batch.is_page else spec
        self.parts.append(Part(batch.positions, batch.is_page, object_id, record_spec, statistics))

    @property
    def count(self) -> int:
        """How many records there are."""
        return sum(self.refs.values())

    def specs(self) -> set[TensorSpec]:
        """Return the specs of all records."""
        return {part.spec for part in self.parts}

    def columns(self, numbers: Mapping[TensorSpec, int]) -> tuple[np.ndarray[Any, Any], ...]:
        """Return object ids, page rows, spec numbers and statistics of all records in the order of their positions.

        Of several objects this can be asked only once: what there was of each is given up.
        """
        parts = self.parts
        lengths = [len(part.positions) for part in parts]
        objects = np.array([part.object_id for part in parts], f"V{OBJECT_ID_NBYTES}")
        specs = np.array([numbers[part.spec] for part in parts])
        rows = [
            np.arange(length) if part.is_page else np.full(length, -1)
            for part, length in zip(parts, lengths, strict=True)
        ]
        if len(parts) == 1:
            return np.repeat(objects, lengths), rows[0], np.repeat(specs, lengths), parts[0].statistics
        self.parts = []
        # Column by column, as Arrow takes them.
        statistics = np.concatenate([part.statistics for part in parts], out=np.empty((len(FIELDS), sum(lengths))).T)
        if _is_in_order(parts):
            return np.repeat(objects, lengths), np.concatenate(rows), np.repeat(specs, lengths), statistics
        order = np.argsort(np.concatenate([np.asarray(part.positions, np.int64) for part in parts]))
        which = np.repeat(np.arange(len(parts)), lengths)[order]
        return objects[which], np.concatenate(rows)[order], specs[which], statistics[order]


def _is_in_order(parts: Sequence[Part]) -> bool:
    """Tell whether the records of one part follow those of the one before, as when they come as one stack."""
    ranges = [part.positions for part in parts if isinstance(part.positions, range)]
    ends = [0, *(each.stop for each in ranges)]
    return len(ranges) == len(parts) and all(each.start == end for each, end in zip(ranges, ends, strict=False))
