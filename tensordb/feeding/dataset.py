"""A snapshot of a dataset as a map-style `torch.utils.data.Dataset`; `stream` gives the iterable one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from tensordb.catalog import schema
from tensordb.datasets import lookup, queries
from tensordb.datasets.lookup import Params
from tensordb.datasets.showing import Label, dataset_html, grid
from tensordb.engine import Database
from tensordb.errors import ConflictError, InvalidInputError
from tensordb.exchange.exporting import Exporting
from tensordb.feeding.collating import Mixed
from tensordb.feeding.index import TENSOR, take_index
from tensordb.feeding.items import Items, names_of
from tensordb.feeding.plan import Plan
from tensordb.feeding.schedule import Even, Shuffle
from tensordb.feeding.source import Source
from tensordb.feeding.stream import TensorStream

BUFFER_NBYTES = 32 << 20


class TensorDataset(Exporting, Dataset[Any]):
    """The records of a dataset as they were when this was made, for `torch.utils.data.DataLoader`.

    An item is the tensor, or with several columns a tuple of them. Reading needs no catalog: in workers no database is
    opened, and what is written, deleted or compacted meanwhile, in any process, does not disturb it; the segments that
    hold the records are kept on the disk until this object and its streams are gone. It goes on when the storage is
    closed.

    Made by `TensorStorage.dataset`. It can be given out, too (`to_arrow`, `to_pandas`, `to_numpy`, `to_parquet`,
    `export`, ...), and looked at (`grid`): both ask the storage, which has to be open, for the records of now.

    Attributes:
        name: The dataset.
        where: Condition that the records met, None for all.
        params: Values for the condition.
        order_by: SQL expressions of their order, None for that of insertion.
        columns: What an item has.
        transform: What an item goes through.
    """

    def __init__(
        self,
        db: Database,
        name: str,
        where: str | None = None,
        *,
        params: Params = None,
        columns: str | Sequence[str] = TENSOR,
        transform: Callable[[Any], Any] | None = None,
        order_by: str | None = None,
    ) -> None:
        names = names_of(columns)
        if transform is not None and not callable(transform):
            raise InvalidInputError(f"transform is {transform!r}; give a function of an item, or None")
        self.name, self.where, self.params, self.order_by = name, where, params, order_by
        self.columns = columns if isinstance(columns, str) else names
        self.transform = transform
        selection = queries.selection(where, params, order_by)
        with db.catalog.read() as con:
            index = take_index(con, db.catalog.known.dataset(con, name), selection, names)
            database_id = schema.database_id(con)
            segments = index.objects.segments
            self._pin = db.payloads.pin(np.unique(segments[segments > 0]).tolist())
        source = Source(index, db.folder, database_id, db.payloads if db.folder is None else None)
        self._items = Items(index, source, self.columns, transform)
        self._db: Database | None = db

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        """Return an item; negative numbers count from the end.

        Raises:
            IndexError: There is no such item.
            IntegrityError: The record's stored bytes are damaged.
        """
        return self._items.one(self._position(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return items, decoded together; a `DataLoader` asks for its batches in this way."""
        return self._items.many(np.array([self._position(index) for index in indices], np.int64))

    def stream(
        self,
        *,
        shuffle: Shuffle = False,
        seed: int | None = None,
        buffer: int = BUFFER_NBYTES,
        batch_size: int | None = None,
        drop_last: bool = False,
        mixed: Mixed = "error",
        even: Even = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> TensorStream:
        """Return an `IterableDataset` over the records: the fastest way to feed a training loop.

        With `batch_size` it makes batches by itself, whole pages at a time: give it to a `DataLoader` with
        ``batch_size=None``. Ranks and workers share the records without overlap or loss.

        Args:
            shuffle: Put the pages into a random order, and shuffle the records of several pages (see `buffer`).
                ``"batches"``: each batch is a run of records as they are stored, and the batches come in random order;
                records that were inserted together stay together.
            seed: The order of an epoch follows from it and `TensorStream.set_epoch`. None: another order each time,
                drawn from torch's generator; with several ranks, which must draw the same, it has to be given.
            buffer: Raw bytes of the records that are shuffled together; about twice as many are held in memory, until
                the stream is gone.
            batch_size: Records in a batch; None for single items.
            drop_last: Leave out a last batch that is smaller.
            mixed: For batches whose tensors differ in shape: ``"error"``, ``"pad"``, ``"nested"`` or ``"list"``; see
                `tensordb.collate`.
            even: None: every record once; ranks may differ by a record. ``"drop"``: a rank may miss a record;
                ``"pad"``: some come twice; both so that all ranks have equally many, as collective calls need it.
            rank: This process among those that share the records; None to ask `torch.distributed` now, if it runs.
            world_size: How many processes there are.

        Raises:
            InvalidInputError: An argument cannot be used.
        """
        plan = Plan(
            self._items,
            self._pin,
            shuffle=shuffle,
            seed=seed,
            buffer=buffer,
            batch_size=batch_size,
            drop_last=drop_last,
            mixed=mixed,
            even=even,
            rank=rank,
            world_size=world_size,
        )
        return TensorStream(plan)

    def grid(self, n: int = 16, *, label: Label = None, columns: int | None = None) -> Any:
        """Draw the tensors of the first `n` records side by side; arguments and errors are those of `tensordb.grid`."""
        page = lookup.page(self._opened(), self.name, 0, lookup.check_count(n, "n"), self._selection())
        return grid(page.records, n, label=label, columns=columns)

    def __repr__(self) -> str:
        return f"TensorDataset({self.name!r}, {len(self):,} records)"

    def _repr_html_(self) -> str:
        return dataset_html(self._opened(), self.name, self._selection())

    def __getstate__(self) -> dict[str, Any]:
        # Who unpickles it relies on this object for the pin.
        return {**self.__dict__, "_db": None, "_pin": None}

    def _opened(self) -> Database:
        if self._db is None:
            raise ConflictError(f"{self.name!r} is a copy without a database, as workers have it; show the original")
        return self._db

    def _position(self, index: Any) -> int:
        try:
            position = operator.index(index)
        except TypeError:
            raise InvalidInputError(f"{index!r} is no position; give an int, or go through stream()") from None
        if not -len(self) <= position < len(self):
            raise IndexError(f"item {position} of a dataset of {len(self)} records")
        return position % len(self)
