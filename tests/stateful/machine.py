"""What is compared with a plain dict after every step: transactions, and looking after; rules come on top."""

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
    CacheConfig,
    ConflictError,
    InvalidQueryError,
    Record,
    TensorStorage,
)

from .model import Condition, Dataset, Model, Row, bits_of
from .references import assert_every_reference_is_counted, assert_nothing_is_left

Result = TypeVar("Result")
NUMBERS = st.integers(0, 15)
CACHES = (CacheConfig(), CacheConfig(decoded_bytes=60_000, encoded_bytes=20_000, promote_after=1))
"""Of which the second has room for a few records only."""
MANY = 50
"""Records from which on a dataset is thinned out, which keeps the comparing short."""


def able(machine: ComparedWithADict) -> bool:
    """Tell whether no transaction is open that can only be undone."""
    return not machine.doomed


def idle(machine: ComparedWithADict) -> bool:
    """Tell whether no transaction is open."""
    return not machine.outer


def idle_on_disk(machine: ComparedWithADict) -> bool:
    """Tell whether the folder can be opened by others."""
    return idle(machine) and machine.on_disk


def has_datasets(machine: ComparedWithADict) -> bool:
    """Tell whether records can be inserted."""
    return able(machine) and bool(machine.model.datasets)


def has_rows(machine: ComparedWithADict) -> bool:
    """Tell whether there are records to be asked for."""
    return able(machine) and any(each.rows for each in machine.model.datasets.values())


class OwnError(Exception):
    """What leaves a transaction that is to be undone."""


class ComparedWithADict(RuleBasedStateMachine):
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

    @initialize()
    def make_a_dataset(self) -> None:
        self.db.create_dataset("d")
        self.model.datasets["d"] = Dataset()

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

    @precondition(idle)
    @rule()
    def repair(self) -> None:
        assert self.db.maintenance.repair().ok

    @precondition(idle_on_disk)
    @rule(look_first=st.booleans(), cache=st.sampled_from([None, *CACHES]))
    def reopen(self, look_first: bool, cache: CacheConfig | None) -> None:
        self.db.close()
        if look_first:
            with TensorStorage(self.folder, read_only=True) as reading:
                self._same_as_the_model(reading)
        self.db = TensorStorage(self.folder, compression_preset=self.preset, cache=cache)

    @precondition(idle_on_disk)
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
