"""What to write a tensor with: filter and codec, chosen from the configuration, the dtype and a sample of the bytes.

A plan is only ever a way to write; a reader never asks how it was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensordb.encoding.codecs import Codec, codec_named
from tensordb.encoding.filters import Filter, NoFilter, Planes, plane_width
from tensordb.encoding.presets import CompressionConfig

MINIMUM_SAVING = 0.015
_SAMPLE_RUNS, _SAMPLE_RUN = 16, 512
_INCOMPRESSIBLE_BITS = 7.8
_WORTH_COMPRESSING = 128
_LONG_RECORD = 32

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Plan:
    """A way to write.

    Attributes:
        filter: What cuts chunks into groups.
        codec: What compresses a group.
        keep_below: For each group, the share of its size below which its compressed form is kept; 0.0 not to try.
        optional: Whether storing raw is preferred when the plan saves less than ``MINIMUM_SAVING``.
    """

    filter: Filter
    codec: Codec
    keep_below: tuple[float, ...]
    optional: bool = False


RAW_PLAN = Plan(NoFilter(), codec_named("none"), (0.0,))


def plans_for(config: CompressionConfig, dtype: str, codes: Bytes, record_bytes: int, quantized: bool) -> list[Plan]:
    """Return the plans to try; the smallest result is to be kept.

    Args:
        config: What the user asked for.
        dtype: Of the codes.
        codes: Their bytes.
        record_bytes: Of a page's record; 0 when this is no page.
        quantized: Whether the codes are those of a quantizer.
    """
    if config.compression == "none" or codes.nbytes == 0:
        return [RAW_PLAN]
    width = plane_width(dtype)
    if config.compression == "auto":
        return [_auto(width, dtype, codes, record_bytes, quantized)]
    if config.compression == "best":
        return [RAW_PLAN, *_every(width)]
    return [_always(config.codec(), width if config.planes else None)]


def _auto(width: int | None, dtype: str, codes: Bytes, record_bytes: int, quantized: bool) -> Plan:
    if codes.nbytes < _WORTH_COMPRESSING:
        return RAW_PLAN
    if width is not None:
        return _planes(width, codes, record_bytes)
    # One-byte floats and quantizer codes are as noisy as exponents: repetitions are rare, single values are not.
    noisy = quantized or dtype.startswith("float8")
    codec = codec_named("zstd", strategy="huffman") if noisy else codec_named("zstd")
    return Plan(NoFilter(), codec, (1 - MINIMUM_SAVING,), optional=True)


def _planes(width: int, codes: Bytes, record_bytes: int) -> Plan:
    """Return planes in groups: each compressible plane by itself, neighbours that are noise together."""
    sizes: list[int] = []
    tries: list[bool] = []
    long_records = not record_bytes or record_bytes >= width * _LONG_RECORD
    for bits in _plane_entropies(width, codes):
        compressible = bits < _INCOMPRESSIBLE_BITS
        if sizes and long_records and not compressible and not tries[-1]:
            sizes[-1] += 1
        else:
            sizes.append(1)
            tries.append(compressible)
    if not any(tries):
        return RAW_PLAN
    keep = tuple(1 - MINIMUM_SAVING if tried else 0.0 for tried in tries)
    return Plan(Planes(tuple(sizes)), codec_named("zstd", strategy="huffman"), keep, optional=True)


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


def _every(width: int | None) -> list[Plan]:
    codecs = [codec_named("zstd", level=19), codec_named("lzma", level=6)]
    if width is None:
        return [_always(codec, None) for codec in codecs]
    huffman = codec_named("zstd", strategy="huffman")
    return [_always(codec, words) for words in (width, None) for codec in codecs] + [_always(huffman, width)]


def _always(codec: Codec, width: int | None) -> Plan:
    """Return a plan that tries every group and keeps whatever is smaller."""
    filter_: Filter = NoFilter() if width is None else Planes((1,) * width)
    return Plan(filter_, codec, (1.0,) * len(filter_.groups))
