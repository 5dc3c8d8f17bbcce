"""Where the time of the lossless encoder goes on one thread: each part alone, on the frames that it really made.

What is left of the whole after the parts named is splitting or merging the planes, and Python.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from coder_race import give_back_memory
from coders import raw
from kinds import read_kind
from measure import race
from xxhash import xxh3_64_intdigest

from tensordb.encoding import PayloadReader, encode, get_compression_preset, kernels
from tensordb.encoding.chunks import Chunks
from tensordb.encoding.frames import COMPRESSED


def time_pieces(folder: Path, kind: str, rounds: int) -> dict[str, float]:
    """Return MB of a kind, as one flat tensor, and milliseconds of the whole and of its parts."""
    kernels.load()
    torch.set_num_threads(1)
    tensor = torch.cat([each.reshape(-1) for each in read_kind(folder, kind)])
    config = get_compression_preset("lossless")
    payload = b"".join(encode(tensor, config).buffers)
    chunks = Chunks(memoryview(payload))
    frames, codec = chunks.frames, chunks.codec
    stored = [frames.verified(index) for index in range(len(frames))]
    packed = [(stored[index], frames.sizes[index]) for index in range(len(frames)) if frames.kinds[index] == COMPRESSED]
    plain = [codec.decompress(*each) for each in packed]
    warm, source = torch.empty_like(tensor), raw(tensor)
    actions: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode(tensor, config),
        "encode: BLAKE3 of the content": lambda: blake3(source).digest(),
        "encode: entropy coding": lambda: [codec.compress(each) for each in plain],
        "encode and decode: XXH3 of the frames": lambda: [*map(xxh3_64_intdigest, stored)],
        "decode, warm": lambda: PayloadReader(payload).decode(warm),
        "decode, fresh": lambda: PayloadReader(payload).decode(),
        "decode: opening": lambda: PayloadReader(payload),
        # Dropped one by one, as decoding does: to keep them would be to fault in new pages.
        "decode: entropy decoding": lambda: deque((codec.decompress(*each) for each in packed), maxlen=0),
        "copy, warm": lambda: warm.copy_(tensor),
        "copy, fresh": lambda: tensor.clone(),
    }
    timings = race(
        {name: lambda _, run=action: run() for name, action in actions.items()},
        rounds=rounds,
        warmup=1,
        before=give_back_memory,
    )
    return {"MB": tensor.nbytes / 1e6, **{name: timing.p50 * 1e3 for name, timing in timings.items()}}
