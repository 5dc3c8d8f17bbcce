"""Is the automatic choice a good one? Its size against every candidate's, and what `archive` adds on a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import zstandard
from coders import raw
from torch import Tensor

from tensordb.encoding import CompressionConfig, encode, get_compression_preset, presets
from tensordb.errors import TensorDBError

_CODECS = {"zstd": {"level": 3}, "zstd huffman": {"strategy": "huffman"}, "lz4": {}}
_RUN = 192 << 10


@dataclass(frozen=True, slots=True)
class Choice:
    """Stored bytes of one kind.

    Attributes:
        raw: As they are.
        auto: Chosen by preset `lossless`.
        best: Of the best single candidate for all tensors of the kind.
        candidate: Its name.
        tried: How many candidates took the dtype.
        zstd: Plain zstd 3, one frame a tensor.
    """

    raw: int
    auto: int
    best: int
    candidate: str
    tried: int
    zstd: int


def choose(tensors: Sequence[Tensor]) -> Choice:
    """Encode tensors with every candidate."""
    sizes = {name: size for name, config in candidates().items() if (size := _size(tensors, config)) is not None}
    best = min(sizes, key=lambda name: sizes[name])
    zstd = zstandard.ZstdCompressor(3)
    auto = _size(tensors, get_compression_preset("lossless"))
    return Choice(
        sum(each.nbytes for each in tensors),
        auto or 0,
        sizes[best],
        best,
        len(sizes),
        sum(len(zstd.compress(raw(each))) for each in tensors),
    )


def candidates() -> dict[str, CompressionConfig]:
    """Return every filter this version knows before every fast codec, at the levels that `auto` uses, and raw."""
    return {"raw": CompressionConfig("none"), **dict(_candidates())}


def _candidates() -> Iterator[tuple[str, CompressionConfig]]:
    for filter_ in getattr(presets, "FILTER_NAMES", None) or presets._FILTER_NAMES:
        for name, kwargs in _CODECS.items():
            try:
                yield (
                    f"{filter_} + {name}",
                    CompressionConfig(name.split()[0], compression_kwargs={"filter": filter_, **kwargs}),
                )
            except TensorDBError as error:  # the filter wants parameters, or another codec
                print(f"candidate {filter_} + {name}: LEFT OUT, {error}")


def archive_sample(tensors: Sequence[Tensor], nbytes: int) -> Tensor:
    """Return runs of 192 KiB spread evenly over the tensors, one after the other, as one tensor."""
    flat = torch.cat([each.reshape(-1).view(torch.uint8) for each in tensors])
    count = max(1, nbytes // _RUN)
    last = max(0, len(flat) - _RUN)
    starts = [last * number // max(count - 1, 1) // 8 * 8 for number in range(count)]
    return torch.cat([flat[start : start + _RUN] for start in starts]).view(tensors[0].dtype)


def archive_ratios(sample: Tensor) -> tuple[float, float]:
    """Return the ratios of presets `archive` and `lossless` on a sample; the first is slow."""
    sizes = [encode(sample, get_compression_preset(name)).nbytes for name in ("archive", "lossless")]
    return sample.nbytes / sizes[0], sample.nbytes / sizes[1]


def archive_ratio(tensors: Sequence[Tensor]) -> float:
    """Return the ratio of preset `archive` on all tensors; slow."""
    archive = get_compression_preset("archive")
    return sum(each.nbytes for each in tensors) / sum(encode(each, archive).nbytes for each in tensors)


def _size(tensors: Sequence[Tensor], config: CompressionConfig) -> int | None:
    try:
        return sum(encode(each, config).nbytes for each in tensors)
    except TensorDBError:  # the filter does not take this dtype
        return None
