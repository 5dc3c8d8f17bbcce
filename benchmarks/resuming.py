"""What does an optimizer's state cost in a lossy preset: bytes saved, and what training loses that resumes from it?

A checkpoint in the middle of a run is saved under each preset for the optimizer's state, the weights lossless, loaded,
and trained on. Each step sees the batch that the unbroken run saw, so that curves are compared step by step.

Run `python benchmarks/resuming.py --runs FOLDER`; the runs are those of `training_run.py`, made there if missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from report import format_table, machine
from training_run import CHECKPOINTS, make_run, read_checkpoints, resume

from tensordb import TensorStorage

PRESETS = ("lossless", "maximum", "q6")
_STEPS = {"tiny": 3, "full": 200}
_LAST = 20
"""Steps whose mean loss is compared at the end."""


def main() -> None:
    """Resume under each preset, print the table, record everything."""
    options = _options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = options.runs or folder
        made = make_run(runs, options.run, options.size)
        index = CHECKPOINTS[options.size] // 2
        checkpoint = list(read_checkpoints(runs, options.run))[index]
        steps = options.steps or _STEPS[options.size]
        whole = resume(options.run, options.size, checkpoint, steps)
        rows = [["unbroken", "-", "-", *_losses(whole, whole)]]
        curves: dict[str, Any] = {"unbroken": whole}
        for preset in PRESETS:
            loaded, nbytes = through(folder / preset, checkpoint, preset)
            curves[preset] = resume(options.run, options.size, loaded, steps)
            rows.append([preset, *_size(nbytes, checkpoint), *_losses(curves[preset], whole)])
            print(f"{preset}: {rows[-1]}", flush=True)
    head = [
        "optimizer state",
        "MB",
        "of raw",
        "loss after 1 step",
        f"mean of the last {min(_LAST, steps)}",
        "largest gap",
    ]
    print(f"\n{options.run}, resumed at step {checkpoint['step']} for {steps} steps\n{format_table([head, *rows])}")
    if options.size == "tiny":
        print("tiny: resuming works under each preset; the figures above mean nothing")
    if options.json:
        result = {"machine": machine(), "run": made, "steps": steps, "losses": curves, "table": [head, *rows]}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def through(folder: Path, checkpoint: dict[str, Any], preset: str) -> tuple[dict[str, Any], int]:
    """Return a checkpoint as a database gives it back, and the stored bytes of its optimizer."""
    with TensorStorage(folder) as db:
        db.checkpoints.save(
            "run", checkpoint["model"], optimizer=checkpoint["optimizer"], preset={"optimizer": preset}, rng=False
        )
        stored = db.sql("SELECT sum(stored_nbytes) AS n FROM history.tensors WHERE role = 'optimizer'").to_pylist()
        loaded = db.checkpoints.load("run")
    return {**checkpoint, "model": dict(loaded["model"]), "optimizer": loaded["optimizer"]}, int(stored[0]["n"])


def _size(nbytes: int, checkpoint: dict[str, Any]) -> list[str]:
    states = checkpoint["optimizer"]["state"].values()
    raw = sum(each.nbytes for state in states for each in state.values() if isinstance(each, torch.Tensor))
    return [f"{nbytes / 1e6:.1f}", f"{nbytes / raw:.3f}"]


def _losses(curve: list[float], whole: list[float]) -> list[str]:
    gap = max(one - other for one, other in zip(curve, whole, strict=True))
    return [f"{curve[0]:.4f}", f"{statistics.fmean(curve[-_LAST:]):.4f}", f"{gap:.4f}"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--run", default="language-model-fp32", help="training run to break and resume")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="training runs to reuse; made there if missing")
    parser.add_argument("--steps", type=int, help="steps to train on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
