"""Call after call of every operation fails: a typed error, all of it or nothing of it, and the storage goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.errors import TensorDBError

from .failing import KINDS, MOST_KINDS, Plan, failing
from .programs import made, stray_segments
from .scenarios import LONG, SCENARIOS, Act, Contents, build, contents, digest


class Sweep:
    """One scenario, with what the database holds before and after it."""

    def __init__(self, base: Path, work: Path, act: Act) -> None:
        self._base, self._work, self._act = base, work, act
        with TensorStorage(self._fresh()) as db:
            self.before = contents(db)
            with failing(Plan()) as plan:
                act(db)
        with TensorStorage(work) as db:
            self.after = contents(db)
        self.calls = plan.made
        self._later = digest(made(1, 8_000))

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
        assert state == self.after or (error is not None and state == self.before), _difference(self, state)
        db.create_dataset("later")
        db.insert("later", made(1, 8_000), record_id="one")
        db.close()
        with TensorStorage(self._work) as again:
            found = contents(again)
            assert found.pop("dataset later") == 1
            assert found.pop("later/one")[0] == self._later
            assert found == state, "reopening it shows something else"
            again.insert("later", made(2, 8_000), record_id="two")
            again.maintenance.gc()
            assert stray_segments(again) == []
            assert again.verify().ok

    def _fresh(self) -> Path:
        shutil.rmtree(self._work, ignore_errors=True)
        return Path(shutil.copytree(self._base, self._work))


def _difference(sweep: Sweep, state: Contents) -> str:
    names = {key for key in {*sweep.before, *sweep.after, *state} if state.get(key) != sweep.after.get(key)}
    return f"neither before nor after; other than after: {sorted(names)[:10]}"


def chosen(calls: list[str], every: bool) -> Iterator[tuple[int, int]]:
    """Yield calls and kinds: all of them, or one a call, each kind in its turn."""
    turns: dict[str, int] = {}
    for number, name in enumerate(calls, 1):
        kinds = len(KINDS[name]) + 1
        turn = turns[name] = turns.get(name, -1) + 1
        yield from ((number, kind) for kind in (range(kinds) if every else [(number + turn) % kinds]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nth") / "db"
    build(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in LONG])
def test_when_any_call_fails_it_is_all_there_or_not_at_all_and_work_goes_on(
    base: Path, tmp_path: Path, name: str
) -> None:
    sweep = Sweep(base, tmp_path / "db", SCENARIOS[name])
    failed = [sweep.case(at, kind) for at, kind in chosen(sweep.calls, every=False)]
    assert any(failed) or not sweep.calls
    assert max(map(len, KINDS.values())) + 1 == MOST_KINDS


@pytest.mark.parametrize("kind", KINDS["commit"])
def test_a_commit_that_raised_is_done_exactly_when_it_took_effect(base: Path, tmp_path: Path, kind: str) -> None:
    sweep = Sweep(base, tmp_path / "db", SCENARIOS["update"])
    at = sweep.calls.index("commit") + 1
    assert sweep.case(at, KINDS["commit"].index(kind), raises=kind.endswith("before")) is not None


def test_when_any_call_fails_while_a_database_is_made_it_can_be_made_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "db"
    with failing(Plan()) as plan:
        TensorStorage(folder).close()
    for at, kind in chosen(plan.made, every=True):
        shutil.rmtree(folder.parent)
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
