"""What storing takes and asking gives back: weights as values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensordb.catalog import documents
from tensordb.catalog.weights import LabelRow, StorageRow, WeightRow
from tensordb.model import Encoding, MeasuredError


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A tensor with what is known of it.

    Attributes:
        tensor: Any dense tensor or parameter.
        name: Such as ``"layer.0.weight"``; the name that a config's rules go by.
        layer_type: Such as ``"Linear"``.
        model_name: Such as ``"resnet50"``.
        metadata: JSON-like values by name.
    """

    tensor: torch.Tensor
    name: str | None = None
    layer_type: str | None = None
    model_name: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Label:
    """A name under which a weight was stored."""

    name: str | None
    layer_type: str | None
    model_name: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class WeightInfo:
    """A stored weight without its tensor.

    Attributes:
        hash: Content id in hexadecimal: BLAKE3-256 of what is stored.
        shape: Of the tensor; likewise `dtype`, by torch's name such as ``"float32"``.
        nbytes: Raw bytes of the tensor.
        stored_nbytes: Bytes of the object that holds it, also when checkpoints or others share it.
        encoding: What was applied to it.
        error: What was lost: by a quantizer, or as `max_error` allowed; of several tensors that became the same delta,
            the most.
        created_at: When it was stored first, in UTC.
        labels: The names it was stored under, oldest first; none when it never was given one.
        base_hash: For a delta the hash of the base it was stored with, else None.
        max_error: For a delta what it was allowed to differ by; None is bit for bit.
        deltas: How many deltas its chain has up to it, 0 when it is stored by itself; any is read with one base.
    """

    hash: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stored_nbytes: int
    encoding: Encoding
    error: MeasuredError
    created_at: dt.datetime
    labels: tuple[Label, ...] = ()
    base_hash: str | None = None
    max_error: float | None = None
    deltas: int = 0

    @property
    def name(self) -> str | None:
        """The first name that it was stored under."""
        return self.labels[0].name if self.labels else None

    @property
    def layer_type(self) -> str | None:
        """As given with the first name."""
        return self.labels[0].layer_type if self.labels else None

    @property
    def model_name(self) -> str | None:
        """As given with the first name."""
        return self.labels[0].model_name if self.labels else None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """As given with the first name."""
        return self.labels[0].metadata if self.labels else {}

    @property
    def ratio(self) -> float:
        """Raw over stored bytes; 1.0 for an empty tensor."""
        return _ratio(self.nbytes, self.stored_nbytes)

    def __repr__(self) -> str:
        facts = [f"{self.hash[:12]}…", f"{self.dtype}{list(self.shape)}"]
        facts += [f"name={self.name!r}"] if self.name is not None else []
        facts += [f"model_name={self.model_name!r}"] if self.model_name is not None else []
        facts += [f"base={self.base_hash[:12]}…"] if self.base_hash is not None else []
        return f"WeightInfo({', '.join(facts)}, {self.nbytes:,} bytes, {self.stored_nbytes:,} stored)"


@dataclass(frozen=True)
class WeightStorageInfo:
    """Sums over all weights and deltas.

    Attributes:
        weights: Weights stored by themselves.
        deltas: Deltas.
        labels: Names of both.
        objects: Objects that hold them, bases included; equal contents share one.
        nbytes: Raw bytes of all weights and deltas.
        stored_nbytes: Bytes of the objects, each once.
        changes: Objects that are stored as differences from others.
        shared: Objects that checkpoints or datasets name too.
    """

    weights: int
    deltas: int
    labels: int
    objects: int
    nbytes: int
    stored_nbytes: int
    changes: int
    shared: int

    @property
    def ratio(self) -> float:
        """Raw over stored bytes; 1.0 when there is nothing."""
        return _ratio(self.nbytes, self.stored_nbytes)


def info_of(row: WeightRow, labels: Sequence[LabelRow]) -> WeightInfo:
    """Return a weight of the catalog."""
    error = MeasuredError(row.relative_l2, row.max_abs)
    return WeightInfo(
        hash=row.content_id.hex(),
        shape=row.shape,
        dtype=row.dtype,
        nbytes=row.nbytes,
        stored_nbytes=row.stored_nbytes,
        encoding=Encoding(row.compression, row.quantization, row.nbytes, row.stored_nbytes, error=error),
        error=error,
        created_at=row.created_at.replace(tzinfo=dt.UTC),
        labels=tuple(
            Label(each.name, each.layer_type, each.model_name, documents.unpack(each.facts)) for each in labels
        ),
        base_hash=None if row.base_id is None else row.base_id.hex(),
        max_error=row.max_error,
        deltas=row.deltas,
    )


def storage_info_of(row: StorageRow) -> WeightStorageInfo:
    """Return the catalog's sums."""
    return WeightStorageInfo(
        weights=row.weights,
        deltas=row.deltas,
        labels=row.labels,
        objects=row.objects,
        nbytes=row.nbytes,
        stored_nbytes=row.stored_nbytes,
        changes=row.changes,
        shared=row.shared,
    )


def _ratio(nbytes: int, stored_nbytes: int) -> float:
    return nbytes / stored_nbytes if nbytes and stored_nbytes else 1.0
