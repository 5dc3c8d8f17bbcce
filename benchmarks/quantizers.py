"""How much accuracy does each stored bit buy, next to bitsandbytes, torchao and optimum-quanto?

Run `python benchmarks/quantizers.py`; README.md beside this file explains the terms, the output and the options. With
`--size tiny` it only checks that every quantizer runs on some rows of each matrix.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pinned import cores, pinned
from report import format_table, machine
from verdicts import Verdict, format_verdicts
from weight_race import accuracy, open_race, run_round

_TINY_ROWS = 128
_ROUNDS = 5
Accuracy = Mapping[str, Mapping[str, float]]
Speeds = Mapping[int, Mapping[str, Mapping[str, float]]]


def main() -> None:
    """Measure, print, and optionally record."""
    options = _options()
    full = options.size == "full"
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    with ExitStack() as stack:
        threads = [count for count in (1, 2) if count <= cores()]
        processes = {count: stack.enter_context(pinned(count)) for count in threads}
        rows = 0 if full else _TINY_ROWS
        # One after the other: a peer compiles what it needs in the first.
        opened = [process.submit(open_race, count, rows).result() for count, process in processes.items()]
        origin, missing, raw = opened[0]
        print(f"data: {origin}; {raw / 1e6:.1f} MB of float32 matrices, all others lossless and not counted")
        print(*missing, sep="\n", flush=True)
        found = processes[threads[-1]].submit(accuracy, 100 if full else 4).result()
        speeds = _speeds(processes, raw, _ROUNDS if full else 1)
    print(f"\n{_table(found, speeds)}\n")
    verdicts = judge(found, speeds)
    if full:
        print(format_verdicts(verdicts))
    else:
        print("tiny: every quantizer ran; the figures above mean nothing")
    if options.plot:
        plot(found, options.plot)
    if options.json:
        targets = [each.to_dict() for each in verdicts] if full else []
        record = {"size": options.size, "machine": machine(), "accuracy": found, "speeds": speeds, "targets": targets}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _speeds(processes: Mapping[int, Any], raw: int, rounds: int) -> Speeds:
    """Return GB/s of float32 by threads, direction and quantizer: medians of rounds taken in turns."""
    samples: dict[int, list[Any]] = {count: [] for count in processes}
    for turn in range(-1, rounds):  # the first is a warm-up
        for count, process in processes.items():
            samples[count].append(process.submit(run_round, turn).result())
    return {
        count: {
            way: {name: raw / statistics.median(each[way][name] for each in done[1:]) / 1e9 for name in done[0][way]}
            for way in done[0]
        }
        for count, done in samples.items()
    }


def _table(found: Accuracy, speeds: Speeds) -> str:
    columns = [(way, count) for way in ("quantize", "dequantize") for count in speeds]
    lines = [["", "bits", "SNR dB", "cosine", *(f"{way} {count}t GB/s" for way, count in columns)]]
    for name, each in sorted(found.items(), key=lambda item: -item[1]["bits"]):
        rates = [f"{speeds[count][way][name]:.2f}" if name in speeds[count][way] else "-" for way, count in columns]
        lines.append([name, f"{each['bits']:.3f}", f"{each['snr']:.1f}", f"{each['cosine']:.5f}", *rates])
    return format_table(lines)


_SAME_BITS = 0.05


def judge(found: Accuracy, speeds: Speeds) -> list[Verdict]:
    """Hold the figures against what is promised."""
    verdicts = []
    promises = {"int8 group 128": (43, 8.2), "q6": (34, 6.4), "q5": (29, 5.3), "q4": (24.5, 4.6)}
    for short, (decibels, bits) in promises.items():
        name = f"tensordb {short}"
        each = found.get(name)
        dequantize = speeds[1]["dequantize"].get(name)
        verdicts += [
            Verdict(f"{short}: SNR, dB", decibels, each["snr"] if each else None),
            Verdict(f"{short}: bits a weight", bits, each["bits"] if each else None, at_least=False),
            Verdict(f"{short}: dequantize, one thread, GB/s of float32", 1.5, dequantize),
        ]
        if each:
            verdicts += _against_peers(short, each, found)
    return verdicts


def _against_peers(short: str, ours: Mapping[str, float], found: Accuracy) -> list[Verdict]:
    """Compare with the best that each peer package makes of as many bits, or of fewer."""
    verdicts = []
    for package in ("bitsandbytes", "torchao", "quanto"):
        peers = [
            name for name in found if name.startswith(package) and found[name]["bits"] <= ours["bits"] + _SAME_BITS
        ]
        if peers:
            peer = max(peers, key=lambda name: found[name]["snr"])
            text = f"{short}: dB beyond {peer} ({found[peer]['bits']:.2f} bits)"
            verdicts.append(Verdict(text, 0, ours["snr"] - found[peer]["snr"]))
    return verdicts


def plot(found: Accuracy, path: Path) -> None:
    """Draw SNR against bits a weight."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(9, 7))
    for name, each in found.items():
        point = (each["bits"], each["snr"])
        panel.plot(*point, "o" if name.startswith("tensordb") else "x")
        panel.annotate(name, point, textcoords="offset points", xytext=(4, 3), fontsize=7)
    panel.set(xlabel="bits a weight, everything counted", ylabel="SNR, dB", title="weights of MiniLM")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw SNR against bits")
    return parser.parse_args()


if __name__ == "__main__":
    main()
