"""Every way to write that the package knows, taken from its registries, so that a new one joins without a word here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from tensordb.encoding import COMPRESSION_PRESETS, CompressionConfig
from tensordb.encoding.filters import FILTER_NAMES
from tensordb.encoding.presets import COMPRESSION_NAMES
from tensordb.encoding.quantizers import QUANTIZER_NAMES
from tensordb.errors import InvalidInputError, MissingDependencyError

# Parameters to try on every codec and every quantizer; those that do not know them are left out.
_CODEC_TRIES: list[dict[str, Any]] = [{}, {"level": 1}, {"mode": "hc"}, {"strategy": "huffman"}]
_QUANTIZER_TRIES: list[dict[str, Any]] = [
    {},
    {"mode": "symmetric"},
    {"granularity": "per_channel", "axis": -1},
    {"granularity": "per_group", "size": 32},
    {"granularity": "per_group", "size": 24, "mode": "symmetric"},
    {"max_error": 1e-3},
    {"target_bits": 5},
]


def _possible(configurations: Iterator[Mapping[str, Any]]) -> list[CompressionConfig]:
    made: list[CompressionConfig] = []
    for each in configurations:
        try:
            config = CompressionConfig.from_dict(each)
        except (InvalidInputError, MissingDependencyError):
            continue
        if config not in made:
            made.append(config)
    return made


COMPRESSIONS = _possible(
    {"compression": name, "compression_kwargs": kwargs | filtered}
    for name, kwargs, filtered in itertools.product(
        COMPRESSION_NAMES, _CODEC_TRIES, [{}, *({"filter": name} for name in FILTER_NAMES)]
    )
)
"""Each compression, alone and after each filter, lossless."""

QUANTIZATIONS = _possible(
    {"quantization": name, "quantization_kwargs": kwargs}
    for name, kwargs in itertools.chain(
        itertools.product(QUANTIZER_NAMES[1:], _QUANTIZER_TRIES),
        ((preset.quantization, preset.quantization_kwargs) for preset in COMPRESSION_PRESETS.values()),
    )
    if name != "none"
)
"""Each quantizer, with the compression that is chosen by itself."""
