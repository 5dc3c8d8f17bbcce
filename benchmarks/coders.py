"""Competitors in lossless compression: tensordb's presets and the peers, each as functions of one tensor.

A peer that is not installed or refuses a dtype is left out; `coders` and `Coder.takes` say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import lz4.block
import numpy as np
import torch
import zstandard
from torch import Tensor

from tensordb.encoding import PayloadReader, encode, get_compression_preset

_ANY = frozenset()
_PRESETS = ("none", "fast", "lossless")


@dataclass(frozen=True, slots=True)
class Coder:
    """One competitor.

    Attributes:
        name: As tables show it.
        encode: From a tensor to what `restore` takes; not necessarily one buffer.
        restore: From the stored form into a tensor; without a `destination` to a new one like it.
        fresh: From the stored form to a new tensor, where that is more than `restore` into an empty one.
        package: What must be installed.
        dtypes: Those it takes; empty for all.
        store: From what `encode` gave to the stored form; done outside the timed part.
        nbytes: Bytes of the stored form.
        destination: Whether `restore` can write into memory it is given.
        modifies: Whether `encode` destroys its input, so that it needs a clone.
        slow: Whether one round has to do.
    """

    name: str
    encode: Callable[[Tensor], Any]
    restore: Callable[[Any, Tensor], Tensor]
    fresh: Callable[[Any], Tensor] | None = None
    package: str = "tensordb"
    dtypes: frozenset[torch.dtype] = _ANY
    store: Callable[[Any], Any] = lambda encoded: encoded
    nbytes: Callable[[Any], int] = len
    destination: bool = True
    modifies: bool = False
    slow: bool = False

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether it can compress tensors of a dtype."""
        return not self.dtypes or dtype in self.dtypes


def coders(threads: int) -> dict[str, Coder]:
    """Return the competitors that are installed, by name, each set to so many threads."""
    return {coder.name: coder for coder in _all(threads) if find_spec(coder.package)}


def missing_coders() -> list[str]:
    """Say which competitors are left out, and why."""
    return [
        f"{coder.name}: LEFT OUT, {coder.package} is not installed" for coder in _all(1) if coder.name not in coders(1)
    ]


def tensordb_coder(preset: str) -> Coder:
    """Return a preset of tensordb; hashing and checksums are part of its work."""
    config = get_compression_preset(preset)
    return Coder(
        f"tensordb {preset}",
        lambda tensor: encode(tensor, config),
        lambda payload, out: PayloadReader(payload).decode(out),
        lambda payload: PayloadReader(payload).decode(),
        store=lambda encoded: b"".join(encoded.buffers),
    )


def raw(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of a contiguous tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _all(threads: int) -> list[Coder]:
    return [
        *map(tensordb_coder, _PRESETS),
        _zipnn(threads),
        _blosc2("blosc2 shuffle+zstd1", "ZSTD", "SHUFFLE", 1, threads),
        _blosc2("blosc2 bitshuffle+lz4", "LZ4", "BITSHUFFLE", 5, threads),
        _pcodec(12),
        _zstd(3, threads),
        _lz4(),
    ]


def _zipnn(threads: int) -> Coder:
    names = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
        torch.float8_e4m3fn: "float8_e4m3fn",
    }
    known: dict[torch.dtype, Any] = {}

    def of(dtype: torch.dtype) -> Any:
        from zipnn import ZipNN  # imported late: it may not be installed

        if dtype not in known:
            known[dtype] = ZipNN(input_format="torch", bytearray_dtype=names[dtype], threads=threads)
        return known[dtype]

    return Coder(
        "zipnn",
        lambda tensor: (tensor.dtype, of(tensor.dtype).compress(tensor)),
        lambda stored, _: of(stored[0]).decompress(stored[1]),
        package="zipnn",
        dtypes=frozenset(names),
        nbytes=lambda stored: len(stored[1]),
        destination=False,
        modifies=True,
    )


def _blosc2(name: str, codec: str, shuffle: str, level: int, threads: int) -> Coder:
    def compress(tensor: Tensor) -> Any:
        import blosc2

        return blosc2.compress2(
            raw(tensor),
            codec=blosc2.Codec[codec],
            clevel=level,
            typesize=tensor.element_size(),
            filters=[blosc2.Filter[shuffle]],
            filters_meta=[0],
            nthreads=threads,
        )

    def restore(stored: Any, out: Tensor) -> Tensor:
        import blosc2

        blosc2.decompress2(stored, dst=raw(out), nthreads=threads)
        return out

    return Coder(name, compress, restore, package="blosc2")


def _pcodec(level: int) -> Coder:
    # The bits of bfloat16 as unsigned integers: pcodec has no bfloat16.
    views = {torch.bfloat16: np.uint16, torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
    views |= {torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64}

    def compress(tensor: Tensor) -> bytes:
        from pcodec import ChunkConfig, standalone

        return standalone.simple_compress(raw(tensor).view(views[tensor.dtype]), ChunkConfig(level))

    def restore(stored: bytes, out: Tensor) -> Tensor:
        from pcodec import standalone

        standalone.simple_decompress_into(stored, raw(out).view(views[out.dtype]))
        return out

    return Coder(f"pcodec {level}", compress, restore, package="pcodec", dtypes=frozenset(views), slow=True)


def _zstd(level: int, threads: int) -> Coder:
    write = zstandard.ZstdCompressor(level, threads=threads if threads > 1 else 0)
    read = zstandard.ZstdDecompressor()

    def restore(stored: bytes, out: Tensor) -> Tensor:
        read.stream_reader(stored).readinto(raw(out))
        return out

    return Coder(f"zstd {level}", lambda tensor: write.compress(raw(tensor)), restore, package="zstandard")


def _lz4() -> Coder:
    def restore(stored: bytes, out: Tensor) -> Tensor:
        data = lz4.block.decompress(stored, return_bytearray=True)
        return torch.frombuffer(data, dtype=out.dtype).reshape(out.shape)

    return Coder("lz4", lambda tensor: lz4.block.compress(raw(tensor)), restore, package="lz4", destination=False)
