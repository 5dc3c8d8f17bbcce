"""A payload's header alone tells how long it is, and its table whether it is whole."""

from __future__ import annotations

import pytest
import torch

from tensordb.encoding import COMPRESSION_PRESETS, PayloadReader, encode, get_compression_preset
from tensordb.encoding.extent import is_whole, stored_nbytes
from tensordb.errors import FormatError, IntegrityError

TENSORS = {
    "noise": torch.randn(100_000, generator=torch.Generator().manual_seed(0)),
    "constant": torch.zeros(200_000),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(3),
    "bytes": torch.arange(1_001).to(torch.uint8),
}


@pytest.mark.parametrize("preset", COMPRESSION_PRESETS)
@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_the_header_tells_the_length_and_the_payload_who_it_is(preset: str, tensor: torch.Tensor) -> None:
    encoded = encode(tensor, get_compression_preset(preset))
    payload = memoryview(b"".join(encoded.buffers) + b"x" * 99)
    assert stored_nbytes(payload) == encoded.nbytes
    assert is_whole(payload[: encoded.nbytes])
    reader = PayloadReader(payload[: encoded.nbytes])
    assert reader.object_id(reader.content_id()) == encoded.object_id


def test_a_payload_of_which_anything_is_damaged_is_not_whole() -> None:
    payload = bytearray(b"".join(encode(TENSORS["noise"], get_compression_preset("lossless")).buffers))
    for position in (len(payload) - 1, len(payload) // 2):
        payload[position] ^= 1
        assert not is_whole(memoryview(payload))
        payload[position] ^= 1
    assert is_whole(memoryview(payload))
    for position, error in ((0, FormatError), (3, IntegrityError), (20, IntegrityError)):
        payload[position] ^= 1
        with pytest.raises(error):
            stored_nbytes(memoryview(payload))
        payload[position] ^= 1
