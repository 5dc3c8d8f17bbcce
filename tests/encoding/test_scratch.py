"""Memory that is used again is nobody else's while it is in use, not even a signal handler's of the same thread."""

from __future__ import annotations

import signal
from types import FrameType

import numpy as np
import torch

from tensordb import TensorStorage
from tensordb.encoding.scratch import scratch


def test_memory_that_is_held_is_not_given_out_again() -> None:
    first = scratch("words", 1000)
    held = first.view("<u4")
    del first
    second, third = scratch("words", 900), scratch("words", 100)
    held[:], second[:], third[:] = 1, 2, 3
    assert (held == 1).all()
    assert (second == 2).all()
    address = third.ctypes.data
    del second, third
    assert address in {scratch("words", 80).ctypes.data, scratch("words", 1).ctypes.data}


def test_a_handler_that_saves_in_the_midst_of_a_save_spoils_neither() -> None:
    sparse = torch.zeros(200_000)
    sparse[::7] = torch.arange(28_572.0)
    other = TensorStorage(None)
    other.create_dataset("d")

    def handler(number: int, frame: FrameType | None) -> None:
        other.insert("d", sparse.flip(0)[:50_000].clone())
        signal.setitimer(signal.ITIMER_REAL, 0.002)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with TensorStorage(None) as db:
            db.create_dataset("d")
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            for number in range(30):
                db.insert("d", sparse + number)
                db.insert("d", sparse * number)
            signal.setitimer(signal.ITIMER_REAL, 0)
            found = [record.tensor for record in db.get_dataset_with_metadata("d")]
            assert all(found[2 * n].equal(sparse + n) and found[2 * n + 1].equal(sparse * n) for n in range(30))
            assert db.verify().ok
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert other.count("d") > 0
    assert other.verify().ok
    expected = sparse.flip(0)[:50_000]
    assert all(np.array_equal(record.tensor.numpy(), expected.numpy()) for record in other.scan("d"))
    other.close()
