"""The plans that are worth trying for a dtype, the likeliest first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tensordb.encoding.codecs import Codec, codec_named
from tensordb.encoding.codecs.pcodec import installed
from tensordb.encoding.filters import BitPack, Filter, Narrow, NoFilter, Planes, StrideDelta, ZeroBitmap, plane_width
from tensordb.encoding.filters.stride_delta import MAX_STRIDE
from tensordb.encoding.filters.words import is_integer, word_bytes
from tensordb.encoding.plans import HUFFMAN, MINIMUM_SAVING, ZSTD, Codes, Plan, always, unless_raw
from tensordb.encoding.probing import probe_planes, repeats, zeros

_INCOMPRESSIBLE_BITS, _INCOMPRESSIBLE_IN_PAGES = 7.95, 7.8
"""Bits a byte above which a plane is not tried; lower in pages, where each frame more slows random reads down."""
_LONG_RECORD = 32
_MANY_ZEROS = 0.08
_MOST_CHANNELS = 4


def likely(codes: Codes, chunk_bytes: int) -> list[Plan]:
    """Return what ``auto`` tries; the first is right for most tensors of the dtype."""
    if codes.bits < 8:
        return [Plan(BitPack(codes.bits), HUFFMAN, (0.0,)), unless_raw(NoFilter(), HUFFMAN)]
    if codes.dtype == "bool":
        packed = BitPack.fitting(codes.data)  # a bool that was viewed from bytes may be neither 0 nor 1
        return [*_with_both(packed), unless_raw(NoFilter(), ZSTD)]
    width = plane_width(codes.dtype)
    if is_integer(codes.dtype) and not codes.quantized:
        plans = _for_integers(codes)
    elif width is None:  # one-byte floats and quantizer codes: as noisy as exponents, single values are not
        plans = [unless_raw(NoFilter(), HUFFMAN), unless_raw(NoFilter(), ZSTD)]
    else:
        plans = _for_floats(codes, width, chunk_bytes)
    if zeros(codes.data, word_bytes(codes.dtype)) > _MANY_ZEROS:
        plans.append(unless_raw(_bitmap(codes), HUFFMAN))
    return plans


def _with_both(packed: BitPack | None) -> list[Plan]:
    return [always(packed, codec) for codec in (HUFFMAN, ZSTD)] if packed is not None else []


def every(codes: Codes) -> list[Plan]:
    """Return what ``best`` tries: all filters for the dtype with all codecs that are worth it."""
    slow: list[Codec] = [codec_named("zstd", level=19), codec_named("lzma", level=6)]
    plans = [always(filter_, codec) for filter_ in _filters(codes) for codec in (HUFFMAN, *slow)]
    if installed():
        plans.append(always(NoFilter(), codec_named("pcodec", number=number_of(codes.dtype))))
    return plans


def named(codes: Codes, name: str) -> Filter:
    """Return the filter called `name` as it fits the codes; none where it does not apply to them."""
    if name == "none":
        return NoFilter()
    return next((found for found in _filters(codes) if found.name == name), NoFilter())


def number_of(dtype: str) -> str:
    """Return the number that codec ``pcodec`` takes codes of this dtype for."""
    if is_integer(dtype) or dtype in ("float16", "float32", "float64"):
        return dtype
    return f"uint{8 * word_bytes(dtype)}"


def _for_integers(codes: Codes) -> list[Plan]:
    if word_bytes(codes.dtype) > 1:
        narrow = Narrow.fitting(codes.data, codes.dtype)
        plans = [unless_raw(narrow, ZSTD)]
        if narrow.narrow > 1:
            plans.append(unless_raw(Narrow.fitting(codes.data, codes.dtype, planes=True), ZSTD))
        return [*plans, unless_raw(NoFilter(), ZSTD), unless_raw(_bitmap(codes), ZSTD)]
    plans = [unless_raw(NoFilter(), ZSTD), unless_raw(NoFilter(), HUFFMAN)]
    plans += _with_both(BitPack.fitting(codes.data))
    plans += [unless_raw(StrideDelta(strides), codec) for strides in _strides(codes) for codec in (HUFFMAN, ZSTD)]
    return plans


def _strides(codes: Codes) -> list[tuple[int, ...]]:
    """Return the strides to the neighbours in an image: ``[…, height, width, channels]`` or ``[…, height, width]``."""
    shape = codes.shape[1:] if codes.record_bytes else codes.shape
    if len(shape) < 2:
        return [(1,)]
    if shape[-1] <= _MOST_CHANNELS and len(shape) > 2:
        beside, above = shape[-1], shape[-1] * shape[-2]
    else:
        beside, above = 1, shape[-1]
    whole = math.prod(shape)
    most = min(whole - 1, MAX_STRIDE)
    return [strides for strides in ((beside,), (above,), (beside, above)) if 0 < max(strides) <= most]


def _filters(codes: Codes) -> list[Filter]:
    """Return each filter that applies to the codes, in each form that is worth trying."""
    found: list[Filter] = [NoFilter()]
    width = word_bytes(codes.dtype)
    if not codes.data.nbytes:
        return found
    if plane_width(codes.dtype) is not None:
        found.append(Planes((1,) * width))
    if is_integer(codes.dtype) and width > 1:
        found += [Narrow.fitting(codes.data, codes.dtype, planes=planes) for planes in (False, True)]
    if width == 1 and not codes.dtype.startswith("float"):
        packed = BitPack.fitting(codes.data)
        found += [packed] if packed is not None else []
        found += [StrideDelta(strides) for strides in _strides(codes)]
    found.append(_bitmap(codes))
    return found


def _bitmap(codes: Codes) -> ZeroBitmap:
    return ZeroBitmap((1,) * word_bytes(codes.dtype))


def _for_floats(codes: Codes, width: int, chunk_bytes: int) -> list[Plan]:
    """Return planes, and what finds repetitions where there may be some: to try that always would double the time."""
    probe = probe_planes(width, codes.data)
    planes = _planes(probe.bits, codes)
    if planes and not probe.smooth and not repeats(codes.data, chunk_bytes):
        return planes
    return [*planes, unless_raw(NoFilter(), ZSTD), unless_raw(Planes((1,) * width), ZSTD)]


def _planes(bits: Sequence[float], codes: Codes) -> list[Plan]:
    """Return planes in groups: each compressible plane by itself, neighbours that are noise together."""
    sizes: list[int] = []
    tries: list[bool] = []
    long_records = not codes.record_bytes or codes.record_bytes >= len(bits) * _LONG_RECORD
    most = _INCOMPRESSIBLE_IN_PAGES if codes.record_bytes else _INCOMPRESSIBLE_BITS
    for each in bits:
        compressible = each < most
        if sizes and long_records and not compressible and not tries[-1]:
            sizes[-1] += 1
        else:
            sizes.append(1)
            tries.append(compressible)
    if not any(tries):
        return []
    keep = tuple(1 - MINIMUM_SAVING if tried else 0.0 for tried in tries)
    return [Plan(Planes(tuple(sizes)), HUFFMAN, keep, optional=True)]
