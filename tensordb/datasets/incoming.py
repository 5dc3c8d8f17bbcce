"""Objects on their way into the catalog, and the columns of the records that will name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensordb.catalog.objects import OBJECT_ID_NBYTES
from tensordb.datasets.batching import Batch
from tensordb.engine import Stored
from tensordb.model import TensorSpec


@dataclass
class Incoming:
    """What one insert brings."""

    stored: dict[bytes, Stored] = field(default_factory=dict)
    refs: dict[bytes, int] = field(default_factory=dict)
    parts: list[tuple[Batch, bytes, TensorSpec]] = field(default_factory=list)

    def add(self, batch: Batch, stored: Stored) -> None:
        """Take an object whose records stand at the batch's positions."""
        object_id, spec = stored.encoded.object_id, stored.encoded.spec
        self.stored.setdefault(object_id, stored)
        self.refs[object_id] = self.refs.get(object_id, 0) + len(batch.positions)
        record_spec = TensorSpec(spec.dtype, spec.shape[1:]) if batch.is_page else spec
        self.parts.append((batch, object_id, record_spec))

    @property
    def count(self) -> int:
        """How many records there are."""
        return sum(self.refs.values())

    def specs(self) -> set[TensorSpec]:
        """Return the specs of all records."""
        return {spec for _, _, spec in self.parts}

    def columns(self, numbers: Mapping[TensorSpec, int]) -> tuple[np.ndarray[Any, Any], ...]:
        """Return object ids, page rows and spec numbers of all records in the order of their positions."""
        if len(self.parts) == 1:
            ((batch, object_id, spec),) = self.parts
            rows = np.arange(len(batch.positions)) if batch.is_page else np.full(len(batch.positions), -1)
            return np.full(len(rows), object_id, f"V{OBJECT_ID_NBYTES}"), rows, np.full(len(rows), numbers[spec])
        lengths = [len(batch.positions) for batch, _, _ in self.parts]
        order = np.argsort(np.concatenate([np.asarray(batch.positions, np.int64) for batch, _, _ in self.parts]))
        part = np.repeat(np.arange(len(self.parts)), lengths)[order]
        row = np.concatenate([np.arange(length) for length in lengths])[order]
        whole = np.array([not batch.is_page for batch, _, _ in self.parts])[part]
        object_ids = np.array([object_id for _, object_id, _ in self.parts], f"V{OBJECT_ID_NBYTES}")[part]
        return object_ids, np.where(whole, -1, row), np.array([numbers[spec] for _, _, spec in self.parts])[part]
