"""Timing of competitors side by side, and the memory of a process.

Competitors take turns within each round and the order rotates, so that a slow moment of the machine hits them alike.
Nothing here knows what is being measured.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of one action, in seconds."""

    samples: tuple[float, ...]

    @property
    def p50(self) -> float:
        """Median in seconds."""
        return statistics.median(self.samples)

    @property
    def p99(self) -> float:
        """99th percentile (nearest rank) in seconds; the maximum of fewer than 100 samples."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def race(
    actions: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warmup: int = 3,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time each action once per round, competitors taking turns.

    Args:
        actions: What each competitor does in round `i`; every one gets the same `i`.
        rounds: Timed rounds.
        warmup: Untimed rounds before them, which get the same arguments as the first timed ones.
        before: Done before each action, outside its time.
    """
    names = list(actions)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _collector_paused():
        for turn in [*range(warmup), *range(rounds)]:
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                before()
                samples[name].append(timed(partial(actions[name], turn)))
    return {name: Timing(tuple(values[warmup:])) for name, values in samples.items()}


def timed(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Run an action once; seconds it took by the clock."""
    start = clock()
    action()
    return clock() - start


def touch(tensors: Tensor | Iterable[Tensor]) -> float:
    """Read every element of what a store returned, so that lazily mapped bytes count as well."""
    if isinstance(tensors, Tensor):
        return float(tensors.sum())
    return sum(float(tensor.sum()) for tensor in tensors)


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Whether two float32 tensors hold the same bits, NaN and -0.0 included."""
    return left.shape == right.shape and torch.equal(left.view(torch.int32), right.view(torch.int32))


def folder_bytes(path: Path) -> tuple[int, int]:
    """Bytes of all files below `path`, and bytes of the disk blocks they take."""
    stats = [file.stat() for file in path.rglob("*") if file.is_file()]
    return sum(stat.st_size for stat in stats), sum(stat.st_blocks * 512 for stat in stats)


def memory_now() -> int:
    """Resident bytes of this process (on macOS: the most there have been)."""
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """Most resident bytes this process has had."""
    # ru_maxrss survives exec and would report the parent's peak on Linux; VmHWM starts afresh.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def seconds_in_subprocess(setup: str, statement: str, *, repetitions: int) -> Timing:
    """Time `statement` after `setup`, each time in a fresh interpreter; of several runs the first is not counted.

    What an installer would have compiled is compiled by the first run: packages installed in place have no bytecode.
    """
    code = f"{setup}\nimport time\nstart = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        outputs = [_output(code, environment) for _ in range(repetitions + (repetitions > 1))]
    return Timing(tuple(float(output) for output in outputs[-repetitions:]))


def _output(code: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def _status(field: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next((line for line in status.read_text().splitlines() if line.startswith(f"{field}:")), None)
    return int(line.split()[1]) * 1024 if line else None


@contextmanager
def _collector_paused() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
