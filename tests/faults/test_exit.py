"""Scripts that forget `close()`: they end silently and lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensordb import TensorStorage

from .programs import made, run, run_each, run_fresh, start

BEGIN = """
db = TensorStorage(folder)
db.create_dataset("d")
for seed in range(4):
    db.insert("d", made(seed, 50 if seed % 2 else 30_000), {"seed": seed})
"""
ENDINGS = {
    "nothing more": "",
    "an unfinished scan": "records = db.scan('d'); next(records)\n",
    "an open transaction": "block = db.transaction(); block.__enter__(); db.insert('d', made(9, 9))",
    "kept tensors": "kept = db.get_dataset('d'); page = db.get_records_paginated('d')",
    "a daemon thread": """
import threading
started = threading.Event()
def work():
    while True:
        db.query("d", "metadata.seed > 1")
        started.set()
threading.Thread(target=work, daemon=True).start()
assert started.wait(60)
""",
    "a thread that ends later": """
import threading
def work():
    for _ in range(20):
        db.query("d", "metadata.seed > 1")
    db.insert("d", made(4, 30_000), {"seed": 4})
threading.Thread(target=work).start()
""",
    "a storage in memory": "other = TensorStorage(None); other.create_dataset('x'); other.insert('x', made(1, 1))",
    "a cycle": "class Box: pass\nbox = Box(); box.db, box.me = db, box",
    "a module's own state": "import builtins; builtins.kept = db",
    "sys.exit": "sys.exit(0)",
}


def test_scripts_that_forget_to_close_exit_silently_and_lose_nothing(tmp_path: Path) -> None:
    run_each([BEGIN + ending for ending in ENDINGS.values()], tmp_path)
    for number, ending in enumerate(ENDINGS):
        holds(tmp_path / str(number), 5 if ending == "a thread that ends later" else 4)


@pytest.mark.parametrize("block", ["a daemon thread", "an open transaction"])
def test_a_fresh_interpreter_exits_silently_with_a_scan_and_more_unfinished(tmp_path: Path, block: str) -> None:
    assert run_fresh(BEGIN + ENDINGS["an unfinished scan"] + ENDINGS[block], tmp_path / "db") == ""
    holds(tmp_path / "db", 4)


def test_a_script_exits_silently_while_a_thread_waits_for_its_open_transaction(tmp_path: Path) -> None:
    assert run(BEGIN + ENDINGS["a daemon thread"] + ENDINGS["an open transaction"], tmp_path / "db") == ""
    holds(tmp_path / "db", 4)


def holds(folder: Path, count: int) -> None:
    """What was committed is there and right; a transaction that never ended does not count."""
    with TensorStorage(folder) as db:
        found = {record.metadata["seed"]: record.tensor for record in db.scan("d")}
        assert sorted(found) == list(range(count))
        assert all(found[seed].equal(made(seed, 50 if seed % 2 else 30_000)) for seed in found)
        assert db.verify().ok


def test_a_script_that_dies_of_an_error_shows_only_that_error(tmp_path: Path) -> None:
    script = start(BEGIN + "\nwith db.transaction():\n    db.insert('d', made(9, 9))\n    1 / 0", tmp_path / "db")
    complaints = script.communicate(timeout=120)[1]
    assert script.returncode == 1
    assert complaints.strip().endswith("ZeroDivisionError: division by zero")
    assert complaints.count("Traceback") == 1
    with TensorStorage(tmp_path / "db") as db:
        assert db.count("d") == 4
