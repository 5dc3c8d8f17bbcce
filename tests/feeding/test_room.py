"""Memory for batches: used again when nobody holds it any more, and not before."""

import weakref

import numpy as np
import pytest
import torch

from tensordb.feeding.room import Room, Rows
from tensordb.model import TensorSpec

SPEC = TensorSpec("float32", (4, 1000))


def test_memory_is_used_again_once_nothing_aliases_it() -> None:
    room = Room(1 << 20)
    tensor = room.tensor(SPEC)
    address, row = tensor.data_ptr(), tensor[1]
    del tensor
    assert room.tensor(SPEC).data_ptr() != address  # the row is still held
    del row
    assert room.tensor(TensorSpec("bfloat16", (8000,))).data_ptr() == address


def test_no_more_memory_is_kept_than_was_allowed() -> None:
    room = Room(40_000)
    held = [room.tensor(SPEC) for _ in range(5)]
    addresses = {tensor.data_ptr() for tensor in held}
    del held
    again = [room.tensor(SPEC) for _ in range(2)]
    assert {tensor.data_ptr() for tensor in again} <= addresses
    assert room.kept_nbytes <= 40_000
    large = room.tensor(TensorSpec("uint8", (100_000,)))
    del large
    assert room.kept_nbytes <= 40_000


def test_memory_goes_with_its_room_at_once() -> None:
    room = Room(1 << 20)
    del [room.tensor(SPEC)][0]
    (memory,) = room._free[16_000]
    gone = weakref.ref(memory)
    del memory
    held = room.tensor(TensorSpec("float32", (8, 1000)))
    del room
    assert gone() is None
    held.fill_(1)  # what is still held stays


@pytest.mark.parametrize("dtype", ["complex32", "bool", "float8_e4m3fn", "uint16", "complex128", "int64"])
def test_tensors_of_every_dtype_and_shape_are_given_out(dtype: str) -> None:
    room = Room(1 << 20)
    for shape in ((), (0,), (3, 0, 2), (5, 2000)):
        tensor = room.tensor(TensorSpec(dtype, shape))
        assert (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{dtype}", shape)


def test_rows_belong_where_they_are_numbered() -> None:
    tensors = [torch.zeros(count, 3, dtype=torch.int32) for count in (2, 1, 4)]
    rows = Rows(tensors)
    values = torch.arange(21, dtype=torch.int32).reshape(7, 3)
    order = np.array([6, 2, 0, 1, 3, 5, 4])
    rows.put(order, values[order].view(torch.uint8).numpy())
    assert torch.equal(torch.cat(tensors), values)
    assert torch.equal(rows.row(2), values[2])
    whole = rows.stretch(np.array([3, 4, 5, 6]))
    assert whole is not None
    assert whole.data_ptr() == tensors[2].data_ptr()
    assert all(rows.stretch(np.array(places)) is None for places in ([1, 2], [4, 3], [3, 5], [3, 3, 5]))
