"""Codes to values and back, for runs of elements that share a scale, in one pass and without the GIL.

Every loop calculates as its NumPy equivalent does: in the working precision, each operation rounded by itself, so that
the bits are the same. A stretch of elements is given by its first parameter, its first element, and the `inner`,
`count` and `elements` of a ParameterMap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from tensordb.encoding.kernels.compiling import compiled

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_OUT = types.Array(types.uint8, 1, "C")
_PARAMETERS = types.Array(types.float32, 1, "C", readonly=True)
_BOUNDS = types.Array(types.float64, 1, "C", readonly=True)
_FLAGS = types.Array(types.boolean, 1, "C")
_STRETCH = (types.int64,) * 5
_FLOATS = {"float32": (types.float32, np.float32), "float64": (types.float64, np.float64)}


def _restore(kind):
    """Return the loop that writes ``levels[code] * scale + minimum``, without minimum if there are no minima."""

    def restore(codes, levels, scales, minima, first, start, inner, count, elements, out):
        base, within = start // elements * count - first, start % elements
        at, size = 0, codes.size
        while at < size:
            place = base + within // inner % count
            if inner == 1:
                length = min(count - within % count, min(elements - within, size - at))
                for i in range(length):
                    value = levels[codes[at + i]] * kind(scales[place + i])
                    out[at + i] = value + kind(minima[place + i]) if minima.size else value
            else:
                length = min(min((within // inner + 1) * inner, elements) - within, size - at)
                part, target, scale = codes[at : at + length], out[at : at + length], kind(scales[place])
                if minima.size:
                    low = kind(minima[place])
                    for i in range(length):
                        target[i] = levels[part[i]] * scale + low
                else:
                    for i in range(length):
                        target[i] = levels[part[i]] * scale
            at, within = at + length, within + length
            if within == elements:
                base, within = base + count, 0

    return restore


def _round(kind, magic):
    """Return the loop that writes the nearest of the whole numbers low to high, as ``code + offset``."""

    def round_(values, scales, minima, low, high, offset, first, start, inner, count, elements, out):
        low_, high_, magic_ = kind(low), kind(high), kind(magic)
        base, within = start // elements * count - first, start % elements
        at, size = 0, values.size
        while at < size:
            place = base + within // inner % count
            length = min(min((within // inner + 1) * inner, elements) - within, size - at)
            scale = kind(scales[place])
            inverse = kind(1) / scale if scale != kind(0) else kind(0)
            least = kind(minima[place]) if minima.size else kind(0)
            part, target = values[at : at + length], out[at : at + length]
            for i in range(length):
                step = (part[i] - least) * inverse
                step = low_ if step < low_ else step
                step = high_ if step > high_ else step
                # Adding a number whose last place is one, and taking it away, rounds to the nearest, ties to even.
                target[i] = np.uint8(np.int32((step + magic_) - magic_) + offset)
            at, within = at + length, within + length
            if within == elements:
                base, within = base + count, 0

    return round_


def _nearest(kind):
    """Return the loop that writes how many of the 15 `edges` lie below each scaled value."""

    def nearest(values, scales, edges, first, start, inner, count, elements, out):
        base, within = start // elements * count - first, start % elements
        at, size = 0, values.size
        while at < size:
            place = base + within // inner % count
            length = min(min((within // inner + 1) * inner, elements) - within, size - at)
            scale = kind(scales[place])
            inverse = kind(1) / scale if scale != kind(0) else kind(0)
            part, target = values[at : at + length], out[at : at + length]
            for i in range(length):
                value = part[i] * inverse
                code = np.uint8(0)
                for k in range(15):
                    code += np.uint8(value > edges[k])
                target[i] = code
            at, within = at + length, within + length
            if within == elements:
                base, within = base + count, 0

    return nearest


def _beyond(difference, bounds, first, start, inner, count, elements, out):
    """Flag the elements whose magnitude is more than their bound, or that are not a number."""
    base, within = start // elements * count - first, start % elements
    at, size = 0, difference.size
    while at < size:
        bound = bounds[base + within // inner % count]
        length = min(min((within // inner + 1) * inner, elements) - within, size - at)
        part, target = difference[at : at + length], out[at : at + length]
        for i in range(length):
            target[i] = not (abs(np.float64(part[i])) <= bound)
        at, within = at + length, within + length
        if within == elements:
            base, within = base + count, 0


def _array(kind: Any) -> Any:
    return types.Array(kind, 1, "C", readonly=True)


restore = {
    name: compiled(
        _restore(kind), _BYTES, _array(typed), _PARAMETERS, _PARAMETERS, *_STRETCH, types.Array(typed, 1, "C")
    )
    for name, (typed, kind) in _FLOATS.items()
}
"""``restore["float32"](codes, levels, scales, minima, first, start, inner, count, elements, out)``."""
rounded = {
    name: compiled(
        _round(kind, 1.5 * 2**23 if name == "float32" else 1.5 * 2**52),
        _array(typed),
        _PARAMETERS,
        _PARAMETERS,
        *(types.int64,) * 3,
        *_STRETCH,
        _OUT,
    )
    for name, (typed, kind) in _FLOATS.items()
}
"""``rounded["float32"](values, scales, minima, low, high, offset, first, start, inner, count, elements, out)``."""
nearest = {
    name: compiled(_nearest(kind), _array(typed), _PARAMETERS, _array(typed), *_STRETCH, _OUT)
    for name, (typed, kind) in _FLOATS.items()
}
"""``nearest["float32"](values, scales, edges, first, start, inner, count, elements, out)``."""
beyond = {name: compiled(_beyond, _array(typed), _BOUNDS, *_STRETCH, _FLAGS) for name, (typed, _) in _FLOATS.items()}
"""``beyond["float32"](difference, bounds, first, start, inner, count, elements, out)``."""
