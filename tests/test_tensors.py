"""Snapshots, byte views and the dtype table: every dtype of torch, and a clear refusal of what cannot be stored."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, dtype_from_name, dtype_name, empty, nbytes_of, snapshot, spec_of, view_of

_SUB_BYTE = {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)} | {"float4_e2m1fn_x2"}
STORABLE = sorted(
    {
        value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype)
        and str(value).removeprefix("torch.") not in _SUB_BYTE
        and not str(value).removeprefix("torch.").startswith(("q", "bits"))
    },
    key=str,
)


def some(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of random bits; bools are 0 and 1."""
    spec = TensorSpec(dtype_name(dtype), shape)
    high = 2 if dtype == torch.bool else 256
    return view_of(np.random.default_rng(0).integers(0, high, nbytes_of(spec)).astype(np.uint8), spec)


@pytest.mark.parametrize("dtype", STORABLE, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (3, 4)], ids=str)
def test_every_dtype_keeps_its_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = some(dtype, shape)
    assert dtype_from_name(dtype_name(dtype)) == dtype == dtype_from_name(str(dtype)) == dtype_from_name(dtype)
    for copy in (False, True):
        taken = snapshot(tensor, copy=copy)
        assert spec_of(taken) == spec_of(tensor)
        assert (byte_view(taken) == byte_view(tensor)).all()
        assert byte_view(taken).nbytes == nbytes_of(spec_of(tensor))
    assert spec_of(empty(spec_of(tensor))) == spec_of(tensor)


@pytest.mark.parametrize("dtype", STORABLE, ids=str)
def test_a_transposed_tensor_is_stored_in_its_logical_order(dtype: torch.dtype) -> None:
    tensor = some(dtype, (3, 4))
    taken = snapshot(tensor.t())
    size = tensor.element_size()
    expected = byte_view(tensor).reshape(3, 4, size).transpose(1, 0, 2).reshape(-1)
    assert taken.shape == (4, 3)
    assert (byte_view(taken) == expected).all()


def test_a_copy_never_follows_the_original() -> None:
    tensor = torch.zeros(4, requires_grad=True)
    taken = snapshot(tensor, copy=True)
    with torch.no_grad():
        tensor.add_(1)
    assert taken.tolist() == [0, 0, 0, 0]
    assert not taken.requires_grad


@pytest.mark.parametrize("elements", [0, 1, 300_001, 5 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.complex32])
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_copy_of_any_size_has_the_same_bits_in_memory_of_its_own(dtype: torch.dtype, elements: int) -> None:
    data = torch.randint(0, 2, (elements * dtype.itemsize,), dtype=torch.uint8)
    tensor = data.view(dtype)
    taken = snapshot(tensor, copy=True)
    assert (taken.dtype, taken.shape, taken.is_contiguous()) == (dtype, tensor.shape, True)
    data.add_(1)
    assert torch.equal(torch.from_numpy(byte_view(taken)) + 1, data)


def test_a_copy_of_a_single_element_with_any_strides_is_one() -> None:
    tensor = torch.arange(6.0)[:1].as_strided((1, 1), (7, 3))
    assert snapshot(tensor, copy=True).tolist() == [[0.0]]


def test_without_copy_a_plain_tensor_is_not_copied() -> None:
    tensor = torch.zeros(4)
    assert snapshot(tensor).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("copy", [False, True])
def test_lazy_conjugation_and_sign_are_resolved(dtype: torch.dtype, copy: bool) -> None:
    halves = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=dtype.to_real())
    taken = snapshot(torch.view_as_complex(halves).conj(), copy=copy)
    assert not taken.is_conj()
    assert torch.view_as_real(taken).tolist() == [[1, -2], [3, 4]]
    assert halves.tolist() == [[1, 2], [3, -4]]
    negative = torch.view_as_complex(halves.double()).conj().imag
    assert negative.is_neg()
    assert snapshot(negative, copy=copy).tolist() == [-2, 4]


def test_a_parameter_and_a_subclass_become_plain_tensors() -> None:
    class Named(torch.Tensor):
        pass

    for tensor in (torch.nn.Parameter(torch.ones(2)), torch.ones(2).as_subclass(Named)):
        assert type(snapshot(tensor)) is torch.Tensor


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([1.0], "list"),
        (np.ones(2), "ndarray"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.eye(2).to_sparse(), "to_dense"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged), "unbind"),
    ],
    ids=["list", "ndarray", "meta", "sparse", "nested"],
)
def test_what_cannot_be_stored_is_refused_with_a_remedy(bad: object, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        snapshot(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["float33", "torch.int7", "", "qint8"])
def test_an_unknown_dtype_name_lists_those_that_exist(name: str) -> None:
    with pytest.raises(InvalidInputError, match="bfloat16"):
        dtype_from_name(name)


def test_a_quantized_or_sub_byte_dtype_is_refused() -> None:
    for dtype in (torch.qint8, torch.uint4, torch.float4_e2m1fn_x2):
        with pytest.raises(InvalidInputError, match="cannot be stored"):
            dtype_name(dtype)


def test_sizes_never_overflow() -> None:
    assert nbytes_of(TensorSpec("float64", (1 << 40, 1 << 40))) == 1 << 83


def test_a_view_aliases_its_buffer_and_keeps_it_alive() -> None:
    buffer = bytearray(b"\x00\x00\x80\x3f" * 4)
    tensor = view_of(buffer, TensorSpec("float32", (2, 2)))
    buffer[0:4] = b"\x00\x00\x00\x40"
    assert tensor.tolist() == [[2, 1], [1, 1]]
    tensor = view_of(bytes(bytearray(b"\x01" * 64)), TensorSpec("uint8", (64,)))
    gc.collect()
    assert tensor.sum() == 64


def test_a_view_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="needs 16 bytes"):
        view_of(bytes(15), TensorSpec("float32", (4,)))
