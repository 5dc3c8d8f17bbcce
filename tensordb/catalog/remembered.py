"""What may be remembered of the catalog while its connection stays open: nobody else can write then.

`Catalog` begins anew whenever the connection was reopened or a transaction rolled back, and has `begin_write` called
before anything changes. Touched only by the thread that holds the connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import duckdb

from tensordb.catalog import datasets, documents, high_water, inline, objects, places, records, specs
from tensordb.catalog.bloom import Absent
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.inline import InlinePayloads
from tensordb.catalog.mirror import FEWEST, MAX_OBJECTS, MAX_RECORDS, WORTH_IT, Mirror
from tensordb.catalog.objects import ObjectRow
from tensordb.catalog.places import MAX_PLACES, Places
from tensordb.catalog.records import RecordRow, Selection
from tensordb.errors import DatasetNotFoundError, InvalidInputError
from tensordb.model import TensorSpec


class Remembered:
    """Answers about the catalog, asked of DuckDB once."""

    def __init__(self) -> None:
        self._datasets: dict[str, DatasetRow] = {}
        self._last_seq: dict[int, int | None] = {}
        self._inline: dict[int, InlinePayloads] = {}
        self._spec_ids: dict[TensorSpec, int] = {}
        self._lookups: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._mirrors: dict[int, Mirror | None] = {}
        self._objects: dict[bytes, ObjectRow] = {}
        self._places: dict[int, Places] = {}
        self._object_ids = Absent("SELECT object_id FROM tensordb.objects")
        self._weight_ids = Absent("SELECT content_id FROM tensordb.weights")

    def begin_write(self) -> None:
        """Drop what the next statement may make wrong."""
        if self._lookups:
            self._lookups, self._counts, self._mirrors, self._objects = {}, {}, {}, {}
        self._places.clear()
        self._weight_ids.forget()

    def dataset(self, con: duckdb.DuckDBPyConnection, name: str) -> DatasetRow:
        """Return the dataset of this name.

        Raises:
            DatasetNotFoundError: There is none; the message lists some that exist.
        """
        if not isinstance(name, str):
            raise InvalidInputError(f"a dataset name is text, not {type(name).__name__}: {name!r}")
        row = self._datasets.get(name)
        if row is None:
            row = datasets.fetch(con, documents.check_text(name, "the dataset name"))
            if row is None:
                names = ", ".join(repr(each.name) for each in datasets.fetch_all(con)[:10]) or "none"
                raise DatasetNotFoundError(
                    f"no dataset is named {name!r} (there are: {names}); create_dataset makes one"
                )
            self._datasets[name] = row
        return row

    def remember_dataset(self, row: DatasetRow) -> None:
        """Take over a dataset's changed state."""
        self._datasets[row.name] = row

    def records(
        self, con: duckdb.DuckDBPyConnection, row: DatasetRow, record_ids: Sequence[str]
    ) -> dict[str, RecordRow]:
        """Return the records of these ids, inside a block that reads; ids that no record has are left out."""
        mirror = self._mirror(con, row)
        found = mirror.find(record_ids) if mirror is not None else {}
        rest = [each for each in record_ids if each not in found]
        if len(rest) == 1:
            single = records.by_id(con, row, rest[0])
            found.update({rest[0]: single} if single else {})
        elif rest:
            found.update(records.by_ids(con, row, rest))
        return found

    def by_sequence(self, con: duckdb.DuckDBPyConnection, row: DatasetRow, numbers: Sequence[int]) -> list[RecordRow]:
        """Return the records of these sequence numbers, in no particular order, inside a block that reads."""
        mirror = self._mirror(con, row)
        return records.by_sequence(con, row, numbers) if mirror is None else mirror.by_sequence(numbers)

    def objects(self, con: duckdb.DuckDBPyConnection, object_ids: Sequence[bytes]) -> dict[bytes, ObjectRow]:
        """Return the objects of these ids, inside a block that reads; ids that no object has are left out."""
        found = {each: known for each in object_ids if (known := self._objects.get(each)) is not None}
        rest = [each for each in object_ids if each not in found]
        return {**found, **objects.fetch(con, rest)} if rest else found

    def places(self, con: duckdb.DuckDBPyConnection, row: DatasetRow) -> Places:
        """Return where the records of a dataset are, inside a block that reads; the same object until a write."""
        if row.dataset_id not in self._places:
            found = places.fetch(con, row)
            if len(found.numbers) + sum(len(each.numbers) for each in self._places.values()) > MAX_PLACES:
                self._places.clear()
            self._places[row.dataset_id] = found
        return self._places[row.dataset_id]

    def lacks_object(self, con: duckdb.DuckDBPyConnection, object_id: bytes) -> bool:
        """Tell whether an object is surely not stored, inside a block that reads; False says nothing."""
        return self._object_ids.surely(con, object_id)

    def lacks_weight(self, con: duckdb.DuckDBPyConnection, content_id: bytes) -> bool:
        """Tell whether surely no weight or delta has a content id, inside a block that reads; False says nothing."""
        return self._weight_ids.surely(con, content_id)

    def remember_objects(self, object_ids: Iterable[bytes]) -> None:
        """Note objects that are being inserted."""
        self._object_ids.add(object_ids)

    def last_seq(self, con: duckdb.DuckDBPyConnection, row: DatasetRow) -> int | None:
        """Return the largest sequence number that a dataset ever had."""
        if row.dataset_id not in self._last_seq:
            there = records.last_sequence(con, row)
            self._last_seq[row.dataset_id] = high_water.above(con, high_water.of_dataset(row.dataset_id), there)
        return self._last_seq[row.dataset_id]

    def keep_sequence(self, con: duckdb.DuckDBPyConnection, row: DatasetRow, numbers: Sequence[int]) -> None:
        """See that the next number is larger than those that are about to be deleted, in every process."""
        last = self.last_seq(con, row)
        if last is not None and last in numbers:
            high_water.note(con, high_water.of_dataset(row.dataset_id), last)

    def advance(self, row: DatasetRow, seq: int) -> None:
        """Remember the largest sequence number after an insert."""
        self._last_seq[row.dataset_id] = seq

    def inline(self, con: duckdb.DuckDBPyConnection, row: DatasetRow) -> InlinePayloads:
        """Return what there is of a dataset's small payloads, to be kept up to date by who adds to them."""
        if row.dataset_id not in self._inline:
            self._inline[row.dataset_id] = inline.payloads_of(con, row)
        return self._inline[row.dataset_id]

    def forget_inline(self) -> None:
        """Have small payloads looked up again after records were deleted or payloads moved."""
        self._inline.clear()

    def spec_id(self, con: duckdb.DuckDBPyConnection, spec: TensorSpec, nbytes: int) -> int:
        """Return the number of a spec, adding it when it is new (inside a write)."""
        number = self._spec_ids.get(spec)
        if number is None:
            number = specs.find(con, spec)
            if number is None:
                number = specs.add(con, spec, nbytes)
            self._spec_ids[spec] = number
        return number

    def _mirror(self, con: duckdb.DuckDBPyConnection, row: DatasetRow) -> Mirror | None:
        key = row.dataset_id
        if key not in self._mirrors:
            self._lookups[key] = self._lookups.get(key, 0) + 1
            if self._lookups[key] < FEWEST:
                return None
            if key not in self._counts:
                self._counts[key] = records.count(con, row, Selection())
            count = self._counts[key]
            if self._lookups[key] * WORTH_IT < count <= MAX_RECORDS:
                return None
            self._mirrors[key] = Mirror.of(con, row) if count <= MAX_RECORDS else None
            if self._mirrors[key] is not None and len(self._objects) < MAX_OBJECTS:
                self._objects.update(objects.named_by(con, row.table, MAX_OBJECTS))
        return self._mirrors[key]
