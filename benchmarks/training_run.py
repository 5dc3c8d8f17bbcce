"""What do the checkpoints of real training runs hold, one after the other?

Makes the material that checkpoint storage is measured on: for each run ten checkpoints (weights, AdamW's state, step)
20 steps apart, as files of torch.save in a folder, with the loss curve beside them. Runs are seeded, and repeat bit for
bit on the same machine with as many threads; `resume` continues from any checkpoint, changed or not.

Precisions: ``fp32``, weights and moments in float32; ``bf16``, weights and moments in bfloat16 (pure bf16 training).
Products are computed in float32 in both, as CPUs without bf16 units take several times as long for the same; what is
stored is rounded to bf16 after each step, as it is in training that computes in bf16.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from report import format_table
from torch import Tensor, nn
from training_tasks import TASKS, Size, Task

Precision = Literal["fp32", "bf16"]
State = dict[str, Any]
RUNS = tuple(f"{task}-{precision}" for task in TASKS for precision in get_args(Precision))
CHECKPOINTS = {"tiny": 3, "full": 10}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WARM_UP = 20
_HORIZON = 500  # steps until the cosine has come down to its floor, beyond the last checkpoint
_FLOOR = 0.1


class Training:
    """A run under way: AdamW with warm-up and cosine, weight decay 0.1 on matrices, gradients clipped to norm 1."""

    def __init__(self, task: Task, precision: Precision, checkpoint: State | None = None) -> None:
        weights = task.initial() if checkpoint is None else checkpoint["model"]
        self._task = task
        self._weights: dict[str, Tensor] = {
            name: each.to(_DTYPES[precision], copy=True).requires_grad_() for name, each in weights.items()
        }
        matrices, others = (
            [each for each in self._weights.values() if (each.ndim == 2) is is2d] for is2d in (True, False)
        )
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=task.rate, betas=(0.9, 0.95), fused=True)
        self.step = 0
        if checkpoint is not None:
            # Loaded moments are not copied by torch, and steps would write into the caller's.
            self._optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))
            self.step = checkpoint["step"]

    def run(self, steps: int) -> list[float]:
        """Train on; the loss of each step, in nats a token, before its update."""
        return [self._one_step() for _ in range(steps)]

    @torch.no_grad()
    def held_out_loss(self, batches: int = 4) -> float:
        """Return the mean loss on text that is never trained on, always the same."""
        return (
            sum(float(self._task.loss(self._computed(), number, held_out=True)) for number in range(batches)) / batches
        )

    def checkpoint(self) -> State:
        """Return the state as of now; it shares memory with the run."""
        model = {name: each.detach() for name, each in self._weights.items()}
        return {"model": model, "optimizer": self._optimizer.state_dict(), "step": self.step}

    def _one_step(self) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._task.rate * _schedule(self.step)
        loss = self._task.loss(self._computed(), self.step)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _computed(self) -> dict[str, Tensor]:
        return {name: each.float() for name, each in self._weights.items()}


def make_run(folder: Path, run: str, size: Size) -> dict[str, Any]:
    """Train and write a run's checkpoints, unless they are there; its curve and how it was made."""
    record = folder / run / "run.json"
    if record.exists() and (made := json.loads(record.read_text()))["size"] == size:
        return made
    shutil.rmtree(record.parent, ignore_errors=True)
    record.parent.mkdir(parents=True)
    task = task_of(run, size)
    training = Training(task, _precision(run))
    losses, held_out, seconds = [], [training.held_out_loss()], 0.0
    for index in range(CHECKPOINTS[size]):
        start = time.perf_counter()
        losses += training.run(task.every)
        seconds += time.perf_counter() - start
        held_out.append(training.held_out_loss())
        torch.save(training.checkpoint(), _path(folder, run, index))
    made = {"run": run, "size": size, "origin": task.origin, "every": task.every, "seconds": seconds}
    made |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "losses": losses, "held_out": held_out}
    record.write_text(json.dumps(made, indent=2) + "\n")
    return made


def read_checkpoint(folder: Path, run: str, index: int) -> State:
    """Return one checkpoint of a run that was made, in memory of its own."""
    return torch.load(_path(folder, run, index), weights_only=True)


def read_checkpoints(folder: Path, run: str) -> Iterator[State]:
    """Return the checkpoints of a run in their order."""
    count = len(json.loads((folder / run / "run.json").read_text())["held_out"]) - 1
    return (read_checkpoint(folder, run, index) for index in range(count))


def resume(run: str, size: Size, checkpoint: State, steps: int) -> list[float]:
    """Train on from a checkpoint, which stays as it is; the loss of each step.

    Each step sees the batch it would have seen without the break, so curves of changed and unchanged checkpoints can be
    compared step by step.
    """
    return Training(task_of(run, size), _precision(run), checkpoint).run(steps)


@cache
def task_of(run: str, size: Size) -> Task:
    """Return what a run learns, its text read and split into tokens."""
    return TASKS[run.rpartition("-")[0]](size)


def format_runs(runs: list[dict[str, Any]]) -> str:
    """Lay out what runs learnt; losses are those of the first step, and means over the steps before a checkpoint."""
    header = [
        "run",
        "steps",
        "s a step",
        "first loss",
        "to first checkpoint",
        "to last",
        "held out before",
        "held out after",
    ]
    lines = [header]
    for each in runs:
        losses, every = each["losses"], each["every"]
        values = [losses[0], _mean(losses[:every]), _mean(losses[-every:]), each["held_out"][0], each["held_out"][-1]]
        cells = [f"{value:.3f}" for value in (each["seconds"] / len(losses), *values)]
        lines.append([each["run"], str(len(losses)), *cells])
    return format_table(lines)


def main() -> None:
    """Make the runs asked for and print what they learnt."""
    options = _options()
    if options.size == "tiny":
        torch.set_num_threads(1)  # threads that wait for each other cost more than steps this small
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [make_run(folder, run, options.size) for run in options.only]
        print(format_runs(runs))
        if options.size == "tiny":
            _check_resuming(folder, options.only[0], runs[0]["every"])


def _check_resuming(folder: Path, run: str, every: int) -> None:
    middle, after = (read_checkpoint(folder, run, index) for index in (0, 1))
    training = Training(task_of(run, "tiny"), _precision(run), middle)
    training.run(every)
    if any(not torch.equal(each, after["model"][name]) for name, each in training.checkpoint()["model"].items()):
        raise AssertionError(f"{run}: training resumed from checkpoint 1 came to other weights than training did")
    print("tiny: training resumed from checkpoint 1 came to the weights of checkpoint 2, bit for bit")


def _schedule(step: int) -> float:
    progress = min(step / _HORIZON, 1.0)
    return min((step + 1) / _WARM_UP, _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def _precision(run: str) -> Any:
    return run.rpartition("-")[2]


def _path(folder: Path, run: str, index: int) -> Path:
    return folder / run / f"checkpoint-{index:02d}.pt"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=get_args(Size), default="full")
    parser.add_argument("--folder", type=Path, help="where runs are kept and found again; thrown away if not given")
    parser.add_argument("--only", type=run_names, default=list(RUNS), metavar="RUN,...", help=", ".join(RUNS))
    return parser.parse_args()


def run_names(text: str) -> list[str]:
    """Take names apart, for argparse."""
    names = text.split(",")
    if unknown := [name for name in names if name not in RUNS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(RUNS)}")
    return names


if __name__ == "__main__":
    main()
