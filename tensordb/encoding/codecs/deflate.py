"""DEFLATE in either of its wrappers, bounded in memory: what codecs ``gzip`` and ``zlib`` share."""

from __future__ import annotations

import zlib

from tensordb.encoding.codecs.base import Buffer, check_size, damaged


def deflate(data: Buffer, level: int, window_bits: int) -> bytes:
    """Return `data` as one complete stream; `window_bits` selects the wrapper as zlib defines it."""
    stream = zlib.compressobj(level, zlib.DEFLATED, window_bits)
    return stream.compress(data) + stream.flush()


def inflate(codec: str, data: Buffer, size: int, window_bits: int) -> bytes:
    """Return the `size` bytes of one complete stream.

    Raises:
        IntegrityError: if the stream is damaged, incomplete, followed by other bytes or of another size.
    """
    stream = zlib.decompressobj(window_bits)
    try:
        # One byte more than expected is enough to notice a stream that holds too much.
        content = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise damaged(codec, error) from error
    if len(content) == size and (not stream.eof or stream.unused_data):
        raise damaged(codec, ValueError("it does not end where its content ends"))
    return check_size(codec, content, size)
