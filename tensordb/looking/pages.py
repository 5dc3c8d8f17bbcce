"""A tensor on a web page: its picture and its histogram side by side, or a thumbnail."""

from __future__ import annotations

import html

import torch

from tensordb.looking.drawing import drawn, histogram_svg, limits_of
from tensordb.looking.figures import Figures
from tensordb.looking.views import Picture, picture_of

THUMBNAIL = 56


def tensor_html(tensor: torch.Tensor, figures: Figures) -> str:
    """Return picture and histogram of a tensor, empty for one that has nothing to draw."""
    picture = picture_of(tensor)
    parts = []
    if picture is not None:
        parts.append(_figure(drawn(picture), caption_of(picture)))
    if figures.finite.size > 1:
        parts.append(_figure(histogram_svg(figures), "values"))
    return _row(parts) if parts else ""


def thumbnail(tensor: torch.Tensor, caption: str | None = None) -> str:
    """Return a small picture of a tensor with an escaped caption."""
    picture = picture_of(tensor)
    return _figure(drawn(picture, THUMBNAIL) if picture else "·", caption or "")


def thumbnails(tensors: list[torch.Tensor], captions: list[str]) -> str:
    """Return small pictures in a row that wraps."""
    return _row([thumbnail(each, caption) for each, caption in zip(tensors, captions, strict=True)])


def caption_of(picture: Picture) -> str:
    """Return what a picture shows: the part, what was left out, and the range of its colours."""
    parts = [f"slice {picture.title}"] if picture.title else []
    if max(picture.steps) > 1:
        parts.append("every " + " and ".join(f"{step:.4g}th" for step in picture.steps if step > 1) + " element")
    if picture.kind == "heatmap":
        low, high, signed = limits_of(picture.values)
        parts.append(f"{low:.4g} blue to {high:.4g} red" if signed else f"{low:.4g} dark to {high:.4g} bright")
    elif picture.kind == "line":
        parts.append("value over index")
    return ", ".join(parts)


def _figure(drawing: str, caption: str) -> str:
    text = f'<figcaption style="font-size:80%">{html.escape(caption)}</figcaption>' if caption else ""
    return f'<figure style="margin:4px 12px 4px 0">{drawing}{text}</figure>'


def _row(parts: list[str]) -> str:
    return f'<div style="display:flex;flex-wrap:wrap;align-items:flex-end">{"".join(parts)}</div>'
