"""Pictures as text for a web page: PNG inside a data address, SVG for bars and lines. No dependencies.

Everything that goes in is numbers; names are escaped by who writes the page.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from tensordb.looking.figures import Figures
from tensordb.looking.views import Numbers, Picture

Colour = tuple[int, int, int]

_SEQUENTIAL: tuple[Colour, ...] = (  # viridis
    *((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99)),
    *((170, 220, 50), (253, 231, 37)),
)
_DIVERGING: tuple[Colour, ...] = (
    *((33, 102, 172), (103, 169, 207), (209, 229, 240), (247, 247, 247), (253, 219, 199), (239, 138, 98)),
    (178, 24, 43),
)
_NOT_FINITE = (128, 128, 128)
_SHOWN = 192
"""Pixels of a picture's longer side on the page."""
_TEXT = 'font-family="sans-serif" font-size="10" fill="currentColor"'

Pixels = NDArray[np.uint8]


def drawn(picture: Picture, shown: int = _SHOWN) -> str:
    """Return a picture as HTML, its longer side of so many pixels."""
    if picture.kind == "line":
        return _line_svg(picture.values, shown)
    pixels = pixels_of(picture)
    height, width = pixels.shape[:2]
    scale = shown / max(height * picture.steps[0], width * picture.steps[1])
    size = [max(1, round(side * step * scale)) for side, step in zip((height, width), picture.steps, strict=True)]
    smooth = "" if picture.kind == "image" else "image-rendering:pixelated;"
    style = f"{smooth}width:{size[1]}px;height:{size[0]}px"
    return f'<img style="{style}" src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'


def pixels_of(picture: Picture) -> Pixels:
    """Return the colours of an image or a heatmap, ``[rows, columns, 3]``."""
    if picture.kind == "image":
        return np.asarray(np.round(np.nan_to_num(picture.values) * 255).clip(0, 255), np.uint8)
    low, high, signed = limits_of(picture.values)
    anchors = np.array(_DIVERGING if signed else _SEQUENTIAL, np.float64)
    finite = np.isfinite(picture.values)
    share = np.where(finite, picture.values, low) / 2 - low / 2
    places = share / max(high / 2 - low / 2, np.finfo(np.float64).tiny) * (len(anchors) - 1)
    steps = np.arange(len(anchors))
    colours = np.stack([np.interp(places, steps, anchors[:, channel]) for channel in range(3)], axis=-1)
    colours[~finite] = _NOT_FINITE
    return np.asarray(np.round(colours), np.uint8)


def limits_of(values: Numbers) -> tuple[float, float, bool]:
    """Return the values at both ends of the colours, and whether these part at zero."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
    if low > high:
        return 0.0, 0.0, False
    if low < 0 < high:
        most = max(-low, high)
        return -most, most, True
    return low, high, False


def png(pixels: Pixels) -> bytes:
    """Return ``[rows, columns, 3]`` as a PNG file."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def histogram_svg(figures: Figures, width: int = 240, height: int = 96) -> str:
    """Return the histogram of the values, with the range below and the count of the fullest bin above."""
    counts, edges = figures.histogram()
    most = int(counts.max(initial=0))
    step, bottom, top = width / max(1, len(counts)), height - 14, 14
    bars = "".join(
        f'<rect x="{at * step:.1f}" y="{bottom - share:.1f}" width="{step * 0.92:.1f}" height="{share:.1f}"/>'
        for at, count in enumerate(counts.tolist())
        if (share := (bottom - top) * count / max(1, most))
    )
    labels = (
        f'<text x="0" y="{height - 3}" {_TEXT}>{edges[0]:.4g}</text>'
        f'<text x="{width}" y="{height - 3}" text-anchor="end" {_TEXT}>{edges[-1]:.4g}</text>'
        f'<text x="0" y="10" {_TEXT}>elements per bin, up to {most:,}</text>'
    )
    return _svg(width, height, f'<g fill="#4c78a8">{bars}</g>{labels}')


def _line_svg(values: Numbers, width: int) -> str:
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))  # zero is always in sight
    height = max(24, width // 3)
    middle = np.where(np.isfinite(values), values, low) / 2 - low / 2
    y = height - 2 - middle / max(high / 2 - low / 2, np.finfo(np.float64).tiny) * (height - 4)
    x = np.linspace(1, width - 1, len(values))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    return _svg(width, height, f'<polyline points="{points}" fill="none" stroke="#4c78a8"/>')


def _svg(width: int, height: int, body: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{body}</svg>'
