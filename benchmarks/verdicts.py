"""Promises with the figures of a run beside them. Nothing here knows what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from report import format_table


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise and what came of it.

    Attributes:
        text: The promise in words.
        bound: Value it must reach, or stay at or under.
        value: What was measured; None where the run did not.
        at_least: Whether `bound` is a floor instead of a ceiling.
    """

    text: str
    bound: float
    value: float | None
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the promise was kept."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "met": self.met}


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Lay out promises, figures and verdicts."""
    words = {True: "met", False: "NOT MET", None: "not measured"}
    lines = [["target", "asked", "measured", "verdict"]]
    for each in verdicts:
        asked = f"{'>=' if each.at_least else '<='} {each.bound:.3f}"
        lines.append([each.text, asked, "-" if each.value is None else f"{each.value:.3f}", words[each.met]])
    return format_table(lines)
