"""Plots with matplotlib, which is optional: one tensor on axes, or many in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from tensordb.display import one_line
from tensordb.errors import InvalidInputError, MissingDependencyError
from tensordb.looking.drawing import limits_of
from tensordb.looking.figures import Figures
from tensordb.looking.views import Picture, picture_of

Kind = Literal["picture", "histogram"]


def plot(tensor: torch.Tensor, title: str, kind: Kind, ax: Any) -> Any:
    """Draw a tensor's picture or histogram on axes, new ones for None; return them."""
    if kind not in ("picture", "histogram"):
        raise InvalidInputError(f"kind is {kind!r}; give 'picture' or 'histogram'")
    if ax is None:
        _, ax = _pyplot("plot()").subplots(figsize=(6, 4), layout="constrained")
    picture = picture_of(tensor) if kind == "picture" else None
    what = "magnitude" if tensor.is_complex() else "value"
    if picture is None:
        figures = Figures.of(tensor)
        _histogram(ax, figures, what)
        title += "" if figures.read == figures.total else f", {figures.read:,} elements at random"
    else:
        _labelled(ax, picture, what)
        title = f"{title} {picture.title}".strip()
    ax.set_title(plain(title), fontsize="medium")
    return ax


def grid(tensors: Sequence[torch.Tensor], titles: Sequence[str], columns: int | None) -> Any:
    """Draw tensors side by side; return the figure."""
    pyplot = _pyplot("grid()")
    wide = columns or min(8, max(1, math.ceil(math.sqrt(len(tensors)))))
    high = max(1, math.ceil(len(tensors) / wide))
    figure, axes = pyplot.subplots(high, wide, figsize=(1.6 * wide, 1.8 * high), layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, tensor, title in zip(axes.flat, tensors, titles, strict=False):
        picture = picture_of(tensor)
        if picture is None:
            ax.text(0.5, 0.5, str(Figures.of(tensor)), ha="center", va="center", fontsize="x-small", wrap=True)
        else:
            _drawn(ax, picture)
        ax.set_title(plain(title), fontsize="small")
    return figure


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is."""
    return one_line(text).replace("$", r"\$")


def _labelled(ax: Any, picture: Picture, what: str) -> None:
    drawn = _drawn(ax, picture)
    if picture.kind == "line":
        ax.set(xlabel="index", ylabel=what)
        return
    ax.set(xlabel="column", ylabel="row")
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(integer=True)
    if picture.kind == "heatmap":
        ax.figure.colorbar(drawn, ax=ax, label=what)


def _drawn(ax: Any, picture: Picture) -> Any:
    values, steps = picture.values, picture.steps
    if picture.kind == "line":
        return ax.plot(np.arange(len(values)) * steps[0], values, linewidth=1)
    # The axes count elements of the tensor, though fewer are drawn.
    extent = (-0.5, values.shape[1] * steps[1] - 0.5, values.shape[0] * steps[0] - 0.5, -0.5)
    if picture.kind == "image":
        return ax.imshow(values, extent=extent)
    low, high, signed = limits_of(values)
    sides = values.shape[0] * steps[0], values.shape[1] * steps[1]
    shape = {"aspect": "auto"} if max(sides) > 4 * min(sides) else {}
    colours = "RdBu_r" if signed else "viridis"
    return ax.imshow(values, cmap=colours, vmin=low, vmax=high, extent=extent, interpolation="nearest", **shape)


def _histogram(ax: Any, figures: Figures, what: str) -> None:
    counts, edges = figures.histogram()
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge")
    ax.set(xlabel=what, ylabel="elements per bin")


def _pyplot(what: str) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs matplotlib; install it with: pip install 'tensordb[notebook]'"
        ) from error
    return pyplot
