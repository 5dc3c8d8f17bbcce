"""What saving and asking give back: checkpoints as values, without their tensors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensordb.catalog import checkpoint_documents, documents
from tensordb.catalog.checkpoints import CheckpointRow
from tensordb.catalog.ids import CHECKPOINT_NONCE, generated_id
from tensordb.display import html_table
from tensordb.errors import IntegrityError

_MOST_SHOWN = 100
MOST_METRIC = 1 << 1000
"""Largest whole number that is a metric: a float holds it too."""


@dataclass(frozen=True)
class Checkpoint:
    """A state of a training run as it was saved.

    Attributes:
        id: The checkpoint id; it sorts by the time of saving.
        run: Name of the run.
        step: As given to `save`, or None.
        epoch: As given to `save`, or None.
        created_at: When it was saved, in UTC.
        parent_id: Id of the checkpoint before it in the run, or of the one that the run was forked from; None for the
            first of all.
        metrics: As given to `save`: numbers by name.
        metadata: As given to `save`.
        tags: Names of its tags.
        tensors: How many tensors it has; those that are tied count once.
        nbytes: Their raw bytes.
        stored_nbytes: Bytes of everything that is stored for them, also when other checkpoints share it.
        added_nbytes: Bytes that saving it added to the database; 0 when everything was there already.
    """

    id: str
    run: str
    step: int | None
    epoch: float | None
    created_at: dt.datetime
    parent_id: str | None
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    tensors: int = 0
    nbytes: int = 0
    stored_nbytes: int = 0
    added_nbytes: int = 0

    def __repr__(self) -> str:
        facts = [f"{self.id!r}, run={self.run!r}, step={self.step}"]
        facts += [f"epoch={self.epoch}"] if self.epoch is not None else []
        facts += [f"metrics={dict(self.metrics)}"] if self.metrics else []
        facts += [f"tags={list(self.tags)}"] if self.tags else []
        facts += [f"{self.tensors} tensors, {self.nbytes:,} bytes, {self.added_nbytes:,} added"]
        return f"Checkpoint({', '.join(facts)})"

    def _repr_html_(self) -> str:
        return html_of([self])


class CheckpointList(list[Checkpoint]):
    """A list of checkpoints that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        more = len(self) - _MOST_SHOWN
        rest = f"<p>… and {more:,} more</p>" if more > 0 else ""
        return html_of(self[:_MOST_SHOWN]) + rest


def html_of(found: Sequence[Checkpoint]) -> str:
    """Return checkpoints as an HTML table."""
    head = [
        "checkpoint",
        "run",
        "step",
        "epoch",
        "saved (UTC)",
        "metrics",
        "tags",
        "tensors",
        "raw bytes",
        "added bytes",
    ]
    rows = [
        (
            each.id,
            each.run,
            "" if each.step is None else str(each.step),
            "" if each.epoch is None else f"{each.epoch:g}",
            f"{each.created_at:%Y-%m-%d %H:%M:%S}",
            ", ".join(f"{name} {value:.4g}" for name, value in each.metrics.items()),
            ", ".join(each.tags),
            f"{each.tensors:,}",
            f"{each.nbytes:,}",
            f"{each.added_nbytes:,}",
        )
        for each in found
    ]
    return html_table(head, rows)


def checkpoint_id(number: int) -> str:
    """Return the id of a checkpoint's number."""
    return generated_id(number, CHECKPOINT_NONCE)


def pack_facts(metrics: Mapping[str, int | float], metadata: Mapping[str, Any], document: bytes | None = None) -> bytes:
    """Return metrics and metadata in their stored form, with the checksum of a document that is beside them."""
    checksum = {} if document is None else {checkpoint_documents.CHECKSUM: checkpoint_documents.checksum(document)}
    return documents.pack({"metrics": dict(metrics), "metadata": dict(metadata), **checksum}) or b""


def metrics_of(row: CheckpointRow) -> Mapping[str, int | float]:
    """Return the metrics of a checkpoint of the catalog, as they were given."""
    return facts_of(row.facts)[0]


def facts_of(packed: bytes) -> tuple[Mapping[str, int | float], Mapping[str, Any]]:
    """Return the metrics and the metadata that `pack_facts` was given.

    Raises:
        IntegrityError: The bytes are not what it gives.
    """
    facts = documents.unpack(packed)
    metrics, metadata = facts.get("metrics", {}), facts.get("metadata", {})
    numbers = isinstance(metrics, dict) and all(map(_is_number, metrics.values()))
    if not numbers or not isinstance(metadata, dict):
        raise IntegrityError("the stored metrics and metadata of a checkpoint are not what any is saved with")
    return metrics, metadata


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= MOST_METRIC)


def from_row(row: CheckpointRow) -> Checkpoint:
    """Return a checkpoint of the catalog."""
    metrics, metadata = facts_of(row.facts)
    epoch = row.epoch
    return Checkpoint(
        id=checkpoint_id(row.number),
        run=row.run,
        step=row.step,
        epoch=int(epoch) if epoch is not None and epoch.is_integer() else epoch,
        created_at=row.created_at.replace(tzinfo=dt.UTC),
        parent_id=None if row.parent is None else checkpoint_id(row.parent),
        metrics=metrics,
        metadata=metadata,
        tags=tuple(row.tags),
        tensors=row.tensors,
        nbytes=row.nbytes,
        stored_nbytes=row.stored_nbytes,
        added_nbytes=row.added_nbytes,
    )
