"""What differs between two checkpoints, as values that show themselves: text, HTML, Arrow, pandas, a plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.display import aligned, html_table, one_line
from tensordb.errors import MissingDependencyError
from tensordb.model import TensorSpec

if TYPE_CHECKING:
    import pyarrow as pa

Change = Literal["equal", "changed", "added", "removed", "spec changed"]
_WORST_FIRST: tuple[Change, ...] = ("spec changed", "removed", "added", "changed", "equal")
_HEAD = ("tensor", "change", "relative", "cosine", "max abs", "not finite", "shared bytes")
_FIRST_FIGURE = 4
_ROWS_SHOWN = 30
_LAYERS_LABELLED = 60


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How one tensor differs.

    Attributes:
        name: Its full name, such as ``"model.layer.0.weight"``.
        change: ``"equal"``: bit for bit. ``"spec changed"``: another dtype or shape.
        spec_a: Dtype and shape in checkpoint a; None where it was added.
        spec_b: Dtype and shape in checkpoint b; None where it was removed.
        relative_l2: L2 norm of the difference over that of a; infinite where a is zero. None where it is not known:
            the tensor is in one of them alone, shapes differ, nothing in it is finite, or values were not asked for.
        cosine: Of the angle between the two; None also when one is zero, or when they are equal and were not read.
        max_abs: Largest difference of an element.
        not_finite: Elements that are NaN or infinite in one of the two; the figures leave them out. None when the
            tensors were not read.
        nbytes: Raw bytes, in b if it is there.
        stored_nbytes: Bytes of the object that holds it, in b if it is there.
        shared_nbytes: Stored bytes that both checkpoints need for it: the same object, or bases of deltas.
    """

    name: str
    change: Change
    spec_a: TensorSpec | None = None
    spec_b: TensorSpec | None = None
    relative_l2: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    not_finite: int | None = None
    nbytes: int = 0
    stored_nbytes: int = 0
    shared_nbytes: int = 0

    @property
    def layer(self) -> str:
        """The name without its last part."""
        return self.name.rpartition(".")[0] or self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by column; dtype and shape apart, as ``dtype_a``, ``shape_a`` and so on."""
        plain: dict[str, Any] = {"name": self.name, "change": self.change}
        for side, spec in (("a", self.spec_a), ("b", self.spec_b)):
            plain[f"dtype_{side}"] = spec.dtype if spec else None
            plain[f"shape_{side}"] = list(spec.shape) if spec else None
        return plain | {each.name: getattr(self, each.name) for each in fields(self)[_FIRST_FIGURE:]}


@dataclass(frozen=True, slots=True, repr=False)
class CheckpointDiff:
    """What differs between checkpoint a and checkpoint b.

    Attributes:
        rows: Each tensor that was compared, in the order of b, then those that b lacks.
        stored_nbytes: Bytes of all objects that b needs for these tensors, bases of deltas included.
        shared_nbytes: Those of them that a needs too.
    """

    a: Checkpoint
    b: Checkpoint
    rows: tuple[TensorDiff, ...]
    stored_nbytes: int
    shared_nbytes: int

    @property
    def counts(self) -> dict[Change, int]:
        """How many tensors there are of each change."""
        found = Counter(row.change for row in self.rows)
        return {change: found[change] for change in _WORST_FIRST if found[change]}

    @property
    def worst_first(self) -> tuple[TensorDiff, ...]:
        """The rows by how much they differ, equal ones last."""
        return tuple(sorted(self.rows, key=_badness))

    def to_arrow(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        from tensordb.checkpoints.diff_arrow import table_of  # loading pyarrow takes longer than all the rest

        return table_of(self.rows)

    def to_pandas(self) -> Any:
        """Return the rows as a DataFrame.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("to_pandas() needs pandas; install it with: pip install pandas") from error
        return self.to_arrow().to_pandas()

    def plot(self, ax: Any = None) -> Any:
        """Draw the largest relative change of each layer, in the order of the checkpoint, without generators' states.

        Args:
            ax: Matplotlib axes to draw on (default: new ones).

        Returns:
            The axes. Layers with a tensor whose change is infinite, as it was zero before, are drawn hatched.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise MissingDependencyError(
                "plot() needs matplotlib; install it with: pip install 'tensordb[notebook]'"
            ) from error
        layers = self._by_layer()
        if ax is None:
            _, ax = pyplot.subplots(figsize=(8, min(12.0, 1.5 + 0.25 * len(layers))), layout="constrained")
        return _drawn(ax, layers, self._title())

    def _by_layer(self) -> dict[str, float]:
        layers: dict[str, float] = {}
        for row in self.rows:
            change = 0.0 if row.change == "equal" else row.relative_l2
            if change is not None and not row.name.startswith("rng."):
                layers[row.layer] = max(layers.get(row.layer, 0.0), change)
        return layers

    def _title(self) -> str:
        return f"{_named(self.a)} → {_named(self.b)}"

    def _summary(self) -> str:
        counts = ", ".join(f"{count:,} {change}" for change, count in self.counts.items()) or "no tensors"
        return f"{counts}; {self.shared_nbytes:,} of {self.stored_nbytes:,} stored bytes shared"

    def __repr__(self) -> str:
        lines = [f"CheckpointDiff: {self._title()}", self._summary()]
        different = [row for row in self.worst_first if row.change != "equal"]
        if different:
            lines.append(aligned(_HEAD, [cells_of(row) for row in different[:_ROWS_SHOWN]]))
        if len(different) > _ROWS_SHOWN:
            lines.append(f"… and {len(different) - _ROWS_SHOWN:,} more in .rows")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [cells_of(row) for row in self.worst_first[:_ROWS_SHOWN]]
        more = len(self.rows) - len(rows)
        rest = f"<p>… and {more:,} more in <code>.rows</code></p>" if more else ""
        return html_table(_HEAD, rows, caption=f"{self._title()}: {self._summary()}") + rest


def cells_of(row: TensorDiff) -> tuple[str, ...]:
    """Return a row as text, for the columns tensor, change, relative, cosine, max abs, not finite, shared bytes."""
    change = f"{_spec(row.spec_a)} → {_spec(row.spec_b)}" if row.change == "spec changed" else row.change
    return (
        row.name,
        change,
        _number(row.relative_l2, ".3g"),
        _number(row.cosine, ".6f"),
        _number(row.max_abs, ".3g"),
        "-" if row.not_finite is None else f"{row.not_finite:,}",
        f"{row.shared_nbytes:,}",
    )


def _badness(row: TensorDiff) -> tuple[int, float]:
    known = row.relative_l2 is not None
    return _WORST_FIRST.index(row.change), -(row.relative_l2 or 0.0) if known else -math.inf


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _spec(spec: TensorSpec | None) -> str:
    return f"{spec.dtype}{list(spec.shape)}" if spec else "-"


def _named(checkpoint: Checkpoint) -> str:
    step = checkpoint.id if checkpoint.step is None else f"step {checkpoint.step}"
    return one_line(f"{checkpoint.run!r} {step}")


def _drawn(ax: Any, layers: dict[str, float], title: str) -> Any:
    finite = [change for change in layers.values() if math.isfinite(change)]
    most = max(finite, default=0.0) or 1.0
    places = range(len(layers))
    bars = ax.barh(places, [change if math.isfinite(change) else most for change in layers.values()])
    for bar, change in zip(bars, layers.values(), strict=True):
        if math.isinf(change):
            bar.set_hatch("//")
    shown = places[:: max(1, -(-len(layers) // _LAYERS_LABELLED))]
    names: Sequence[str] = [one_line(name).replace("$", r"\$") for name in layers]
    ax.set_yticks(list(shown), [names[place] for place in shown], fontsize="small")
    ax.invert_yaxis()
    ax.set_xlabel("largest relative change (L2)")
    ax.set_title(title.replace("$", r"\$"))
    return ax
