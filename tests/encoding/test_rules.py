"""Rules of a config: the first that matches decides, they survive JSON, and nonsense is refused with its place."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch

from tensordb.encoding import CompressionConfig, PayloadReader, Rule, encode, get_compression_preset
from tensordb.errors import InvalidInputError, TensorDBError, UnknownPresetError
from tensordb.model import TensorSpec

FLOATS = TensorSpec("float32", (64, 32))


@pytest.mark.parametrize(
    ("condition", "matching", "others"),
    [
        ({"name": "*.bias"}, ["layer.0.bias", ".bias"], ["bias", "layer.bias.x", "layer.BIAS", "", None]),
        ({"name": "encoder.layer.*"}, ["encoder.layer.0.weight"], ["encoder.layers", "x.encoder.layer.0"]),
        ({"name": ("*norm*", "*.bias")}, ["norm", "a.bias"], ["a.weight", None]),
        ({"name": "layer.[0-3].w?"}, ["layer.0.w1"], ["layer.4.w1", "layer.0.w"]),
        ({"name": "*"}, ["", "a\nb", "日本"], [None]),
        ({"name": "a[b"}, ["a[b"], ["ab"]),
    ],
)
def test_names_match_as_in_a_shell(condition: dict[str, Any], matching: list[str], others: list[Any]) -> None:
    rule = Rule(**condition, use="none")
    assert [name for name in [*matching, *others] if rule.matches(name, FLOATS)] == matching


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"dtype": torch.float32}, True),
        ({"dtype": "torch.float32"}, True),
        ({"dtype": ["float16", torch.float32]}, True),
        ({"dtype": ("float16", "bfloat16")}, False),
        ({"ndim": 2}, True),
        ({"ndim": 1}, False),
        ({"ndim": (1, 2)}, True),
        ({"ndim": [3, 4]}, False),
        ({"min_nbytes": 64 * 32 * 4}, True),
        ({"min_nbytes": 64 * 32 * 4 + 1}, False),
        ({"max_nbytes": 64 * 32 * 4}, True),
        ({"max_nbytes": 64 * 32 * 4 - 1}, False),
        ({"ndim": 2, "dtype": "float32", "min_nbytes": 1, "max_nbytes": 1 << 20, "name": "w"}, True),
        ({"ndim": 2, "dtype": "float32", "name": "b"}, False),
        ({"ndim": 1, "dtype": "float32", "name": "w"}, False),
    ],
    ids=str,
)
def test_every_condition_given_must_hold(condition: dict[str, Any], expected: bool) -> None:
    assert Rule(**condition, use="none").matches("w", FLOATS) is expected


def test_sizes_and_dimensions_of_extreme_tensors() -> None:
    assert Rule(ndim=0, use="none").matches(None, TensorSpec("int8", ()))
    assert Rule(max_nbytes=0, use="none").matches(None, TensorSpec("int8", (0, 5)))
    assert Rule(min_nbytes=2**80, use="none").matches(None, TensorSpec("float64", (2**62, 2**62)))


def test_the_first_rule_that_matches_decides_and_else_the_config_itself() -> None:
    config = CompressionConfig(
        "lz4", rules=[Rule(name="a*", use="none"), Rule(name="ab", use="archive"), Rule(ndim=1, use="lossless")]
    )
    vector = TensorSpec("float32", (4,))
    assert config.for_tensor("ab", FLOATS).compression == "none"
    assert config.for_tensor("ab", vector).compression == "none"
    assert config.for_tensor("b", vector).compression == "auto"
    assert config.for_tensor(None, vector).compression == "auto"
    assert config.for_tensor("b", FLOATS) is config


def test_encode_applies_rules_to_the_record_and_not_to_the_page() -> None:
    config = CompressionConfig(
        "none", rules=[Rule(ndim=1, max_nbytes=256, use="fp16_only"), Rule(name="k", use="fast")]
    )
    page = torch.randn(100, 64)
    assert encode(page, config, page=True).encoding.quantization == "fp16"
    assert encode(page, config).encoding.quantization == "none"
    assert encode(page, config, name="k").encoding.compression == "planes+lz4"
    buffers = encode(page, config, page=True, name="k").buffers
    assert PayloadReader(b"".join(buffers)).encoding.quantization == "fp16"


RULES = [
    Rule(name=("*.bias", "*norm*"), use="lossless"),
    Rule(name="embeddings.*", dtype=(torch.float32, "bfloat16"), use="int8_only"),
    Rule(ndim=(2, 4), min_nbytes=1 << 10, max_nbytes=1 << 30, use=CompressionConfig("zstd", "fp16")),
]


def test_a_config_with_rules_survives_json_pickle_and_copies() -> None:
    config = CompressionConfig("lz4", compression_kwargs={"mode": "hc"}, rules=RULES)
    for again in (
        CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))),
        CompressionConfig.from_dict(config.to_dict()),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        eval(repr(config), {"CompressionConfig": CompressionConfig, "Rule": Rule}),
    ):
        assert again == config
        assert hash(again) == hash(config)
    assert config != CompressionConfig("lz4", compression_kwargs={"mode": "hc"})
    assert "rules" not in CompressionConfig("lz4").to_dict()


def test_what_a_preset_is_when_the_config_is_made_is_what_is_kept() -> None:
    config = CompressionConfig(rules=RULES)
    assert config.rules[1].use == get_compression_preset("int8_only")
    used = config.to_dict()["rules"][1]["use"]
    assert used["quantization"] == "int8"
    assert CompressionConfig(**used) == get_compression_preset("int8_only")


def test_a_config_written_by_hand_may_name_presets() -> None:
    config = CompressionConfig.from_dict({"rules": [{"name": "*.bias", "use": "none"}]})
    assert config == CompressionConfig(rules=[Rule(name="*.bias", use="none")])


def test_rules_cannot_be_changed_through_what_they_were_made_from() -> None:
    names, rules = ["a"], [Rule(name="a", use="none")]
    rule, config = Rule(name=names, use="none"), CompressionConfig(rules=rules)
    names.append("b")
    rules.clear()
    assert not rule.matches("b", FLOATS)
    assert len(config.rules) == 1
    with pytest.raises(AttributeError):
        rule.name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "condition"),
        ({"name": ""}, "pattern"),
        ({"name": []}, "name is empty"),
        ({"name": ["a", 3]}, "3"),
        ({"name": 3}, "3"),
        ({"name": b"a"}, "pattern"),
        ({"dtype": "float31"}, "float31.*float32"),
        ({"dtype": ()}, "dtype is empty"),
        ({"dtype": torch.quint8}, "quint8"),
        ({"dtype": [["float32"]]}, "unknown dtype"),
        ({"ndim": -1}, "-1"),
        ({"ndim": True}, "True"),
        ({"ndim": "2"}, "'2'"),
        ({"ndim": (1, 2, 3)}, "least and the most"),
        ({"ndim": (3, 2)}, "3 to 2"),
        ({"ndim": (2, None)}, "None"),
        ({"min_nbytes": -1}, "min_nbytes"),
        ({"max_nbytes": 1.5}, "max_nbytes"),
        ({"min_nbytes": 2, "max_nbytes": 1}, "2 to 1"),
    ],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        Rule(**arguments, use="none")


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([Rule(ndim=1, use="none"), Rule(ndim=2, use="nope")], r"rules\[1\].*nope.*lossless"),
        ([Rule(ndim=1, use=3)], r"rules\[0\].*int"),  # type: ignore[arg-type]
        ([Rule(ndim=1, use={"compression": "zstd"})], r"rules\[0\].*dict"),  # type: ignore[arg-type]
        ([Rule(ndim=1, use=CompressionConfig(rules=[Rule(ndim=2, use="none")]))], r"rules\[0\].*rules itself"),
        ([{"ndim": 1, "use": "none"}], r"rules\[0\].*Rule"),
        (Rule(ndim=1, use="none"), "list"),
        ("none", "list"),
        (None, "list"),
    ],
    ids=str,
)
def test_rules_that_make_no_sense_are_refused_with_their_place(rules: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        CompressionConfig(rules=rules)
    assert isinstance(caught.value, TensorDBError)


def nested(depth: int) -> dict[str, Any]:
    config: dict[str, Any] = {"compression": "none"}
    for _ in range(depth):
        config = {"rules": [{"ndim": 1, "use": config}]}
    return config


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rules": {"ndim": 1, "use": "none"}}, "list"),
        ({"rules": None}, "list"),
        ({"rules": ["none"]}, r"rules\[0\].*'none' is no rule"),
        ({"rules": [{"ndim": 1}]}, r"rules\[0\].*'use'"),
        ({"rules": [{"use": "none"}]}, r"rules\[0\].*condition"),
        ({"rules": [{"ndim": 1, "use": "none"}, {"shape": 1, "use": "none"}]}, r"rules\[1\].*'shape'.*ndim"),
        ({"rules": [{3: 1, "use": "none"}]}, "no 3"),
        ({"rules": [{"ndim": 1, "use": {"codec": "zstd"}}]}, r"rules\[0\].*'codec'"),
        ({"rules": [{"ndim": 1, "use": 5}]}, "int"),
        (nested(2), "rules itself"),
        (nested(100_000), "rules itself"),
        (None, "to_dict"),
        ([], "to_dict"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_forged_dict_is_refused(values: Any, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        CompressionConfig.from_dict(values)


def test_an_unknown_preset_in_a_rule_is_the_error_of_an_unknown_preset() -> None:
    with pytest.raises(UnknownPresetError):
        CompressionConfig(rules=[Rule(ndim=1, use="nope")])
