"""Presets and configurations: what exists is listed, what does not is refused, and all of it survives JSON."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch

from tensordb.encoding import COMPRESSION_PRESETS, CompressionConfig, PayloadReader, encode, get_compression_preset
from tensordb.encoding.quantizers import PerChannel, PerGroup, PerRow
from tensordb.errors import InvalidInputError, TensorDBError, UnknownPresetError

LOSSY = {"balanced": 1e-3, "maximum": 0.02, "fp16_only": 1e-3, "bf16_only": 5e-3, "int8_only": 0.02}
LOSSY |= {"q6": 0.02, "q5": 0.036, "q4": 0.06}
FIXED_WIDTH = {"none": 4, "fp16_only": 2, "bf16_only": 2, "int8_only": 1}


def test_the_presets_are_those_of_the_design() -> None:
    assert set(COMPRESSION_PRESETS) == {"none", "fast", "lossless", "archive", *LOSSY}


@pytest.mark.parametrize("name", COMPRESSION_PRESETS)
def test_each_preset_gives_the_fidelity_it_promises(name: str) -> None:
    tensor = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)) * 0.05
    encoded = encode(tensor, get_compression_preset(name))
    reader = PayloadReader(b"".join(encoded.buffers))
    restored = reader.decode()
    assert reader.encoding == encoded.encoding
    relative = float((restored - tensor).norm() / tensor.norm())
    assert reader.encoding.error.relative_l2 == pytest.approx(relative, rel=1e-3)
    if name in LOSSY:
        assert 0 < relative < LOSSY[name]
    else:
        assert torch.equal(restored, tensor)
    if name in FIXED_WIDTH:
        assert reader.encoding.compression == "none"
        assert encoded.nbytes >= tensor.numel() * FIXED_WIDTH[name]


def test_smaller_presets_are_smaller() -> None:
    tensor = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)) * 0.05
    size = {name: encode(tensor, config).nbytes for name, config in COMPRESSION_PRESETS.items()}
    assert size["maximum"] < size["balanced"] < size["lossless"] < size["fast"] < size["none"]
    assert size["q4"] < size["q5"] < size["q6"] < size["maximum"]
    assert size["archive"] <= size["lossless"] * 1.001
    assert tensor.nbytes / size["lossless"] > 1.18


def test_the_table_of_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        COMPRESSION_PRESETS["none"] = CompressionConfig()  # type: ignore[index]


def test_an_unknown_preset_lists_those_that_exist() -> None:
    with pytest.raises(UnknownPresetError, match=r"lossless.*maximum"):
        get_compression_preset("smallest")
    with pytest.raises(ValueError, match="lossless"):
        get_compression_preset(None)  # type: ignore[arg-type]


CONFIGS = [
    *COMPRESSION_PRESETS.values(),
    CompressionConfig("zstd", compression_kwargs={"level": 22, "filter": "planes"}),
    CompressionConfig("lz4", compression_kwargs={"mode": "hc", "level": 12}),
    CompressionConfig(quantization="int8", quantization_kwargs={"granularity": PerChannel(1), "mode": "symmetric"}),
    CompressionConfig(quantization="int8", quantization_kwargs={"granularity": 64}),
    CompressionConfig(quantization="uniform", quantization_kwargs={"max_error": 0.01, "relative": True}),
    CompressionConfig(quantization="fp8_e4m3", quantization_kwargs={"granularity": PerRow()}),
]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_a_config_survives_json_pickle_and_copies(config: CompressionConfig) -> None:
    for again in (
        CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
    ):
        assert again == config
        assert hash(again) == hash(config)


def test_a_config_cannot_be_changed_through_what_it_was_made_from() -> None:
    kwargs: dict[str, Any] = {"level": 3}
    config = CompressionConfig("zstd", compression_kwargs=kwargs)
    kwargs["level"] = 9
    assert config.compression_kwargs["level"] == 3
    with pytest.raises(AttributeError):
        config.compression = "lz4"  # type: ignore[misc]


def test_granularity_values_and_names_are_the_same_config() -> None:
    by_name = CompressionConfig(quantization="int8", quantization_kwargs={"granularity": "per_group", "size": 64})
    by_value = CompressionConfig(quantization="int8", quantization_kwargs={"granularity": PerGroup(64)})
    assert by_name == by_value


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        ({"compression": "brotli"}, "zstd, lz4, gzip, zlib, lzma"),
        ({"compression": "zstd", "compression_kwargs": {"level": 23}}, "1 to 22"),
        ({"compression": "gzip", "compression_kwargs": {"level": 0}}, "1 to 9"),
        ({"compression": "zstd", "compression_kwargs": {"speed": 1}}, "level"),
        ({"compression": "zstd", "compression_kwargs": {"filter": "shuffle"}}, "planes"),
        ({"compression": "auto", "compression_kwargs": {"level": 3}}, "name a codec"),
        ({"compression": "zstd", "compression_kwargs": {"level": [3]}}, "numbers"),
        ({"compression": "zstd", "compression_kwargs": 3}, "mapping"),
        ({"quantization": "int3"}, "fp16, bf16, int8"),
        ({"quantization": "fp16", "quantization_kwargs": {"granularity": "per_tensor"}}, "no parameter"),
        ({"quantization": "none", "quantization_kwargs": {"axis": 0}}, "no parameters"),
        ({"quantization": "int8", "quantization_kwargs": {"granularity": "per_block"}}, "per_channel"),
        ({"quantization": "int4", "quantization_kwargs": {"scale_dtype": "float16"}}, "float32, bfloat16"),
        ({"quantization": "nf4", "quantization_kwargs": {"mode": "affine"}}, "granularity, scale_dtype"),
        ({"quantization": "uniform"}, "exactly one of step, max_error"),
        ({"quantization": "uniform", "quantization_kwargs": {"step": 0.1, "target_bits": 4}}, "exactly one"),
        ({"quantization": "uniform", "quantization_kwargs": {"step": 0.1, "relative": True}}, "exactly one"),
        ({"quantization": "uniform", "quantization_kwargs": {"target_bits": 12}}, "1.5 to 8"),
        ({"quantization": "uniform", "quantization_kwargs": {"max_error": -1.0}}, "max_error"),
        ({"quantization": "uniform", "quantization_kwargs": {"max_error": math.nan}}, "max_error"),
        ({"quantization": "uniform", "quantization_kwargs": {"max_error": 0.1, "granularity": 64}}, "granularity"),
    ],
    ids=str,
)
def test_a_bad_config_is_refused_at_once_with_what_would_do(arguments: dict[str, Any], listed: str) -> None:
    with pytest.raises(ValueError, match=listed) as caught:
        CompressionConfig(**arguments)
    assert isinstance(caught.value, TensorDBError)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="codec"):
        CompressionConfig.from_dict({"codec": "zstd"})
