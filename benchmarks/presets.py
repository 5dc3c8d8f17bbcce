"""What does each preset cost and keep? Stored size, speed and error on real weights, next to plain codecs.

Run `python benchmarks/presets.py [--size tiny|full]`. Every tensor is encoded and decoded by itself, on all cores, in
memory; sizes are of the whole payloads, with headers, scales and checksums. Peers compress the same raw bytes: zstd at
level 3 and LZ4, as one buffer a tensor.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lz4.frame
import torch
import zstandard
from data import load_weights
from measure import race, same_bytes
from report import format_table, machine

from tensordb import COMPRESSION_PRESETS
from tensordb.encoding import PayloadReader, encode


@dataclass(frozen=True, slots=True)
class Coder:
    """One competitor: tensors to stored bytes and back.

    Attributes:
        encode: From a tensor to its stored form.
        decode: From the stored form to an owned tensor.
        nbytes: Size of the stored form.
    """

    encode: Callable[[torch.Tensor], Any]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    nbytes: Callable[[Any], int] = len


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    size = parser.parse_args().size
    weights = load_weights()
    # Some of each kind: `archive` tries everything, at a megabyte or two a second.
    tensors = [each[:4096].clone() for each in weights.tensors if each.ndim == 2][:10]
    if size == "tiny":
        tensors = [tensors[-1][:64].clone()]
    raw = sum(each.nbytes for each in tensors)
    print(f"data: {weights.origin}; {len(tensors)} matrices, {raw / 1e6:.1f} MB of float32")
    print(f"machine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    print(_table(tensors, rounds=1 if size == "tiny" else 3))


def _coders() -> dict[str, Coder]:
    coders = {f"preset {name}": _preset(name) for name in COMPRESSION_PRESETS}
    zstd, unzstd = zstandard.ZstdCompressor(3), zstandard.ZstdDecompressor()
    coders["peer zstd 3"] = Coder(lambda t: zstd.compress(_raw(t)), lambda b, t: _tensor(unzstd.decompress(b), t))
    coders["peer lz4"] = Coder(lambda t: lz4.frame.compress(_raw(t)), lambda b, t: _tensor(lz4.frame.decompress(b), t))
    return coders


def _preset(name: str) -> Coder:
    def to_bytes(tensor: torch.Tensor) -> bytes:
        return b"".join(encode(tensor, COMPRESSION_PRESETS[name]).buffers)

    return Coder(to_bytes, lambda payload, _: PayloadReader(payload).decode())


def _raw(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.numpy()).cast("B")


def _tensor(raw: bytes, like: torch.Tensor) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=like.dtype).reshape(like.shape)


def _table(tensors: Sequence[torch.Tensor], rounds: int) -> str:
    coders = _coders()
    stored = {name: [coder.encode(each) for each in tensors] for name, coder in coders.items()}
    write = race(
        {name: lambda _, c=coder: [c.encode(each) for each in tensors] for name, coder in coders.items()},
        rounds=rounds,
        warmup=0,
    )
    read = race(
        {
            name: lambda _, c=coder, s=stored[name]: [c.decode(b, t) for b, t in zip(s, tensors, strict=True)]
            for name, coder in coders.items()
        },
        rounds=rounds,
        warmup=1,
    )
    raw = sum(each.nbytes for each in tensors)
    lines = [["", "stored / raw", "ratio", "encode MB/s", "decode MB/s", "SNR dB"]]
    for name, coder in coders.items():
        nbytes = sum(map(coder.nbytes, stored[name]))
        snr = _snr(tensors, [coder.decode(b, t) for b, t in zip(stored[name], tensors, strict=True)])
        lines.append(
            [
                name,
                f"{nbytes / raw:.3f}",
                f"{raw / nbytes:.3f}",
                f"{raw / write[name].p50 / 1e6:,.0f}",
                f"{raw / read[name].p50 / 1e6:,.0f}",
                "exact" if snr is None else f"{snr:.1f}",
            ]
        )
    return format_table(lines)


def _snr(originals: Sequence[torch.Tensor], decoded: Sequence[torch.Tensor]) -> float | None:
    """Signal-to-noise ratio over all tensors in dB, None when every bit is the same."""
    if all(same_bytes(a, b) for a, b in zip(originals, decoded, strict=True)):
        return None
    signal = sum(float(a.double().square().sum()) for a in originals)
    noise = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(originals, decoded, strict=True))
    return 10 * math.log10(signal / noise)


if __name__ == "__main__":
    main()
