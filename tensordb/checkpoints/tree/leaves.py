"""Tensors and arrays as dense parts: taken apart before they are stored, put together when they are read.

Invariants: a part is a plain, detached, strided tensor that may alias the caller's memory; what is put together has
the type, dtype, values and gradient flag of what was taken apart. The strides of a tensor, its device, its Python
attributes and its own gradient are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tensordb.checkpoints.gathering import gathered, is_shared
from tensordb.checkpoints.tree import shards
from tensordb.checkpoints.tree.memory import reach
from tensordb.checkpoints.tree.shards import Sharded
from tensordb.checkpoints.tree.values import FAILURES, numpy_dtype
from tensordb.errors import IntegrityError, InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import dtype_name, plain, view_of

_REQUIRES_GRAD, _PARAMETER = 1, 2
DENSE: tuple[Any, ...] = ("dense",)

_COO = ("indices", "values")
_BY_ROW = ("crow_indices", "col_indices", "values")
_BY_COLUMN = ("ccol_indices", "row_indices", "values")
_COMPRESSED: dict[torch.layout, tuple[str, tuple[str, ...]]] = {
    torch.sparse_csr: ("csr", _BY_ROW),
    torch.sparse_bsr: ("bsr", _BY_ROW),
    torch.sparse_csc: ("csc", _BY_COLUMN),
    torch.sparse_bsc: ("bsc", _BY_COLUMN),
}
_LAYOUTS = {name: layout for layout, (name, _) in _COMPRESSED.items()}
_SPARSE = frozenset((torch.sparse_coo, *_COMPRESSED))
_PLAIN_TYPES = frozenset((torch.Tensor, nn.Parameter))
_PART_NAMES = {"dense": ("",), "array": ("",), "coo": _COO} | dict(_COMPRESSED.values())
_FORM_LENGTHS = {"dense": 1, "array": 2, "coo": 3, shards.FORM: 3} | dict.fromkeys(_LAYOUTS, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A tensor that has to be stored.

    Attributes:
        name: Full dotted path, unique in the tree; for parts with the part's name, such as ``"x.values"``.
        tensor: Strided and detached, on any device, with any strides; it may alias the caller's memory.
    """

    name: str
    tensor: torch.Tensor


class Parts(NamedTuple):
    """A tensor or array taken apart.

    Attributes:
        form: How the parts are put together: the name of the form and what it needs beside them.
        flags: Whether it requires gradients, and is a parameter.
        tensors: The parts, in the order of the form's part names.
        gathered: Whether they were gathered from all ranks of a process group.
    """

    form: tuple[Any, ...]
    flags: int
    tensors: tuple[torch.Tensor, ...]
    gathered: bool = False


def part_names(form: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the names of the parts of a form; the only part of a dense tensor has none."""
    return tuple(map(shards.part_name, form[2])) if form[0] == shards.FORM else _PART_NAMES[form[0]]


def check_form(form: Any) -> None:
    """Raise IntegrityError when this, read from a document, is not a form."""
    if type(form) is not tuple or not form or type(form[0]) is not str or _FORM_LENGTHS.get(form[0]) != len(form):
        raise IntegrityError("a document describes the form of a tensor in a way that none is written with")
    if form[0] == shards.FORM:
        shards.check_form(form)


def take_apart(value: Any) -> Parts:
    """Return the dense parts of a tensor, parameter or NumPy array.

    Raises:
        InvalidInputError: for what has no values, or would not come back as what it is.
    """
    if isinstance(value, np.ndarray):
        return _array_parts(value)
    if isinstance(value, Sharded):
        return Parts(shards.form_of(value), 0, value.parts)
    kind = type(value)
    is_parameter = kind is nn.Parameter or (kind is not torch.Tensor and isinstance(value, nn.Parameter))
    flags = _REQUIRES_GRAD * value.requires_grad | _PARAMETER * is_parameter
    shared = kind not in _PLAIN_TYPES and is_shared(value)
    if shared:
        value = gathered(value)
    elif kind not in _PLAIN_TYPES:
        _check_type(value)
    if value.layout != torch.strided and value.layout in _SPARSE:
        return _sparse_parts(value, flags)
    return Parts(DENSE, flags, (_checked(plain(value)),), shared)


def put_together(form: tuple[Any, ...], flags: int, parts: Sequence[torch.Tensor]) -> Any:
    """Return the tensor, parameter or array of these parts; a dense one aliases its part.

    Raises:
        IntegrityError: The parts do not fit the form.
    """
    try:
        if form[0] == "array":
            return _array(form[1], parts[0])
        if form[0] == shards.FORM:
            return shards.assemble(form, parts)
        tensor = parts[0].detach() if form[0] == "dense" else _sparse(form, parts)
        if flags & _PARAMETER:
            return nn.Parameter(tensor, requires_grad=bool(flags & _REQUIRES_GRAD))
        return tensor.requires_grad_() if flags & _REQUIRES_GRAD else tensor
    except FAILURES as error:
        raise IntegrityError(f"the stored parts of a tensor do not fit its form, {form[0]}: {error}") from error


def _check_type(tensor: torch.Tensor) -> None:
    if not tensor.is_nested and not tensor.is_meta and not hasattr(tensor, "__tensor_flatten__"):
        raise InvalidInputError(
            f"a {type(tensor).__module__}.{type(tensor).__qualname__} is a subclass of torch.Tensor that would not "
            "come back as what it is; store x.as_subclass(torch.Tensor), or the plain tensors it is made of"
        )


def _checked(dense: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory is there; the storage of a sharded parameter, for one, is freed between uses."""
    try:
        held = dense.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError) as error:
        raise InvalidInputError(f"the memory of the tensor cannot be reached ({error}); store x.cpu()") from None
    if dense.numel() and held < (dense.storage_offset() + reach(dense)) * dense.itemsize:
        raise InvalidInputError(
            f"the storage of the tensor was freed or shrunk to {held} bytes; store it while it has its values"
        )
    return dense


def _sparse_parts(tensor: torch.Tensor, flags: int) -> Parts:
    if tensor.is_meta:
        raise InvalidInputError("a meta tensor has no values to store; materialize it first")
    dtype_name(tensor.dtype)
    sparse = tensor.detach()
    shape = tuple(sparse.shape)
    if sparse.layout == torch.sparse_coo:
        form: tuple[Any, ...] = ("coo", shape, sparse.is_coalesced())
        parts: tuple[torch.Tensor, ...] = (sparse._indices(), sparse._values())
    else:
        name, names = _COMPRESSED[sparse.layout]
        form, parts = (name, shape), tuple(getattr(sparse, part)() for part in names)
    try:
        _sparse(form, parts)
    except RuntimeError as error:
        raise InvalidInputError(f"a sparse tensor that breaks the rules of its layout cannot be stored: {error}") from (
            None
        )
    return Parts(form, flags, tuple(_checked(part.detach()) for part in parts))


def _sparse(form: tuple[Any, ...], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    if form[0] == "coo":
        (indices, values), (_, shape, is_coalesced) = parts, form
        return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=is_coalesced, check_invariants=True)
    outer, inner, values = parts
    return torch.sparse_compressed_tensor(
        outer, inner, values, form[1], layout=_LAYOUTS[form[0]], check_invariants=True
    )


def _array_parts(array: np.ndarray[Any, Any]) -> Parts:
    if type(array) is not np.ndarray:
        raise InvalidInputError(
            f"a {type(array).__module__}.{type(array).__qualname__} is a subclass of numpy.ndarray that would not come "
            "back as what it is; store np.asarray(x)"
        )
    dtype = array.dtype
    try:
        numpy_dtype(dtype.str)
    except ValueError:
        raise InvalidInputError(
            f"a NumPy array of dtype {dtype} cannot be stored; convert it to numbers or text, or a list"
        ) from None
    form = ("array", dtype.str)
    rows = array if array.flags.c_contiguous else array.copy(order="C")
    native = dtype.newbyteorder("=")
    if native.kind in "biufc" and hasattr(torch, native.name):
        rows = rows if dtype.isnative else rows.byteswap().view(native)
        return Parts(form, 0, (view_of(rows.reshape(-1).view(np.uint8), TensorSpec(native.name, rows.shape)),))
    raw = rows.reshape(-1).view(np.uint8) if rows.nbytes else np.empty(0, np.uint8)
    return Parts(form, 0, (view_of(raw, TensorSpec("uint8", (*rows.shape, dtype.itemsize))),))


def _array(name: str, part: torch.Tensor) -> np.ndarray[Any, Any]:
    dtype, values = numpy_dtype(name), part.detach().cpu().numpy()
    native = dtype.newbyteorder("=")
    if values.dtype == native:
        return values if dtype.isnative else values.byteswap().view(dtype)
    if values.dtype != np.uint8 or values.shape[-1:] != (dtype.itemsize,):
        raise ValueError(f"its part is {values.dtype}{values.shape}")
    if dtype.itemsize == 0 or values.size == 0:
        return np.empty(values.shape[:-1], dtype)
    return values.view(dtype).reshape(values.shape[:-1])
