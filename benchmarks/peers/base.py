"""What every competitor has to do, and under which terms.

Terms: `insert_many` and `insert` return once the data would survive a power cut; every tensor returned is owned (the
caller may write into it without the store noticing). Peers return the tensor alone, tensordb a record that brings its
metadata: a difference to the peers' advantage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

Metadata = dict[str, Any]


class Store(ABC):
    """A store of same-shaped float32 tensors with the metadata fields ``token``, ``split`` and ``score``.

    Constructing one opens what lies at `path`, or creates it.

    Attributes:
        name: Column title.
        package: Importable package that the store needs.
        import_statement: What its users import.
        durability: How an insert becomes durable.
        filters: Whether it can select by metadata without reading every record.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    import_statement: ClassVar[str]
    durability: ClassVar[str]
    filters: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def insert_many(self, tensors: Tensor | Iterable[Tensor], metadata: Sequence[Metadata]) -> list[str]:
        """Store a stacked tensor's rows, or the tensors of an iterable; their ids."""

    @abstractmethod
    def insert(self, tensor: Tensor, metadata: Metadata) -> str:
        """Store one tensor; its id."""

    def prepare_reads(self) -> None:
        """Do what the store's users do once after a bulk load, such as building the index of ids. Not timed."""
        return

    @abstractmethod
    def get(self, record_id: str) -> Tensor:
        """Return one tensor by its id."""

    @abstractmethod
    def get_many(self, record_ids: Sequence[str]) -> list[Tensor]:
        """Return tensors by their ids, in the order asked, in one call."""

    @abstractmethod
    def page(self, offset: int, limit: int) -> list[Tensor]:
        """Return `limit` tensors from `offset` on, in insertion order."""

    @abstractmethod
    def count_below(self, score: float) -> int:
        """Count the records whose metadata score is below `score`."""

    @abstractmethod
    def query_below(self, score: float) -> list[Tensor]:
        """Return the tensors whose metadata score is below `score`."""

    def payload_bytes(self) -> int | None:
        """Bytes of the stored tensors alone, None where they cannot be told from the rest."""
        return None

    def close(self) -> None:
        """Release the store."""
        return
