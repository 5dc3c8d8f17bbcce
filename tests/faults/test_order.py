"""No commit names what may not be on the disk: every payload and every name is synced before it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensordb import TensorStorage, files

from .scenarios import SCENARIOS, build

OF_THE_LOCKS = ("gate", "lock")


class Watch:
    """What was written and not synced, told at each commit."""

    def __init__(self) -> None:
        self.bytes: set[str] = set()
        self.names: set[str] = set()
        self.synced: set[str] = set()
        self.wrong: list[str] = []
        self.commits = 0

    def see(self, call: str, arguments: tuple[Any, ...]) -> None:
        if call in ("write", "write_at", "truncate"):
            self.bytes.add(self._path(arguments[0]))
        elif call == "sync_file":
            self.bytes.discard(self._path(arguments[0]))
        elif call == "make_folder" or (call == "open_file" and arguments[1] & os.O_CREAT):
            self.names.add(str(Path(arguments[0]).parent))
        elif call in ("rename", "link"):
            self.names.add(str(Path(arguments[1]).parent))
        elif call == "sync_directory":
            self.names.discard(str(arguments[0]))
            self.synced.add(str(arguments[0]))
        elif call == "commit":
            self.commits += 1
            waiting = [each for each in self.bytes if Path(each).name not in OF_THE_LOCKS]
            self.wrong += [f"commit {self.commits} before {each} was synced" for each in (*waiting, *self.names)]

    def _path(self, descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}") if os.path.isdir("/proc/self/fd") else str(descriptor)


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    watch, calls = Watch(), ("write", "write_at", "truncate", "sync_file", "make_folder", "open_file")
    every = (*calls, "rename", "link", "sync_directory", "commit")
    real = {name: getattr(files, name) for name in every}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name == "sync_directory":
                result = real[name](*arguments)
                watch.see(name, arguments)
                return result
            watch.see(name, arguments)
            return real[name](*arguments)

        return call

    try:
        for name in every:
            setattr(files, name, wrapped(name))
        yield watch
    finally:
        for name in every:
            setattr(files, name, real[name])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order") / "db"
    build(folder)
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_everything_is_synced_before_the_commit_that_names_it(base: Path, tmp_path: Path, name: str) -> None:
    db = TensorStorage(shutil.copytree(base, tmp_path / "db"))
    with watched() as watch:
        SCENARIOS[name](db)
    db.close()
    assert watch.wrong == []
    assert watch.commits


def test_the_first_segment_and_its_folder_have_durable_names_before_a_record_is_in_it(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("d")
        with watched() as watch:
            SCENARIOS["insert"](db)
    assert watch.wrong == []
    assert not watch.names


def test_the_write_ahead_log_has_a_durable_name_before_a_commit_goes_into_it(base: Path, tmp_path: Path) -> None:
    with TensorStorage(shutil.copytree(base, tmp_path / "db")) as db:
        with watched() as watch:
            SCENARIOS["update"](db)
        assert (tmp_path / "db" / "catalog.duckdb.wal").exists()
        assert str(tmp_path / "db") in watch.synced


def test_a_new_database_and_its_folders_have_durable_names_before_the_first_commit(tmp_path: Path) -> None:
    with watched() as watch:
        db = TensorStorage(tmp_path / "some" / "folders" / "deep")
        db.create_dataset("d")
    db.close()
    assert watch.wrong[1:] == []  # the commit that makes the tables is acknowledged by nothing
    assert not watch.names - {str(tmp_path / "some" / "folders" / "deep")}
