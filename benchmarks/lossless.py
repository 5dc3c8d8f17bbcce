"""How small and how fast is lossless storage, next to ZipNN, blosc2, pcodec, zstd, LZ4 and safetensors?

Run `python benchmarks/lossless.py`; README.md beside this file explains the terms, the output and the options. With
`--size tiny` it only checks that every coder returns the bytes it was given, in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from choices import archive_ratio, archive_ratios, archive_sample, choose
from coder_race import open_race, run_round
from coders import missing_coders
from kinds import FULL, KINDS, TINY, read_kind, write_kinds
from lossless_report import Figures, format_choices, format_figures, format_pieces, plot, verdicts
from pieces import time_pieces
from pinned import cores, pinned
from report import format_table, machine
from saves import page_ratio, row_reading, save_and_load
from verdicts import format_verdicts

from tensordb.encoding import kernels

PIECES = ("weights fp32", "weights bf16")


def main() -> None:
    """Measure, print, and optionally record."""
    options = _options()
    full = options.size == "full"
    rounds = options.rounds if full else 1
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    for line in missing_coders():
        print(line)
    result: dict[str, Any] = {"size": options.size, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="tensordb-benchmark-", dir=options.folder) as name, ExitStack() as stack:
        folder = Path(name)
        start = time.perf_counter()
        with pinned(cores()) as maker:
            origin = maker.submit(write_kinds, folder, options.only, FULL if full else TINY).result()
        print(f"data: {origin}; {len(options.only)} kinds made in {time.perf_counter() - start:.0f} s\n", flush=True)
        threads = [count for count in (1, 2) if count <= cores()]
        processes = {count: stack.enter_context(pinned(count)) for count in threads}
        figures = [_raced(folder, kind, processes, rounds) for kind in options.only]
        pieces = {
            kind: processes[1].submit(time_pieces, folder, kind, rounds).result()
            for kind in PIECES
            if kind in options.only
        }
        for count in threads:  # their memory is needed
            processes[count].shutdown()
        print(format_pieces(pieces))
        result |= {"origin": origin, "figures": [asdict(each) for each in figures], "pieces": pieces}
        result |= _sizes(folder, options.only, full)
        result |= _storing(folder, options.only, rounds, full)
    found = verdicts(figures, result)
    if full:
        print(format_verdicts(found))
        result["targets"] = [each.to_dict() for each in found]
    else:
        print("tiny: every coder returned the bytes it was given; the figures above mean nothing")
    if options.plot:
        plot(figures, options.plot)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _raced(folder: Path, kind: str, processes: dict[int, Any], rounds: int) -> Figures:
    """Race all coders on one kind; the processes take turns, a round each."""
    sizes = [process.submit(open_race, folder, kind, count, count == 1) for count, process in processes.items()]
    found = [each.result() for each in sizes]
    samples: dict[int, list[Any]] = {count: [] for count in processes}
    for turn in range(rounds + 1):  # the first is a warm-up; what is slow runs in it alone
        for count, process in processes.items():
            samples[count].append(process.submit(run_round, turn).result())
    figures = Figures.of(kind, found[0], samples)
    print(f"{format_figures(figures)}\n", flush=True)
    return figures


def _sizes(folder: Path, kinds: Sequence[str], full: bool) -> dict[str, Any]:
    """Compare the automatic choice with every candidate, and with what `archive` finds on a sample."""
    kernels.load()
    choices, archives, whole = {}, {}, None
    for kind in kinds:
        tensors = read_kind(folder, kind)
        choices[kind] = asdict(choose(tensors))
        archives[kind] = archive_ratios(archive_sample(tensors, (3 << 20) if full else 4096))
        if kind == "weights bf16":
            whole = archive_ratio(tensors)
    print(f"{format_choices(choices, archives)}\n", flush=True)
    return {"choices": choices, "archive": archives, "archive of weights bf16": whole}


def _storing(folder: Path, kinds: Sequence[str], rounds: int, full: bool) -> dict[str, Any]:
    """Measure pages, a row of a large tensor, and whole saves of preset `none`."""
    if not {"weights fp32", "embeddings fp32"} <= set(kinds):
        return {}
    weights, embeddings = read_kind(folder, "weights fp32"), read_kind(folder, "embeddings fp32")[0]
    table = max((each for each in weights if each.ndim == 2), key=len)
    pages = {
        "token embeddings": page_ratio(table[: 8192 if full else 16], 256),
        "sentence embeddings": page_ratio(embeddings, 256),
    }
    flat = torch.cat([each.reshape(-1) for each in weights])
    width = table.shape[1]
    large = torch.cat([flat, flat[: len(flat) // 9]])[: len(flat) * 10 // 9 // width * width].reshape(-1, width)
    row = row_reading(large, 200 if full else 3)
    saves = save_and_load(flat, folder, rounds)
    lines = [["", "value"]]
    lines += [[f"ratio of {name} in pages of 256 rows", f"{value:.3f}"] for name, value in pages.items()]
    lines += [[f"{name} ({row['MB']:.0f} MB), ms", f"{row[name]:.3f}"] for name in row if name != "MB"]
    for action, by in saves.items():
        lines += [[f"{action} {name}, MB/s", f"{_speed(flat, each):,.0f}"] for name, each in by.items()]
    print(f"preset none and safetensors: one tensor of {flat.nbytes / 1e6:.0f} MB, saved durably in {folder.parent}")
    print(f"{format_table(lines)}\n", flush=True)
    return {"pages": pages, "row": row, "saves": saves}


def _speed(tensor: torch.Tensor, seconds: Sequence[float]) -> float:
    return tensor.nbytes / statistics.median(seconds) / 1e6


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--only", type=_kinds, default=list(KINDS), metavar="KIND,...", help=", ".join(KINDS))
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of a full run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw ratio against speed")
    parser.add_argument("--folder", type=Path, help="where files go: a real disk, or durability costs nothing")
    return parser.parse_args()


def _kinds(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return names


if __name__ == "__main__":
    main()
