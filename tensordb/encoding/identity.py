"""What makes tensors equal: a hash of their content, however it is compressed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blake3 import blake3

from tensordb.encoding.format import Descriptor

_CONTENT_ID_BYTES, _OBJECT_ID_BYTES = 32, 16


def content_id(descriptor: Descriptor, arrays: Iterable[Any]) -> bytes:
    """Return BLAKE3-256 over the spec, the quantizer, and the bytes of codes, parameters and exceptions."""
    # A lossless page is the same content as the same tensor in one piece; a quantized one has other parameters.
    page = descriptor.page and bool(descriptor.quantizer.id)
    stored = Descriptor(descriptor.spec, page, descriptor.quantizer, exceptions=descriptor.exceptions)
    digest = blake3(b"tensordb content 1\0" + stored.pack())
    for data in arrays:
        digest.update(data)
    return digest.digest(_CONTENT_ID_BYTES)


def object_id(content: bytes, descriptor: bytes) -> bytes:
    """Return what identifies a content under the scheme that a packed descriptor states."""
    return blake3(content + descriptor).digest(_OBJECT_ID_BYTES)
