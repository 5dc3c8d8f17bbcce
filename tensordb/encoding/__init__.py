"""Tensor to payload bytes and back. FORMAT.md describes the bytes; pure functions, no I/O.

>>> import torch
>>> from tensordb.encoding import PayloadReader, encode, get_compression_preset
>>> encoded = encode(torch.arange(6.0), get_compression_preset("lossless"))
>>> PayloadReader(b"".join(encoded.buffers)).decode_index(slice(4, None))
tensor([4., 5.])
"""

from __future__ import annotations

from tensordb.encoding.pipeline import Base, EncodedTensor, encode
from tensordb.encoding.presets import COMPRESSION_PRESETS, CompressionConfig, get_compression_preset
from tensordb.encoding.reading import PayloadReader, decode_rows_many
from tensordb.encoding.rules import Rule

__all__ = [
    "COMPRESSION_PRESETS",
    "Base",
    "CompressionConfig",
    "EncodedTensor",
    "PayloadReader",
    "Rule",
    "decode_rows_many",
    "encode",
    "get_compression_preset",
]
