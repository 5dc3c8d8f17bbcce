"""Competitors in quantizing weights: tensordb's configurations and the peers, each as functions of one matrix.

What a peer stores is counted at its densest: four-bit codes as four bits, even where its tensor on the CPU keeps a byte
for each. Configurations unknown to the installed tensordb and peers that are not installed are named with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensordb.encoding import CompressionConfig, PayloadReader, encode, get_compression_preset
from tensordb.errors import TensorDBError


@dataclass(frozen=True, slots=True)
class WeightCoder:
    """One competitor.

    Attributes:
        name: As tables show it.
        quantize: From a float32 matrix to what is stored.
        dequantize: From what is stored to float32, into a tensor where the competitor can.
        nbytes: Of what is stored.
        store: From what `quantize` gave to the stored form; done outside the timed part.
    """

    name: str
    quantize: Callable[[Tensor], Any]
    dequantize: Callable[[Any, Tensor], Tensor]
    nbytes: Callable[[Any], float]
    store: Callable[[Any], Any] = lambda made: made


def weight_coders() -> tuple[dict[str, WeightCoder], list[str]]:
    """Return the competitors by name, and a line for each that is left out."""
    found: dict[str, WeightCoder] = {}
    missing: list[str] = []
    for name, make in _OURS.items():
        try:
            found[name] = _tensordb(name, make())
        except TensorDBError as error:
            missing.append(f"{name}: LEFT OUT, {str(error).partition(';')[0]}")
    for package, peers in {"bitsandbytes": _bitsandbytes, "torchao": _torchao, "optimum-quanto": _quanto}.items():
        try:
            found |= {coder.name: coder for coder in peers()}
        except ImportError as error:
            missing.append(f"{package}: LEFT OUT, {error}")
    return found, missing


def _config(quantization: str, **kwargs: Any) -> Callable[[], CompressionConfig]:
    return lambda: CompressionConfig("auto", quantization, quantization_kwargs=kwargs)


def _preset(name: str) -> Callable[[], CompressionConfig]:
    return lambda: get_compression_preset(name)


_OURS: Mapping[str, Callable[[], CompressionConfig]] = {
    "tensordb balanced": _preset("balanced"),
    "tensordb maximum": _preset("maximum"),
    "tensordb int8_only": _preset("int8_only"),
    "tensordb int8 group 128": _config("int8", granularity="per_group", size=128, mode="symmetric"),
    "tensordb int8 channel": _config("int8", granularity="per_channel", axis=0, mode="symmetric"),
    "tensordb int4 group 64": _config("int4", granularity="per_group", size=64),
    "tensordb nf4 group 64": _config("nf4", granularity="per_group", size=64),
    "tensordb fp8_e4m3": _config("fp8_e4m3"),
    "tensordb fp8_e5m2": _config("fp8_e5m2"),
    "tensordb q6": _preset("q6"),
    "tensordb q5": _preset("q5"),
    "tensordb q4": _preset("q4"),
}


def _tensordb(name: str, config: CompressionConfig) -> WeightCoder:
    return WeightCoder(
        name,
        lambda weight: encode(weight, config),
        lambda payload, out: PayloadReader(payload).decode(out),
        len,
        lambda encoded: b"".join(encoded.buffers),
    )


def _bitsandbytes() -> Iterator[WeightCoder]:
    from bitsandbytes import functional as bnb

    def four_bit(kind: str, nested: bool) -> WeightCoder:
        return WeightCoder(
            f"bitsandbytes {kind} block 64{' nested' if nested else ''}",
            lambda weight: bnb.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested),
            lambda stored, _: bnb.dequantize_4bit(*stored),
            lambda stored: stored[0].nbytes + _tensor_bytes(stored[1].as_dict(packed=True).values()),
        )

    yield from (four_bit("nf4", False), four_bit("nf4", True), four_bit("fp4", False))
    yield WeightCoder(
        "bitsandbytes int8 block 256",
        lambda weight: bnb.quantize_blockwise(weight, blocksize=256),
        lambda stored, _: bnb.dequantize_blockwise(*stored),
        lambda stored: stored[0].nbytes + _tensor_bytes([stored[1].absmax, stored[1].code]),
    )
    yield WeightCoder(
        "bitsandbytes int8 row",
        lambda weight: bnb.int8_vectorwise_quant(weight.half())[:2],
        lambda stored, _: bnb.int8_vectorwise_dequant(*stored),
        _tensor_bytes,
    )


def _torchao() -> Iterator[WeightCoder]:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    def coder(name: str, config: Any, bits: int) -> WeightCoder:
        def quantize(weight: Tensor) -> Any:
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            quantize_(layer, config)
            return layer.weight

        def nbytes(stored: Any) -> float:
            # A symmetric zero point is always zero: nothing that a file would have to hold.
            return stored.qdata.numel() * bits / 8 + stored.scale.nbytes

        return WeightCoder(f"torchao {name}", quantize, lambda stored, _: stored.dequantize(), nbytes)

    def groups(bits: int, size: int, **kwargs: Any) -> Any:
        dtype = {4: torch.int4, 5: torch.int5, 6: torch.int6, 8: torch.int8}[bits]
        return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(size), **kwargs)

    yield coder("int8 row", Int8WeightOnlyConfig(), 8)
    for bits, size in ((8, 128), (6, 128), (5, 128), (4, 64), (4, 128)):
        yield coder(f"int{bits} group {size}", groups(bits, size), bits)
    hqq = groups(4, 64, intx_choose_qparams_algorithm="hqq_scale_only")
    yield coder("int4 group 64 hqq", hqq, 4)


def _quanto() -> Iterator[WeightCoder]:
    from optimum.quanto import (
        AbsmaxOptimizer,
        HqqOptimizer,
        MaxOptimizer,
        qfloat8_e4m3fn,
        qint2,
        qint4,
        qint8,
        quantize_weight,
    )

    def bytes_coder(name: str, qtype: Any) -> WeightCoder:
        return WeightCoder(
            f"quanto {name}",
            lambda weight: quantize_weight(weight, qtype, 0, AbsmaxOptimizer()(weight, qtype, 0)),
            lambda stored, _: stored.dequantize(),
            lambda stored: _tensor_bytes([stored._data, stored._scale]),
        )

    def bits_coder(name: str, qtype: Any, optimizer: Any, size: int) -> WeightCoder:
        def quantize(weight: Tensor) -> Any:
            scale, shift = optimizer(weight, qtype, 0, size)
            # `optimized` would ask for kernels of other processors and can repack what is stored.
            return quantize_weight(weight, qtype, 0, scale, shift, size, optimized=False)

        return WeightCoder(
            f"quanto {name}",
            quantize,
            lambda stored, _: stored.dequantize(),
            lambda stored: _tensor_bytes([stored._data._data, stored._scale, stored._shift]),
        )

    yield bytes_coder("qint8", qint8)
    yield bytes_coder("qfloat8 e4m3", qfloat8_e4m3fn)
    for size in (64, 128):
        yield bits_coder(f"qint4 group {size}", qint4, MaxOptimizer(), size)
    yield bits_coder("qint4 group 64 hqq", qint4, HqqOptimizer(), 64)
    yield bits_coder("qint2 group 64", qint2, MaxOptimizer(), 64)


def _tensor_bytes(parts: Any) -> int:
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))
