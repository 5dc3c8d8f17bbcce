"""Call after call of every operation fails: a typed error, all of it or nothing of it, and the storage goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.errors import TensorDBError

from .failing import KINDS, MOST_KINDS, Plan, failing
from .programs import made, stray_segments
from .scenarios import LONG, SCENARIOS, Act, Contents, build, contents

_ENDING = 64
"""Bytes behind the payloads of a segment that was closed in good order."""


@dataclass(frozen=True)
class Base:
    """A sound database, and what it holds; nobody changes it."""

    folder: Path
    contents: Contents
    rows: list[str]
    segments: dict[str, bytes]


def made_base(folder: Path) -> Base:
    """Make what every scenario begins with."""
    build(folder)
    with TensorStorage(folder) as db:
        assert db.verify().ok
        return Base(folder, contents(db), rows(db), segments(folder))


def rows(db: TensorStorage) -> list[str]:
    """Return every row of every table of the catalog."""
    with db._db.catalog.read() as con:
        asked = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'tensordb' ORDER BY 1"
        tables = [name for (name,) in con.execute(asked).fetchall()]
        return sorted(f"{name}: {row}" for name in tables for row in con.execute(f'FROM tensordb."{name}"').fetchall())


def segments(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every segment file."""
    return {path.name: path.read_bytes() for path in (folder / "segments").iterdir()}


class Sweep:
    """One scenario, with what the database holds before and after it."""

    def __init__(self, base: Base, work: Path, act: Act) -> None:
        self._base, self._work, self._act = base, work, act
        with TensorStorage(self._fresh()) as db, failing(Plan()) as plan:
            act(db)
        with TensorStorage(work) as db:
            self.after = contents(db)
        self.calls = plan.made

    def case(self, at: int, kind: int, *, raises: bool | None = None) -> str | None:
        """Fail one call; return what was done to it, None when it was not reached."""
        db = TensorStorage(self._fresh())
        try:
            error = None
            with failing(Plan(at, kind)) as plan:
                try:
                    self._act(db)
                except TensorDBError as raised:
                    error = raised
            assert raises is None or raises == (error is not None), error
            self._check(db, plan, error)
        except Exception as wrong:
            raise AssertionError(f"{plan.failed}: {type(wrong).__name__}: {wrong}") from wrong
        finally:
            db.close()
        return plan.failed

    def _check(self, db: TensorStorage, plan: Plan, error: TensorDBError | None) -> None:
        closed = self._act is SCENARIOS["close"]
        db = TensorStorage(self._work) if closed else db
        state = contents(db)
        assert state == self.after or (error is not None and state == self._base.contents), self._difference(state)
        as_before = rows(db) == self._base.rows
        db.create_dataset("later")
        db.insert("later", made(1, 8_000), record_id="one")
        held = rows(db)
        db.close()
        with TensorStorage(self._work) as again:
            assert rows(again) == held, "reopening it shows something else"
            assert again.get_tensor_by_id("later", "one").tensor.equal(made(1, 8_000))
            again.insert("later", made(2, 8_000), record_id="two")
            again.maintenance.gc()
            assert stray_segments(again) == []
            # Each row and each byte as in the base, which is sound: only what a commit left remains to be asked for.

            as_before = as_before and self._has_bytes_of_base()
            assert (as_before and not self._committing(plan)) or again.verify().ok

    def _has_bytes_of_base(self) -> bool:
        """Whether segments begin with the base's; what ends them, which is written anew behind more, aside."""
        found = segments(self._work)
        return all(found.get(name, b"").startswith(data[:-_ENDING]) for name, data in self._base.segments.items())

    def _committing(self, plan: Plan) -> bool:
        return plan.failed is not None and "commit" in plan.made[plan.at - 1 :]

    def _fresh(self) -> Path:
        shutil.rmtree(self._work, ignore_errors=True)
        return Path(shutil.copytree(self._base.folder, self._work))

    def _difference(self, state: Contents) -> str:
        names = {key for key in {*self._base.contents, *self.after, *state} if state.get(key) != self.after.get(key)}
        return f"neither before nor after; other than after: {sorted(names)[:10]}"


def chosen(calls: list[str], every: bool) -> Iterator[tuple[int, int]]:
    """Yield calls and kinds: all of them, or one a call, each kind in its turn."""
    turns: dict[str, int] = {}
    for number, name in enumerate(calls, 1):
        kinds = len(KINDS[name]) + 1
        turn = turns[name] = turns.get(name, -1) + 1
        yield from ((number, kind) for kind in (range(kinds) if every else [(number + turn) % kinds]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return made_base(tmp_path_factory.mktemp("nth") / "db")


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in LONG])
def test_when_any_call_fails_it_is_all_there_or_not_at_all_and_work_goes_on(
    base: Base, tmp_path: Path, name: str
) -> None:
    sweep = Sweep(base, tmp_path / "db", SCENARIOS[name])
    failed = [sweep.case(at, kind) for at, kind in chosen(sweep.calls, every=False)]
    assert any(failed) or not sweep.calls
    assert max(map(len, KINDS.values())) + 1 == MOST_KINDS


@pytest.mark.parametrize("kind", KINDS["commit"])
def test_a_commit_that_raised_is_done_exactly_when_it_took_effect(base: Base, tmp_path: Path, kind: str) -> None:
    sweep = Sweep(base, tmp_path / "db", SCENARIOS["update"])
    at = sweep.calls.index("commit") + 1
    assert sweep.case(at, KINDS["commit"].index(kind), raises=kind.endswith("before")) is not None


def calls_of_making(folder: Path) -> list[str]:
    """Return the calls by which a new database is made."""
    with failing(Plan()) as plan:
        TensorStorage(folder).close()
    return plan.made


def fail_while_made(folder: Path, at: int, kind: int) -> str | None:
    """Fail one call while a database is made, in a folder in one that is not there yet; then make it."""
    shutil.rmtree(folder.parent, ignore_errors=True)
    with failing(Plan(at, kind)) as plan:
        try:
            TensorStorage(folder).close()
        except TensorDBError:
            pass
        except Exception as wrong:
            raise AssertionError(f"{plan.failed}: {type(wrong).__name__}: {wrong}") from wrong
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        db.insert("d", made(1, 8_000))
        assert db.verify().ok, plan.failed
    return plan.failed


def test_when_any_call_fails_while_a_database_is_made_it_can_be_made_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "db"
    failed = [fail_while_made(folder, *each) for each in chosen(calls_of_making(folder), every=False)]
    assert any(failed)
