"""How small and how fast are the checkpoints of a training run kept, next to torch.save, safetensors, DCP and ZipNN?

Run `python benchmarks/checkpoints.py --runs FOLDER`; README.md beside this file explains the material, the terms and
the options. With `--size tiny` it only checks that every competitor returns what it was given, in seconds.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from checkpoint_material import MATERIALS
from checkpoint_peers import PEERS, CheckpointStore
from report import format_table, machine
from state_tree import State, difference, flatten
from tensordb_stores import TENSORDB_STORES
from training_run import format_runs, make_run

BASELINE = "torch.save"
STORES = (*PEERS, *TENSORDB_STORES)
_PARALLEL_BYTES = 8 << 20


@dataclass(slots=True)
class Figures:
    """What one competitor needed for one sequence.

    Attributes:
        nbytes: Bytes of all its files after each checkpoint, and at the end those of the closed store.
        seconds: By action (``save``, ``load``): seconds of the wall clock, one a checkpoint.
        processor: Likewise, seconds of processor time, all threads together.
    """

    nbytes: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"save": [], "load": []})
    processor: dict[str, list[float]] = field(default_factory=lambda: {"save": [], "load": []})

    def timed(self, action: str, work: Callable[[], Any]) -> Any:
        """Do some work and note how long it took."""
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        self.seconds[action].append(time.perf_counter() - wall)
        self.processor[action].append(time.process_time() - processor)
        return result


def main() -> None:
    """Take the sequences one by one, print each table, then record everything."""
    options = _options()
    if options.size == "tiny":
        torch.set_num_threads(1)  # threads that wait for each other cost more than steps this small
    for store in STORES:
        if store.name not in installed_stores():
            print(f"{store.name}: LEFT OUT, {store.package} is not installed")
    result: dict[str, Any] = {"size": options.size, "machine": machine(), "figures": {}, "xz": {}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        runs = options.runs or folder
        needed = sorted({MATERIALS[name].run for name in options.only})
        result["runs"] = [make_run(runs, run, options.size) for run in needed]
        print(f"{format_runs(result['runs'])}\n", flush=True)
        for name in options.only:
            figures = measure(name, runs, folder / "stores", [installed_stores()[each] for each in options.stores])
            result["figures"][name] = {store: asdict(each) for store, each in figures.items()}
            if options.xz:
                result["xz"][name] = sum(map(_xz_bytes, MATERIALS[name].states(runs)))
            print(f"{format_figures(name, figures, result['xz'].get(name))}\n", flush=True)
            if options.json:
                options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.size == "tiny":
        print("tiny: every store returned the states it was given; the figures above mean nothing")
    if options.plot:
        plot(result["figures"], options.plot)


def installed_stores() -> dict[str, type[CheckpointStore]]:
    """Return the competitors whose packages are installed, by name."""
    return {store.name: store for store in STORES if find_spec(store.package)}


def measure(name: str, runs: Path, folder: Path, kinds: Sequence[type[CheckpointStore]]) -> dict[str, Figures]:
    """Let stores save and load a sequence, checkpoint by checkpoint, taking turns in an order that rotates."""
    folder.mkdir()
    stores = [kind(folder / str(number)) for number, kind in enumerate(kinds)]
    figures = {store.name: Figures() for store in stores}
    for index, state in enumerate(MATERIALS[name].states(runs)):
        at = index % len(stores)
        turns = stores[at:] + stores[:at]
        for store in turns:
            figures[store.name].timed("save", partial(store.save, index, state))
            figures[store.name].nbytes.append(store.nbytes())
        for store in turns:
            loaded = figures[store.name].timed("load", partial(store.load, index))
            _check(name, store, index, loaded, state)
    for store in stores:
        store.close()
        figures[store.name].nbytes.append(store.nbytes())
    shutil.rmtree(folder)
    return figures


def format_figures(name: str, figures: dict[str, Figures], xz: int | None) -> str:
    """Lay out the competitors of one sequence; times are medians over the checkpoints."""
    whole = figures[BASELINE].nbytes[-1] if BASELINE in figures else None
    against = f"of {BASELINE}"
    times = ["save s", "load s", "load last s", "save processor s", "load processor s"]
    count = len(next(iter(figures.values())).seconds["save"])
    lines = [[f"{name}, {count} checkpoints", "MB", against, *times]]
    for store, each in figures.items():
        values = [_median(each.seconds["save"]), _median(each.seconds["load"]), each.seconds["load"][-1]]
        values += [_median(each.processor["save"]), _median(each.processor["load"])]
        lines.append([store, *_size(each.nbytes[-1], whole), *(f"{value:.3f}" for value in values)])
    if xz is not None:
        lines.append(["xz -0, each checkpoint", *_size(xz, whole), *("-" for _ in times)])
    return format_table(lines)


def plot(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the bytes on disk after each checkpoint, a panel a sequence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(figures), figsize=(5 * len(figures), 4), squeeze=False)
    for panel, (name, by_store) in zip(panels[0], figures.items(), strict=True):
        for store, each in by_store.items():
            sizes = [nbytes / 1e6 for nbytes in each["nbytes"][:-1]]
            panel.plot(range(1, len(sizes) + 1), sizes, "o-" if store.startswith("tensordb") else "x--", label=store)
        panel.set(title=name, xlabel="checkpoints", ylabel="MB on disk")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _check(name: str, store: CheckpointStore, index: int, loaded: State, state: State) -> None:
    if (where := difference(state, loaded)) is not None:
        raise AssertionError(f"{store.name} returned checkpoint {index} of {name} with other bits in {where}")


def _xz_bytes(state: State) -> int:
    """Return the bytes of a state's tensors under xz -0, in pieces of 8 MiB so that all cores have work."""
    raw = torch.cat([each.reshape(-1).view(torch.uint8) for each in flatten(state)[1].values()]).numpy()
    pieces = [raw[at : at + _PARALLEL_BYTES] for at in range(0, len(raw), _PARALLEL_BYTES)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda piece: len(lzma.compress(piece, preset=0)), pieces))


def _size(nbytes: int, whole: int | None) -> list[str]:
    return [f"{nbytes / 1e6:,.1f}", f"{nbytes / whole:.3f}" if whole else "-"]


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="training runs to reuse; made there if missing")
    parser.add_argument("--only", type=_among(MATERIALS), metavar="SEQUENCE,...", help=", ".join(MATERIALS))
    parser.add_argument(
        "--stores", type=_among(installed_stores()), default=list(installed_stores()), metavar="NAME,..."
    )
    parser.add_argument("--xz", action="store_true", help="also the size under xz -0: a minute for each GB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the bytes after each checkpoint")
    parser.add_argument("--folder", type=Path, help="where stores go: a real disk, or durability costs nothing")
    options = parser.parse_args()
    # Every dtype and role is in those of the language model; a tiny run is to take seconds.
    shown = [name for name in MATERIALS if options.size == "full" or name.startswith("language-model")]
    options.only = options.only or shown
    return options


def _among(known: Any) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return found

    return names


if __name__ == "__main__":
    main()
