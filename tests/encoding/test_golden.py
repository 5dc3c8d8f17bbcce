"""Payloads written by earlier releases stay readable, and decode to the same bits.

`golden/` holds them. To add the present release's, run this file as a module: ``python -m tests.encoding.test_golden``.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tensordb.encoding import CompressionConfig, PayloadReader
from tensordb.tensors import byte_view

from .samples import CODECS, DTYPES, INT8_KWARGS, payload_of, random_bits

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = GOLDEN / "expected.json"
QUANTIZERS: list[tuple[str, dict[str, Any]]] = [
    ("int8", {"granularity": 32, "scale_dtype": "bfloat16"}),
    ("int4", {"granularity": 32, "mode": "affine"}),
    ("int4", {"granularity": "per_row", "mode": "symmetric", "scale_dtype": "bfloat16"}),
    ("nf4", {"granularity": 32, "scale_dtype": "bfloat16"}),
    ("fp8_e4m3", {"granularity": 32}),
    ("fp8_e5m2", {"granularity": "per_tensor", "scale_dtype": "bfloat16"}),
    ("uniform", {"step": 0.1}),
    ("uniform", {"max_error": 0.02}),
    ("uniform", {"max_error": 0.05, "relative": True, "granularity": 32}),
    ("uniform", {"target_bits": 6, "scale_dtype": "bfloat16"}),
]


def wave(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Smooth values that every machine computes alike: small multiples of 1/64."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) * 37) % 129 - 64).to(torch.float64) / 64).reshape(shape).to(dtype)


FILTERED = {
    "planes-float64": wave((7, 30), torch.float64),
    "planes-bfloat16": wave((7, 30), torch.bfloat16),
    "narrow-int64": (wave((7, 30)) * 64).long() + (1 << 50),
    "narrow-int16": (wave((7, 30)) * 30000).short(),
    "bit_pack-bool": wave((7, 31)) > 0.5,
    "bit_pack-uint8": ((wave((7, 31)) + 1) * 7).to(torch.uint8),
    "stride_delta-uint8": ((wave((7, 10, 12, 3)) + 1) * 120).to(torch.uint8),
    "stride_delta-int8": (wave((7, 30)) * 100).to(torch.int8),
    "zero_bitmap-float32": (wave((7, 31)) - 0.5).relu(),
    "zero_bitmap-float8": (wave((7, 31)) - 0.5).relu().to(torch.float8_e4m3fn),
    "zero_bitmap-complex64": torch.complex((wave((7, 31)) - 0.5).relu(), wave((7, 31)).relu()),
}


def samples() -> dict[str, bytes]:
    """Payloads of this release by name."""
    made = {f"dtype-{str(dtype)[6:]}": payload_of(random_bits(dtype, (3, 5)), "lossless") for dtype in DTYPES}
    for config in (each for each in CODECS[1:] if each.filter in ("none", "planes")):
        kwargs = "-".join(str(value) for value in config.compression_kwargs.values())
        made[f"codec-{config.compression}-{kwargs}".rstrip("-")] = payload_of(wave((20, 24)), config)
    for quantization in ("fp16", "bf16"):
        made[f"quantizer-{quantization}"] = payload_of(wave((6, 20)), CompressionConfig("auto", quantization))
    for at, kwargs in enumerate(INT8_KWARGS):
        config = CompressionConfig("auto", "int8", quantization_kwargs=kwargs)
        made[f"quantizer-int8-{at}"] = payload_of(wave((6, 20)), config)
        made[f"quantizer-int8-{at}-page"] = payload_of(wave((3, 6, 20)), config, page=True)
    for name, tensor in FILTERED.items():
        for codec in ("zstd", "lz4"):
            config = CompressionConfig(codec, compression_kwargs={"filter": name.split("-")[0]})
            made[f"filter-{name}-{codec}"] = payload_of(tensor, config)
            made[f"filter-{name}-{codec}-page"] = payload_of(tensor, config, page=True)
    made["filter-constant"] = payload_of(torch.full((70, 1000), 2.5), "lossless")
    made |= quantized_samples()
    made["page"] = payload_of(wave((40, 120)), "lossless", page=True)
    made["chunks"] = payload_of(torch.zeros(3, 70_000), "lossless")
    made["empty"] = payload_of(torch.empty(3, 0), "lossless")
    made["scalar"] = payload_of(torch.tensor(2.5), "maximum")
    return made


def quantized_samples() -> dict[str, bytes]:
    """Payloads of each quantizer with scales in both dtypes, whole and as a page, and with exceptions."""
    made = {}
    for name, kwargs in QUANTIZERS:
        config = CompressionConfig("auto", name, quantization_kwargs=kwargs)
        label = "-".join(["quantizer", name, *(str(value) for value in kwargs.values())])
        odd = wave((8, 96))
        odd[2, 5], odd[7, 95], odd[3, 3] = math.nan, -math.inf, math.inf
        made[label] = payload_of(wave((8, 96)), config)
        made[f"{label}-exceptions"] = payload_of(odd, config)
        made[f"{label}-page"] = payload_of(odd.to(torch.bfloat16), config, page=True)
    return made


def described(payload: bytes) -> dict[str, object]:
    """What a payload decodes to."""
    reader = PayloadReader(payload)
    tensor = reader.decode()
    return {
        "dtype": reader.spec.dtype,
        "shape": list(reader.spec.shape),
        "compression": reader.encoding.compression,
        "quantization": reader.encoding.quantization,
        "sha256": hashlib.sha256(byte_view(tensor).tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("name", sorted(json.loads(EXPECTED.read_text()) if EXPECTED.exists() else []))
def test_an_older_payload_is_read_as_it_was_written(name: str) -> None:
    payload = (GOLDEN / f"{name}.payload").read_bytes()
    PayloadReader(payload).verify()
    assert described(payload) == json.loads(EXPECTED.read_text())[name]


def test_every_golden_payload_is_expected() -> None:
    names = {path.stem for path in GOLDEN.glob("*.payload")}
    assert names == set(json.loads(EXPECTED.read_text()))
    assert len(names) > 70


if __name__ == "__main__":
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    for name, payload in samples().items():
        if name not in expected:
            (GOLDEN / f"{name}.payload").write_bytes(payload)
            expected[name] = described(payload)
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
