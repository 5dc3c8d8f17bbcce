"""Reads payloads; written from FORMAT.md alone, with the standard library, zstandard and NumPy.

These are the container and the codecs but pcodec; filters and quantizers are in ``plain_filters`` and
``plain_quantizers``. It believes what it reads: it checks no limits, and leaves checksums to who has XXH3.
"""

import gzip
import lzma
import math
import zlib
from io import BytesIO
from itertools import islice
from types import SimpleNamespace

import numpy as np
import zstandard

from .plain_filters import FILTERS
from .plain_quantizers import dequantized

NUMPY = ["f4", "f8", "f2", "u2", "u1", "u1", "u1", "u1", "u1", "u4"]  # bare bits of dtypes that NumPy lacks
NUMPY += ["c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


def lz4(block):
    out, left = bytearray(), iter(block)

    def length(nibble):
        more = 255 if nibble == 15 else 0
        while more == 255:
            nibble += (more := next(left))
        return nibble

    for token in left:
        out += bytes(islice(left, length(token >> 4)))
        if offset := next(left, 0) + 256 * next(left, 0):  # the last sequence has literals only
            for _ in range(length(token & 15) + 4):
                out.append(out[-offset])
    return bytes(out)


CODECS = [None, zstandard.ZstdDecompressor().decompress, lz4, gzip.decompress, zlib.decompress, lzma.decompress]


def varint(stream):
    byte = stream.read(1)[0]
    return byte if byte < 128 else byte - 128 + 128 * varint(stream)


def parse(payload):
    """Return the descriptor, and `group(n)`, which decodes the next frame, known to hold n bytes."""
    at = int.from_bytes(payload[4:8], "little")
    head = BytesIO(payload[16:at])
    dtype, flags, rank = head.read(3)
    shape = tuple(varint(head) for _ in range(rank))
    stages = [(number, head.read(varint(head)) if number else b"") for (number,) in (head.read(1) for _ in range(3))]
    chunk = varint(head) or math.prod(shape)
    head.read(16 if flags & 2 else 0)
    head.read(varint(head) if flags & 4 else 0)
    exceptions, table = varint(head) if flags & 8 else 0, head.read()
    frames = iter(np.frombuffer(table, "<u4", len(table) // 12).tolist())

    def group(size):
        nonlocal at
        kind, low = divmod(next(frames), 1 << 30)
        if kind == 2:
            return bytes([low]) * size
        start = -(-at // 16) * 16
        at = start + low
        return CODECS[stages[2][0]](payload[start:at]) if kind else payload[start:at]

    spec = SimpleNamespace(dtype=dtype, page=flags & 1, shape=shape, stages=stages, chunk=chunk, exceptions=exceptions)
    spec.numpy, spec.parts, spec.table = NUMPY[dtype - 1], 2 if 10 <= dtype <= 12 else 1, table
    return spec, group


def codes(spec, group, bases):
    """Return the words of all codes; `bases` has those of other tensors by content id."""
    (quantizer, _), (number, parameters), _ = spec.stages
    width = np.dtype(spec.numpy).itemsize // spec.parts if quantizer == 0 else 2 if quantizer <= 2 else 1
    row, total, step = (each * spec.parts for each in (math.prod(spec.shape[1:]), math.prod(spec.shape), spec.chunk))
    base = bases[parameters[:32]] if number == 7 else np.empty(0)
    chunks = [np.empty(0, f"<u{width}")]
    for start in range(0, total, step or 1):
        count = min(step, total - start)
        chunk = SimpleNamespace(p=parameters, group=group, count=count, width=width, parts=spec.parts)
        chunk.records, chunk.base = count // row if spec.page else 1, base[start : start + count]
        chunks.append(FILTERS[number](chunk))
    return np.concatenate(chunks)


def read(payload, bases=None):
    """Return a payload's tensor: its bits as unsigned words where NumPy has no such dtype."""
    spec, group = parse(payload)
    words = codes(spec, group, bases or {})
    return (dequantized(spec, words, group) if spec.stages[0][0] else words.view(spec.numpy)).reshape(spec.shape)
