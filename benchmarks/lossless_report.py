"""Figures of the lossless benchmark: from seconds to tables, a plot, and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import format_table
from saves import median_of_ratios
from verdicts import Verdict

Samples = dict[int, dict[str, dict[str, tuple[float, ...]]]]
_OURS, _ZIPNN = "tensordb lossless", "zipnn"
_FLOATS = ("weights fp32", "weights bf16", "weights fp16")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a race on one kind gave.

    Attributes:
        kind: Its name.
        sizes: Stored bytes by coder, and the raw ones as ``raw``.
        seconds: By threads, action and coder; one value a round, in the order of rounds.
    """

    kind: str
    sizes: Mapping[str, int]
    seconds: Samples

    @classmethod
    def of(cls, kind: str, sizes: Mapping[str, int], rounds: Mapping[int, list[Any]]) -> Figures:
        """Take rounds apart; the first was a warm-up for all but those that ran in it alone."""
        return cls(
            kind,
            sizes,
            {
                threads: {
                    action: {
                        coder: tuple(each[action][coder] for each in done[1:] if coder in each[action]) or (first,)
                        for coder, first in by.items()
                    }
                    for action, by in done[0].items()
                }
                for threads, done in rounds.items()
            },
        )

    def ratio(self, coder: str) -> float:
        """Raw over stored bytes."""
        return self.sizes["raw"] / self.sizes[coder]

    def speed(self, coder: str, action: str, threads: int) -> float | None:
        """Median MB/s of raw bytes."""
        samples = self.seconds.get(threads, {}).get(action, {}).get(coder)
        return self.sizes["raw"] / statistics.median(samples) / 1e6 if samples else None

    def times_faster(self, coder: tuple[str, str, int], peer: tuple[str, str, int]) -> float | None:
        """Median over rounds of a peer's seconds over a coder's; each is an action, a name and a number of threads."""
        ours, theirs = (
            self.seconds.get(threads, {}).get(action, {}).get(name) for action, name, threads in (coder, peer)
        )
        return median_of_ratios(theirs, ours) if ours and theirs else None


def format_figures(figures: Figures) -> str:
    """Lay out the coders of one kind; speeds are MB/s of raw bytes."""
    columns = [(action, threads) for action in ("compress", "warm", "fresh") for threads in figures.seconds]
    header = [f"{figures.kind}, {figures.sizes['raw'] / 1e6:.1f} MB", "ratio"]
    lines = [header + [f"{action} {threads}t" for action, threads in columns]]
    for coder in figures.seconds[1]["compress"]:
        speeds = [figures.speed(coder, *column) for column in columns]
        lines.append([coder, f"{figures.ratio(coder):.3f}", *("-" if v is None else f"{v:,.0f}" for v in speeds)])
    return format_table([lines[0], *sorted(lines[1:], key=lambda line: (not line[0].startswith("tensordb"), line[0]))])


def format_choices(choices: Mapping[str, Any], archives: Mapping[str, tuple[float, float]]) -> str:
    """Lay out the sizes of the automatic choice and of the best candidate, kind by kind."""
    lines = [["kind", "auto", "best candidate", "", "of", "auto loses %", "zstd 3", "archive*", "auto*"]]
    for kind, each in choices.items():
        lines.append(
            [
                kind,
                f"{each['raw'] / each['auto']:.3f}",
                f"{each['raw'] / each['best']:.3f}",
                each["candidate"],
                str(each["tried"]),
                f"{_regret(each):.2f}",
                f"{each['raw'] / each['zstd']:.3f}",
                *(f"{ratio:.3f}" for ratio in archives[kind]),
            ]
        )
    return f"{format_table(lines)}\n* on a sample of runs of 192 KiB, as one tensor"


def format_pieces(pieces: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out where the time of one thread goes, in milliseconds."""
    if not pieces:
        return ""
    header = ["one thread, ms", *(f"{kind}, {each['MB']:.0f} MB" for kind, each in pieces.items())]
    names = [name for name in next(iter(pieces.values())) if name != "MB"]
    lines = [[name, *(f"{each[name]:.1f}" for each in pieces.values())] for name in names]
    return format_table([header, *lines]) + "\n"


def verdicts(figures: Sequence[Figures], result: Mapping[str, Any]) -> list[Verdict]:
    """Hold the figures of a run against what is promised."""
    by_kind = {each.kind: each for each in figures}
    found = []
    for kind, bound in zip(_FLOATS, (1.220, 1.500, 1.178), strict=True):
        if kind not in by_kind:
            continue
        each = by_kind[kind]
        found.append(Verdict(f"ratio of {kind}", bound, each.ratio(_OURS)))
        # ZipNN has no destination to write to: its way is the fresh one, and a heap that holds enough its best case.
        for action, peer_action, words, factor in (
            ("compress", "compress", "", 2.0),
            ("warm", "fresh", " into fresh memory, its only way", 1.3),
            ("warm", "warm", " with its heap reused", 1.3),
            ("fresh", "fresh", "", 1.0),
        ):
            faster = each.times_faster((action, _OURS, 1), (peer_action, _ZIPNN, 1))
            found.append(Verdict(f"{action} {kind}, one thread, times ZipNN's speed{words}", factor, faster))
        for action in ("compress", "warm"):
            faster = each.times_faster((action, _OURS, 2), (action, _OURS, 1))
            found.append(Verdict(f"{action} {kind}, two threads, times one thread's speed", 1.8, faster))
    if result["archive of weights bf16"]:
        found.append(Verdict("ratio of weights bf16, archive", 1.515, result["archive of weights bf16"]))
    regrets = {kind: _regret(each) for kind, each in result["choices"].items()}
    worst = max(regrets, key=lambda kind: regrets[kind])
    found.append(Verdict(f"auto behind the best candidate, %, worst: {worst}", 0.3, regrets[worst], at_least=False))
    behind = {kind: each["auto"] / each["zstd"] for kind, each in result["choices"].items()}
    worst = max(behind, key=lambda kind: behind[kind])
    found.append(Verdict(f"auto's size over zstd 3's, worst: {worst}", 1.0, behind[worst], at_least=False))
    for name, ratio in result.get("pages", {}).items():
        found.append(Verdict(f"ratio of {name} in pages", 1.19, ratio))
    if "row" in result:
        opened = result["row"]["row, payload opened before"]
        found.append(Verdict("a row of a 100 MB tensor, ms", 1.0, opened, at_least=False))
    for action, by in result.get("saves", {}).items():
        faster = median_of_ratios(by["safetensors"], by["tensordb"])
        found.append(Verdict(f"{action} with preset none, times safetensors' speed", 0.9, faster))
    return found


def plot(figures: Sequence[Figures], path: Path) -> None:
    """Draw ratio against speed on one thread, a panel for each kind and direction of the first float kinds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [each for each in figures if each.kind in _FLOATS] or list(figures[:3])
    figure, panels = pyplot.subplots(2, len(shown), figsize=(5 * len(shown), 8), squeeze=False)
    for column, each in enumerate(shown):
        for row, action in enumerate(("compress", "warm")):
            panel = panels[row][column]
            for coder in each.seconds[1][action]:
                if coder == "tensordb none":
                    continue
                marker = "o" if coder.startswith("tensordb") else "x"
                point = (each.speed(coder, action, 1), each.ratio(coder))
                panel.plot(*point, marker)
                panel.annotate(coder, point, textcoords="offset points", xytext=(4, 4), fontsize=7)
            panel.set(title=f"{each.kind}: {action}", xlabel="MB/s, one thread", ylabel="ratio", xscale="log")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _regret(choice: Mapping[str, Any]) -> float:
    return 100 * (choice["auto"] / choice["best"] - 1)
