"""What a user asks for: CompressionConfig, and the named presets. It decides what is written, never what is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tensordb.encoding.codecs import CODEC_NAMES, Codec, codec_named
from tensordb.encoding.filters import FILTER_NAMES
from tensordb.encoding.quantizers import (
    QUANTIZER_NAMES,
    Quantizer,
    granularity_from,
    granularity_to_dict,
    quantizer_named,
)
from tensordb.encoding.rules import Rule, check_flat, rules_from, settled, use_of_first
from tensordb.errors import InvalidInputError, UnknownPresetError
from tensordb.model import TensorSpec

COMPRESSION_NAMES = ("none", "auto", "best", *CODEC_NAMES[1:])


@dataclass(frozen=True, slots=True, repr=False)
class FrozenMapping(Mapping[str, Any]):
    """A read-only mapping of plain values that can be hashed, compared and pickled."""

    pairs: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, key: str) -> Any:
        for known, value in self.pairs:
            if known == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, _ in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return repr(dict(self.pairs))


@dataclass(frozen=True, slots=True)
class CompressionConfig:
    """How tensors are encoded from now on.

    Attributes:
        compression: ``"none"``, ``"auto"`` (filter and codec chosen by dtype and a sample of the values, nothing where
            that saves less than 1.5 %), ``"best"`` (every candidate on a sample, then the best few in full, pcodec
            among them where it is installed), ``"zstd"``, ``"lz4"``, ``"gzip"``, ``"zlib"``, ``"lzma"`` or
            ``"pcodec"`` (needs the extra ``tensordb[archive]``).
        quantization: ``"none"``, ``"fp16"``, ``"bf16"``, ``"int8"``, ``"int4"``, ``"nf4"``, ``"fp8_e4m3"``,
            ``"fp8_e5m2"`` or ``"uniform"``. Applies to float16, bfloat16, float32 and float64 tensors of at least 16
            elements where it makes them smaller; others stay lossless.
        compression_kwargs: Parameters of the codec, such as ``{"level": 3}``; for lz4 also ``"mode"``: ``"fast"`` or
            ``"hc"``. ``"filter"`` names what comes before any codec, where it applies to the dtype and the values:
            ``"planes"``, ``"bit_pack"``, ``"narrow"``, ``"stride_delta"`` or ``"zero_bitmap"``.
        quantization_kwargs: For all but fp16 and bf16: ``"granularity"`` (``"per_tensor"``, ``"per_row"``,
            ``"per_channel"`` with ``"axis"``, ``"per_group"`` with ``"size"``, or a value such as ``PerGroup(128)``)
            and ``"scale_dtype"`` (``"float32"``, ``"bfloat16"``). For int8 and int4 ``"mode"`` (``"affine"``,
            ``"symmetric"``). For uniform exactly one of ``"step"`` (a fraction of the RMS), ``"max_error"`` (with
            ``"relative": True`` a fraction of the largest magnitude) and ``"target_bits"``.
        rules: What to encode in another way, by name, dtype, dimensions or size. The first `Rule` that matches decides;
            what none matches is encoded as the rest of this config says.

    Raises:
        UnknownPresetError: for an unknown codec or quantizer; the message lists those that exist.
        InvalidInputError: for an unknown parameter or a value out of range.

    >>> CompressionConfig("zstd", compression_kwargs={"level": 9}).to_dict()["compression"]
    'zstd'

    Embeddings in int8, matrices in fp16, and everything else (biases, norms) lossless:

    >>> mixed = CompressionConfig(
    ...     "auto", rules=[Rule(name="embeddings.*", use="maximum"), Rule(ndim=(2, 4), min_nbytes=4096, use="balanced")]
    ... )
    >>> mixed.for_tensor("layer.0.weight", TensorSpec("float32", (64, 64))).quantization
    'fp16'
    >>> mixed.for_tensor("layer.0.bias", TensorSpec("float32", (64,))).quantization
    'none'
    """

    compression: str = "auto"
    quantization: str = "none"
    compression_kwargs: Mapping[str, Any] = FrozenMapping()
    quantization_kwargs: Mapping[str, Any] = FrozenMapping()
    rules: Sequence[Rule] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "compression_kwargs", _frozen("compression_kwargs", self.compression_kwargs))
        object.__setattr__(self, "quantization_kwargs", _frozen("quantization_kwargs", self.quantization_kwargs))
        self._check_compression()
        self._check_quantization()
        object.__setattr__(self, "rules", settled(self.rules, _used))

    def for_tensor(self, name: str | None, spec: TensorSpec) -> CompressionConfig:
        """Return what a tensor is encoded with: what the first rule that matches uses, or this config itself.

        Args:
            name: The tensor's name, None when it has none.
            spec: Of the tensor; of one record where it is to be in a page.
        """
        return (use_of_first(self.rules, name, spec) or self) if self.rules else self

    def codec(self) -> Codec:
        """Return the codec of a compression that names one."""
        return codec_named(self.compression, **self.codec_parameters)

    @property
    def codec_parameters(self) -> dict[str, Any]:
        """What of `compression_kwargs` is for the codec."""
        return {key: value for key, value in self.compression_kwargs.items() if key != "filter"}

    @property
    def filter(self) -> str:
        """Name of the filter before a codec that is named."""
        name: str = self.compression_kwargs.get("filter", "none")
        return name

    def quantizer(self) -> Quantizer | None:
        """Return the quantizer, or None for lossless."""
        if self.quantization == "none":
            return None
        return quantizer_named(self.quantization, **self.quantization_kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON values, without ``"rules"`` when there are none."""
        rules = {"rules": [rule.to_dict() for rule in self.rules]} if self.rules else {}
        return {
            "compression": self.compression,
            "quantization": self.quantization,
            "compression_kwargs": dict(self.compression_kwargs),
            "quantization_kwargs": dict(self.quantization_kwargs),
            **rules,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompressionConfig:
        """Return the configuration that `to_dict` gave."""
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"{values!r} is no compression config; give the mapping that to_dict returned")
        known = cls.__dataclass_fields__
        if unknown := [key for key in values if key not in known]:
            raise InvalidInputError(f"a compression config has no {unknown[0]!r}; it has: {', '.join(known)}")
        return cls(**{**values, "rules": rules_from(values.get("rules", ()), cls.from_dict)})

    def _check_compression(self) -> None:
        if self.compression not in COMPRESSION_NAMES:
            raise UnknownPresetError(
                f"unknown compression {self.compression!r}; use one of: {', '.join(COMPRESSION_NAMES)}"
            )
        if self.compression in ("none", "auto", "best"):
            if self.compression_kwargs:
                raise InvalidInputError(
                    f"compression {self.compression!r} has no parameter {next(iter(self.compression_kwargs))!r}; "
                    "name a codec to give it parameters"
                )
            return
        if self.compression_kwargs.get("filter", "none") not in FILTER_NAMES:
            raise InvalidInputError(
                f"unknown filter {self.compression_kwargs['filter']!r}; use one of: {', '.join(FILTER_NAMES)}"
            )
        self.codec()

    def _check_quantization(self) -> None:
        if self.quantization not in QUANTIZER_NAMES:
            raise UnknownPresetError(
                f"unknown quantization {self.quantization!r}; use one of: {', '.join(QUANTIZER_NAMES)}"
            )
        if self.quantization == "none" and self.quantization_kwargs:
            raise InvalidInputError("quantization 'none' has no parameters; name a quantizer to give it some")
        self.quantizer()


def _used(use: Any) -> CompressionConfig:
    """Return the config that a rule uses."""
    if isinstance(use, str):
        use = get_compression_preset(use)
    if not isinstance(use, CompressionConfig):
        raise InvalidInputError(f"use is a {type(use).__name__}; give the name of a preset or a CompressionConfig")
    check_flat(use.rules)
    return use


def _frozen(field: str, values: Mapping[str, Any] | None) -> FrozenMapping:
    """Return `values` sorted by key, with a granularity in its JSON form."""
    if not isinstance(values, Mapping | None):
        raise InvalidInputError(
            f"{field} must be a mapping, got {type(values).__name__}; use {{'level': 3}} or similar"
        )
    plain = dict(values or {})
    granularity = plain.get("granularity")
    if granularity is not None and not isinstance(granularity, str):
        plain |= granularity_to_dict(granularity_from(granularity))
    for key, value in plain.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | bool):
            raise InvalidInputError(f"{field}[{key!r}] is {value!r}; keys are names, values are numbers or names")
    return FrozenMapping(tuple(sorted(plain.items())))


_INT8 = {"granularity": "per_group", "size": 128, "mode": "affine", "scale_dtype": "bfloat16"}
COMPRESSION_PRESETS: Final[Mapping[str, CompressionConfig]] = MappingProxyType(
    {
        "none": CompressionConfig("none"),
        "fast": CompressionConfig("lz4", compression_kwargs={"filter": "planes"}),
        "lossless": CompressionConfig("auto"),
        "archive": CompressionConfig("best"),
        "balanced": CompressionConfig("auto", "fp16"),
        "maximum": CompressionConfig("auto", "int8", quantization_kwargs=_INT8),
        "fp16_only": CompressionConfig("none", "fp16"),
        "bf16_only": CompressionConfig("none", "bf16"),
        "int8_only": CompressionConfig("none", "int8", quantization_kwargs=_INT8),
        "q6": CompressionConfig("auto", "uniform", quantization_kwargs={"step": 0.06}),
        "q5": CompressionConfig("auto", "uniform", quantization_kwargs={"step": 0.12}),
        "q4": CompressionConfig("auto", "uniform", quantization_kwargs={"step": 0.20}),
    }
)
"""The named presets; ``"lossless"`` is the default."""


def get_compression_preset(name: str) -> CompressionConfig:
    """Return the preset called `name`.

    Raises:
        UnknownPresetError: if there is none; the message lists those that exist.

    >>> get_compression_preset("balanced").quantization
    'fp16'
    """
    preset = COMPRESSION_PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        raise UnknownPresetError(f"unknown preset {name!r}; use one of: {', '.join(COMPRESSION_PRESETS)}")
    return preset
