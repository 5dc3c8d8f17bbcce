"""Everything that the public API can do, in any order, against a plain dict."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensordb import (
    AlreadyExistsError,
    ConflictError,
    DatasetNotFoundError,
    InvalidQueryError,
    Record,
    TensorNotFoundError,
    TensorStorage,
)

from .model import Condition, Dataset, Model, Row, bits_of, condition, document
from .references import assert_every_reference_is_counted, assert_nothing_is_left
from .tensors import DTYPES, EXACT, PRESETS, SHAPES, assert_within, tensor_of

Result = TypeVar("Result")
NAMES = ("d", "e'\"ü", "main")
NUMBERS = st.integers(0, 15)
MANY = 50
"""Records from which on a dataset is thinned out, which keeps the comparing short."""


class OwnError(Exception):
    """What leaves a transaction that is to be undone."""


class DatasetsLikeADict(RuleBasedStateMachine):
    """`self.model` is what the database has to hold; `self.outer` what it goes back to, for each open transaction."""

    on_disk = True
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tensordb-model-")) if self.on_disk else None
        self.db = TensorStorage(self.folder)
        self.preset = "lossless"
        self.model = Model()
        self.outer: list[tuple[Any, Model]] = []
        self.doomed = False
        self.count = 0

    # What rules share.

    @contextlib.contextmanager
    def _expecting(self, *refusals: tuple[type[Exception], bool]) -> Iterator[None]:
        """Expect the first error of which the condition is true, else none."""
        kind = next((kind for kind, due in refusals if due), None)
        with pytest.raises(kind) if kind is not None else contextlib.nullcontext():
            yield

    def _pick(self, data: st.DataObject) -> tuple[str, Dataset, Row]:
        name = data.draw(st.sampled_from([name for name, each in self.model.datasets.items() if each.rows]))
        dataset = self.model.datasets[name]
        return name, dataset, dataset.rows[data.draw(st.sampled_from(list(dataset.rows)))]

    def _asked(self, dataset: Dataset, question: Condition, ask: Callable[[], Result]) -> Result | None:
        """Return what the database answers; None where it refused a field that it need not know."""
        known = dataset.knows(question.field)
        try:
            answer = ask()
        except InvalidQueryError:
            assert known is not True, question
            self.doomed = bool(self.outer)
            return None
        assert known is not False, question
        return answer

    def able(self) -> bool:
        return not self.doomed

    def idle(self) -> bool:
        return not self.outer

    def has_datasets(self) -> bool:
        return not self.doomed and bool(self.model.datasets)

    def has_rows(self) -> bool:
        return not self.doomed and any(each.rows for each in self.model.datasets.values())

    # Datasets and what is put into them.

    @initialize()
    def make_a_dataset(self) -> None:
        self.db.create_dataset("d")
        self.model.datasets["d"] = Dataset()

    @precondition(able)
    @rule(name=st.sampled_from(NAMES), preset=st.sampled_from([None, None, "lossless", "maximum"]))
    def create_dataset(self, name: str, preset: str | None) -> None:
        with self._expecting((AlreadyExistsError, name in self.model.datasets)):
            self.db.create_dataset(name, compression_preset=preset)
        self.model.datasets.setdefault(name, Dataset(preset))

    @precondition(able)
    @rule(name=st.sampled_from(NAMES[1:]))
    def delete_dataset(self, name: str) -> None:
        with self._expecting((DatasetNotFoundError, name not in self.model.datasets)):
            self.db.delete_dataset(name)
        self.model.datasets.pop(name, None)

    @rule(preset=st.sampled_from([*EXACT, *PRESETS]))
    def change_preset(self, preset: str) -> None:
        self.db.set_compression_preset(preset)
        self.preset = preset

    def _put(self, name: str, given: list[torch.Tensor], documents: list[Any], keys: list[str]) -> None:
        """Take over what was inserted, as it is read back: it has to be what was given, or as near as it says."""
        dataset = self.model.datasets[name]
        for tensor, metadata, record in zip(given, documents, self.db.get_many(name, keys), strict=True):
            assert record.metadata == (metadata or {})
            assert_within(record.tensor, tensor, record.encoding.quantization, record.encoding.error.max_abs)
            if (dataset.preset or self.preset) in EXACT:
                assert record.encoding.quantization == "none"
            dataset.put(Row(record.id, bits_of(record.tensor), metadata))

    @precondition(has_datasets)
    @rule(
        data=st.data(),
        n=NUMBERS,
        dtype=st.sampled_from(DTYPES),
        shape=st.sampled_from(SHAPES),
        metadata=NUMBERS,
        own=st.sampled_from([None, None, "own 1", "own ü", "own 3"]),
    )
    def insert(
        self, data: st.DataObject, n: int, dtype: torch.dtype, shape: tuple[int, ...], metadata: int, own: str | None
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.datasets)))
        tensor, taken = tensor_of(n, dtype, shape), own in self.model.datasets[name].rows
        with self._expecting((AlreadyExistsError, taken)):
            key = self.db.insert(name, tensor, document(metadata), record_id=own)
        if not taken:
            assert own is None or key == own
            self._put(name, [tensor], [document(metadata)], [key])

    @precondition(has_datasets)
    @rule(
        data=st.data(),
        first=NUMBERS,
        count=st.sampled_from([0, 1, 3, 12, 20]),
        dtype=st.sampled_from(DTYPES),
        shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
        metadata=NUMBERS,
        stacked=st.booleans(),
        own=st.sampled_from([None, None, None, "own"]),
    )
    def insert_many(
        self,
        data: st.DataObject,
        first: int,
        count: int,
        dtype: torch.dtype,
        shapes: list[tuple[int, ...]],
        metadata: int,
        stacked: bool,
        own: str | None,
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.datasets)))
        stacked = stacked and count > 0
        given = [tensor_of(first + i // 2, dtype, shapes[0 if stacked else i % len(shapes)]) for i in range(count)]
        documents = [document(metadata + i) for i in range(count)]
        keys = None if own is None else [f"own {i}" for i in range(count)]
        taken = keys is not None and any(key in self.model.datasets[name].rows for key in keys)
        with self._expecting((AlreadyExistsError, taken)):
            source = torch.stack(given) if stacked else given
            made = self.db.insert_many(name, source, documents, record_ids=keys)
        if not taken:
            assert keys is None or keys == made
            self._put(name, given, documents, made)

    @precondition(has_rows)
    @rule(data=st.data(), metadata=NUMBERS, merge=st.booleans())
    def update(self, data: st.DataObject, metadata: int, merge: bool) -> None:
        name, dataset, row = self._pick(data)
        given = document(metadata)
        merge = merge and given is not None
        self.db.update_tensor_metadata(name, row.id, given, merge=merge)
        dataset.put(Row(row.id, row.bits, {**row.known, **(given or {})} if merge else given))

    @precondition(has_rows)
    @rule(data=st.data())
    def delete_tensor(self, data: st.DataObject) -> None:
        name, dataset, row = self._pick(data)
        self.db.delete_tensor(name, row.id)
        del dataset.rows[row.id]
        for again in (self.db.delete_tensor, self.db.get_tensor_by_id):
            with pytest.raises(TensorNotFoundError):
                again(name, row.id)

    @precondition(has_rows)
    @rule(data=st.data(), kind=NUMBERS, n=NUMBERS)
    def delete_where(self, data: st.DataObject, kind: int, n: int) -> None:
        name, dataset, _ = self._pick(data)
        asked = condition(kind, n)
        gone = [row.id for row in dataset.rows.values() if asked.holds(row)]
        found = self._asked(dataset, asked, lambda: self.db.delete_where(name, asked.sql, params=asked.params))
        if found is not None:
            assert found == len(gone)
            for key in gone:
                del dataset.rows[key]

    # Questions.

    @precondition(has_rows)
    @rule(data=st.data(), kind=NUMBERS, n=NUMBERS, down=st.booleans(), limit=st.sampled_from([None, 0, 1, 5]))
    def query(self, data: st.DataObject, kind: int, n: int, down: bool, limit: int | None) -> None:
        name, dataset, _ = self._pick(data)
        asked = condition(kind, n)
        rows = sorted((row for row in dataset.rows.values() if asked.holds(row)), key=lambda row: row.id, reverse=down)
        order = f"record_id {'DESC' if down else 'ASC'}"
        found = self._asked(
            dataset,
            asked,
            lambda: self.db.query(name, asked.sql, params=asked.params, order_by=order, limit=limit),
        )
        if found is None:
            return
        self._same(found, rows[:limit])
        assert self.db.count(name, asked.sql, params=asked.params) == len(rows)
        self._same(list(self.db.scan(name, asked.sql, params=asked.params, order_by=order, limit=limit)), rows[:limit])
        offset, pages = 0, []
        while offset is not None:
            page = self.db.get_records_paginated(name, offset, 7, where=asked.sql, params=asked.params, order_by=order)
            assert page.total == len(rows)
            pages += page.records
            offset = page.next
        self._same(pages, rows)

    @precondition(has_rows)
    @rule(data=st.data())
    def query_by_metadata_order(self, data: st.DataObject) -> None:
        name, dataset, _ = self._pick(data)
        if dataset.knows("i") is not True:
            return
        rows = sorted(dataset.rows.values(), key=lambda row: row.id)
        rows.sort(key=lambda row: (row.field("i") is None, -(row.field("i") or 0)))
        self._same(self.db.query(name, order_by="metadata.i DESC NULLS LAST, record_id"), rows)

    @precondition(has_rows)
    @rule(data=st.data(), n=NUMBERS)
    def query_by_function(self, data: st.DataObject, n: int) -> None:
        name, dataset, _ = self._pick(data)
        rows = [row for row in dataset.rows.values() if row.field("i") == n or len(row.bits[1]) == 1]
        found = self.db.query(name, lambda tensor, metadata: metadata.get("i") == n or tensor.ndim == 1)
        self._same(found, rows)

    @precondition(has_rows)
    @rule(data=st.data(), size=st.sampled_from([0, 1, 4, 100]), seed=st.sampled_from([None, 1, 2]))
    def sample(self, data: st.DataObject, size: int, seed: int | None) -> None:
        name, dataset, _ = self._pick(data)
        found = self.db.sample_dataset(name, size, seed=seed)
        assert len({record.id for record in found}) == len(found) == min(size, len(dataset.rows))
        self._same(found, [dataset.rows[record.id] for record in found])
        if seed is not None:
            assert [record.id for record in self.db.sample_dataset(name, size, seed=seed)] == [r.id for r in found]

    @precondition(has_rows)
    @rule(data=st.data())
    def get_in_any_way(self, data: st.DataObject) -> None:
        name, dataset, row = self._pick(data)
        self._same([self.db.get_tensor_by_id(name, row.id)], [row])
        rows = [*list(dataset.rows.values())[::-2], row]
        self._same(self.db.get_many(name, [each.id for each in rows]), rows)
        if row.bits[1] and row.bits[1][0]:
            whole = self.db.get_tensor_by_id(name, row.id).tensor
            for index in (0, slice(1, None, 2), -1):
                part = self.db.get_tensor_by_id(name, row.id, index=index).tensor
                assert bits_of(part) == bits_of(whole[index])

    @precondition(able)
    @rule()
    def ask_for_what_is_not_there(self) -> None:
        with pytest.raises(DatasetNotFoundError):
            self.db.count("nowhere")
        for name in self.model.datasets:
            with pytest.raises(TensorNotFoundError):
                self.db.update_tensor_metadata(name, "nobody", {"i": 1})

    # Transactions.

    @precondition(lambda self: not self.doomed and len(self.outer) < 3)
    @rule()
    def begin(self) -> None:
        block = self.db.transaction()
        block.__enter__()
        self.outer.append((block, self.model.copy()))

    @precondition(lambda self: self.outer)
    @rule()
    def commit(self) -> None:
        block, before = self.outer.pop()
        with self._expecting((ConflictError, self.doomed and not self.outer)):
            block.__exit__(None, None, None)
        self._undone(before, self.doomed)

    @precondition(lambda self: self.outer)
    @rule()
    def roll_back(self) -> None:
        block, before = self.outer.pop()
        error = OwnError()
        assert not block.__exit__(OwnError, error, None)
        if self.outer and not self.doomed:
            self.doomed = self._refuses()
            assert self.doomed or self.model == before, "an inner block was undone, and the outer one goes on"
        self._undone(before, True)

    def _undone(self, before: Model, undone: bool) -> None:
        if not self.outer and undone:
            self.model, self.doomed = before, False

    def _refuses(self) -> bool:
        try:
            self.db.list_datasets()
        except ConflictError:
            return True
        return False

    @precondition(lambda self: self.outer and not self.doomed)
    @rule(bad=st.sampled_from(["nonsense(", "metadata.nothing = 1", "no_such_function(record_id)"]))
    def ask_badly_inside(self, bad: str) -> None:
        with pytest.raises(InvalidQueryError):
            self.db.query("d", bad)
        self.doomed = True

    @precondition(lambda self: self.outer)
    @rule()
    def try_what_no_transaction_takes(self) -> None:
        for verb in (self.db.maintenance.gc, self.db.maintenance.compact):
            with pytest.raises(ConflictError):
                verb()

    # Looking after.

    @precondition(idle)
    @rule(min_dead=st.sampled_from([0.0, 0.5]))
    def compact(self, min_dead: float) -> None:
        self.db.maintenance.compact(min_dead=min_dead)

    @precondition(idle)
    @rule()
    def gc(self) -> None:
        self.db.maintenance.gc()

    @precondition(lambda self: self.idle() and self.on_disk)
    @rule(look_first=st.booleans())
    def reopen(self, look_first: bool) -> None:
        self.db.close()
        if look_first:
            with TensorStorage(self.folder, read_only=True) as reading:
                self._same_as_the_model(reading)
        self.db = TensorStorage(self.folder, compression_preset=self.preset)

    @precondition(lambda self: self.idle() and self.on_disk)
    @rule()
    def let_another_one_write(self) -> None:
        """Have what is remembered between operations grow old: a second storage deletes and inserts."""
        with TensorStorage(self.folder) as other:
            for name, dataset in self.model.datasets.items():
                if dataset.rows:
                    gone = next(iter(dataset.rows))
                    other.delete_tensor(name, gone)
                    del dataset.rows[gone]
                key = other.insert(name, torch.full((5,), 7.0), {"i": 7})
                dataset.put(Row(key, bits_of(other.get_tensor_by_id(name, key).tensor), {"i": 7}))

    # What holds after every step.

    @invariant()
    def the_database_is_what_the_model_is(self) -> None:
        type(self).steps += 1
        if self.doomed:
            assert self._refuses()
            return
        self._same_as_the_model(self.db)
        assert_every_reference_is_counted(self.db)

    @invariant()
    def no_dataset_grows_for_ever(self) -> None:
        if self.doomed:
            return
        for name, dataset in self.model.datasets.items():
            if len(dataset.rows) > MANY:
                gone = list(dataset.rows)[::2] + list(dataset.rows)[1::4]
                assert self.db.delete_where(name, "list_contains(?, record_id)", params=[gone]) == len(gone)
                for key in gone:
                    del dataset.rows[key]

    def _same_as_the_model(self, db: TensorStorage) -> None:
        assert sorted(db.list_datasets()) == sorted(self.model.datasets)
        for name, dataset in self.model.datasets.items():
            assert db.count(name) == len(dataset.rows)
            self._same(db.get_dataset_with_metadata(name), list(dataset.rows.values()))

    def _same(self, found: list[Record], rows: list[Row]) -> None:
        assert [record.id for record in found] == [row.id for row in rows]
        for record, row in zip(found, rows, strict=True):
            assert bits_of(record.tensor) == row.bits, record
            assert repr(record.metadata) == repr(row.known)

    def teardown(self) -> None:
        try:
            while self.outer:
                self.roll_back()
            self._same_as_the_model(self.db)
            assert self.db.verify().ok
            self._delete_everything()
            assert_nothing_is_left(self.db)
        finally:
            self.db.close()
            if self.folder is not None:
                shutil.rmtree(self.folder)

    def _delete_everything(self) -> None:
        for name in list(self.model.datasets):
            self.db.delete_dataset(name)
