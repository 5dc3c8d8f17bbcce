"""The plans that are worth trying for a dtype, the likeliest first."""

from __future__ import annotations

import math

import numpy as np

from tensordb.encoding.codecs import Codec, codec_named
from tensordb.encoding.codecs.pcodec import installed
from tensordb.encoding.filters import BitPack, Filter, Narrow, NoFilter, Planes, StrideDelta, ZeroBitmap, plane_width
from tensordb.encoding.filters.words import WORDS, is_integer, word_bytes
from tensordb.encoding.plans import HUFFMAN, MINIMUM_SAVING, ZSTD, Bytes, Codes, Plan, always, unless_raw

_SAMPLE_RUNS, _SAMPLE_RUN = 16, 512
_INCOMPRESSIBLE_BITS = 7.8
_LONG_RECORD = 32
_MANY_ZEROS = 0.08
_MOST_CHANNELS = 4


def likely(codes: Codes) -> list[Plan]:
    """Return what ``auto`` tries; the first is right for most tensors of the dtype."""
    if codes.bits < 8:
        return [Plan(BitPack(codes.bits), HUFFMAN, (0.0,)), unless_raw(NoFilter(), HUFFMAN)]
    if codes.dtype == "bool":
        packed = BitPack.fitting(codes.data)  # a bool that was viewed from bytes may be neither 0 nor 1
        return ([always(packed, ZSTD)] if packed else []) + [unless_raw(NoFilter(), ZSTD)]
    if is_integer(codes.dtype) and not codes.quantized:
        return _for_integers(codes)
    width = plane_width(codes.dtype)
    if width is None:  # one-byte floats and quantizer codes: as noisy as exponents, single values are not
        plans = [unless_raw(NoFilter(), HUFFMAN), unless_raw(NoFilter(), ZSTD)]
    else:
        plans = [*_planes(width, codes), unless_raw(NoFilter(), ZSTD), unless_raw(Planes((1,) * width), ZSTD)]
    if zeros(codes.data, word_bytes(codes.dtype)) > _MANY_ZEROS:
        plans.append(unless_raw(_bitmap(codes), HUFFMAN))
    return plans


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


def zeros(data: Bytes, width: int) -> float:
    """Return the share of zero words in a sample."""
    words = data.view(WORDS[width])
    sample = words[:: max(1, len(words) // 8192)]
    return 1 - np.count_nonzero(sample) / len(sample)


def _for_integers(codes: Codes) -> list[Plan]:
    if word_bytes(codes.dtype) > 1:
        narrow = Narrow.fitting(codes.data, codes.dtype)
        plans = [unless_raw(narrow, ZSTD)]
        if narrow.narrow > 1:
            plans.append(unless_raw(Narrow.fitting(codes.data, codes.dtype, planes=True), ZSTD))
        return [*plans, unless_raw(NoFilter(), ZSTD)]
    plans = [unless_raw(NoFilter(), ZSTD), unless_raw(NoFilter(), HUFFMAN)]
    packed = BitPack.fitting(codes.data)
    if packed is not None:
        plans.append(always(packed, ZSTD))
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
    return [strides for strides in ((beside,), (above,), (beside, above)) if 0 < max(strides) < whole]


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


def _planes(width: int, codes: Codes) -> list[Plan]:
    """Return planes in groups: each compressible plane by itself, neighbours that are noise together."""
    sizes: list[int] = []
    tries: list[bool] = []
    long_records = not codes.record_bytes or codes.record_bytes >= width * _LONG_RECORD
    for bits in _plane_entropies(width, codes.data):
        compressible = bits < _INCOMPRESSIBLE_BITS
        if sizes and long_records and not compressible and not tries[-1]:
            sizes[-1] += 1
        else:
            sizes.append(1)
            tries.append(compressible)
    if not any(tries):
        return []
    keep = tuple(1 - MINIMUM_SAVING if tried else 0.0 for tried in tries)
    return [Plan(Planes(tuple(sizes)), HUFFMAN, keep, optional=True)]


def _plane_entropies(width: int, codes: Bytes) -> list[float]:
    """Return the order-0 entropy of each plane in bits a byte, from runs spread over the tensor."""
    run = _SAMPLE_RUN * width
    if codes.nbytes <= _SAMPLE_RUNS * run:
        sample = codes
    else:
        starts = np.linspace(0, codes.nbytes - run, _SAMPLE_RUNS).astype(np.int64) // width * width
        sample = np.concatenate([codes[start : start + run] for start in starts.tolist()])
    planes = Planes((1,) * width).split(sample, 1)
    # One count for all planes, each in a range of its own: for a small tensor the calls are what costs.
    values = np.concatenate([plane + np.intp(256 * number) for number, plane in enumerate(planes)])
    counts = np.bincount(values, minlength=256 * width).reshape(width, 256)
    shares = counts / len(planes[0])
    bits = -(shares * np.log2(shares, out=np.zeros_like(shares), where=counts > 0)).sum(axis=1)
    # A small sample looks more regular than its source; the second term corrects that (Miller and Madow, 1955).
    corrected = bits + (np.count_nonzero(counts, axis=1) - 1) / (2 * np.log(2) * len(planes[0]))
    return [float(each) for each in corrected]
