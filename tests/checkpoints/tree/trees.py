"""Round trips without storage, and what it takes for two trees to be the same."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch

from tensordb.checkpoints.tree import flatten, unflatten
from tensordb.tensors import byte_view, snapshot


def back(tree: Any, **options: Any) -> Any:
    """Return the tree after its leaves went through memory of their own, as storage would have it."""
    flat = flatten(tree)
    return unflatten(flat.document, lambda index: snapshot(flat.leaves[index].tensor, copy=True), **options)


def names(tree: Any) -> list[str]:
    return [leaf.name for leaf in flatten(tree).leaves]


def bits(tensor: torch.Tensor) -> bytes:
    return byte_view(snapshot(tensor, copy=True)).tobytes()


def assert_same(left: Any, right: Any, path: str = "tree") -> None:
    """Fail unless both have the same types, order and bits throughout."""
    assert type(left) is type(right), f"{path}: {type(left)} and {type(right)}"
    if isinstance(left, torch.Tensor):
        assert_same_tensor(left, right, path)
    elif isinstance(left, np.ndarray):
        assert (left.dtype.str, left.shape, left.tobytes()) == (right.dtype.str, right.shape, right.tobytes()), path
    elif isinstance(left, dict):
        assert_same([*left], [*right], f"{path} keys")
        for key in left:
            assert_same(left[key], right[key], f"{path}[{key!r}]")
        assert_same(getattr(left, "_metadata", None), getattr(right, "_metadata", None), f"{path}._metadata")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(left, set | frozenset):
        assert_same(sorted(map(repr, left)), sorted(map(repr, right)), path)
    elif isinstance(left, slice):
        assert_same((left.start, left.stop, left.step), (right.start, right.stop, right.step), path)
    elif isinstance(left, float | complex):
        assert number_bits(left) == number_bits(right), path
    elif isinstance(left, int):
        assert left == right, path
    elif isinstance(left, np.generic):
        assert (left.dtype.str, left.tobytes()) == (right.dtype.str, right.tobytes()), path
    else:
        assert repr(left) == repr(right), path


def assert_same_tensor(left: torch.Tensor, right: torch.Tensor, path: str) -> None:
    assert (left.dtype, left.shape, left.layout) == (right.dtype, right.shape, right.layout), path
    assert (left.requires_grad, left.is_leaf or left.requires_grad) == (right.requires_grad, True), path
    if left.layout == torch.strided:
        assert bits(left) == bits(right), path
        return
    parts = {
        torch.sparse_coo: ("_indices", "_values"),
        torch.sparse_csr: ("crow_indices", "col_indices", "values"),
        torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
        torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
        torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
    }
    if left.layout == torch.sparse_coo:
        assert left.is_coalesced() == right.is_coalesced(), path
    for part in parts[left.layout]:
        one, other = getattr(left.detach(), part)(), getattr(right.detach(), part)()
        assert_same_tensor(one.detach(), other.detach(), f"{path}.{part}")


def number_bits(number: complex) -> bytes:
    return struct.pack("<dd", number.real, number.imag)
