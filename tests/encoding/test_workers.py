"""Work runs on all cores, reports its errors, nests without deadlock and survives fork; importing stays cheap."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import tensordb
from tensordb.encoding.workers import for_each, start

from .samples import normal, same_bits, stored


def test_every_index_is_worked_on_once() -> None:
    lock, seen = threading.Lock(), []

    def work(index: int) -> None:
        with lock:
            seen.append(index)

    for_each(1000, work)
    assert sorted(seen) == list(range(1000))


def test_the_error_of_any_thread_reaches_the_caller() -> None:
    def work(index: int) -> None:
        if index == 7:
            raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        for_each(100, work)


def test_work_may_start_work() -> None:
    counts = [0] * 20

    def work(index: int) -> None:
        inner = [0] * 50
        for_each(50, lambda at: inner.__setitem__(at, 1))
        assert start(lambda: b"x")() == b"x"
        counts[index] = sum(inner)

    for_each(20, work)
    assert counts == [50] * 20


def test_many_threads_share_a_reader() -> None:
    tensor = normal(torch.float32, (2000, 300))
    reader = stored(tensor, "lossless")
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(same_bits(reader.decode(), tensor))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_encodes_and_decodes_too() -> None:
    tensor = normal(torch.float32, (2000, 300))
    expected = stored(tensor, "lossless")
    assert same_bits(expected.decode(), tensor)

    def child() -> None:
        again = stored(tensor, "lossless")
        os._exit(0 if same_bits(again.decode(), tensor) and same_bits(expected.decode(), tensor) else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert same_bits(expected.decode(), tensor)


_IMPORT_ALONE = """
import sys, time, types, torch, numpy
package = types.ModuleType("tensordb")
package.__path__ = [sys.argv[1]]
sys.modules["tensordb"] = package
start = time.process_time()
import tensordb.encoding
print(time.process_time() - start, "tensordb.encoding.codecs.lzma" in sys.modules)
"""


def test_importing_costs_little_beyond_torch() -> None:
    command = [sys.executable, "-c", _IMPORT_ALONE, str(Path(tensordb.__file__).parent)]
    for _ in range(5):  # a machine that is busy may take longer, but not each time
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, loaded = run.stdout.split()
        assert (loaded, run.stderr) == ("False", "")
        if float(seconds) < 0.2:
            return
    pytest.fail(f"importing took {seconds} s")
