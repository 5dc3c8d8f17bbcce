"""Ctrl-C between any two calls: what was under way happened wholly or not, and the storage goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from tensordb import TensorStorage

ROOMS = ("/tensordb/catalog/session.py", "/tensordb/catalog/l", "/tensordb/catalog/rows.py", "/datasets/queries.py")
"""Where transactions begin and end, and the catalog is taken and given back."""


def interrupted(act: Callable[[], object], at: int) -> bool:
    """Have Ctrl-C come as Python tells of it, once a call has returned: of those in `ROOMS` the one with this number.

    Returns:
        Whether there were so many calls.
    """
    left = at

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event == "c_return" and any(room in frame.f_code.co_filename for room in ROOMS):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def insert(db: TensorStorage, ids: list[str]) -> None:
    db.insert("d", torch.ones(3), record_id=ids[0])


def transaction(db: TensorStorage, ids: list[str]) -> None:
    with db.transaction():
        for each in ids:
            db.insert("d", torch.ones(3), record_id=each)


def ask(db: TensorStorage, _: list[str]) -> None:
    db.sql("SELECT record_id FROM d")


def ids_in(db: TensorStorage) -> set[str]:
    return set(db.sql("SELECT record_id FROM d")["record_id"].to_pylist())


def asked_elsewhere(db: TensorStorage) -> set[str]:
    """Ask from another thread, which can do so only when this one has given everything back."""
    found: list[set[str]] = []
    thread = threading.Thread(target=lambda: found.append(ids_in(db)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    ("act", "adds", "on_disk"),
    [(insert, 1, True), (insert, 1, False), (transaction, 2, False), (ask, 0, True), (ask, 0, False)],
)
def test_ctrl_c_after_any_call_leaves_all_or_nothing_and_a_storage_that_goes_on(
    tmp_path: Path, act: Callable[[TensorStorage, list[str]], None], adds: int, on_disk: bool
) -> None:
    folder = tmp_path if on_disk else None
    with TensorStorage(folder, busy_timeout=1) as db:
        db.create_dataset("d")
        kept, number, going = set[str](), 0, True
        while going:
            number += 1
            wanted = [f"{number} {i}" for i in range(2)]
            going = interrupted(lambda: act(db, wanted), number)  # noqa: B023
            added = ids_in(db) - kept
            assert added in ([set(), set(wanted[:adds])] if going else [set(wanted[:adds])])
            kept |= {*added, db.insert("d", torch.zeros(2))}
            assert asked_elsewhere(db) == kept
        assert number > 5
        assert db.verify().ok
    if folder is not None:
        with TensorStorage(folder) as db:
            assert ids_in(db) == kept, "what was told to be stored is"
