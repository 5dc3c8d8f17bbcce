"""Tensors as a column of Arrow, and back.

What a column of tensors is:

- All of one dtype and shape: ``arrow.fixed_shape_tensor``, the extension type that Arrow defines.
- One dtype, several shapes (or no elements, or more than 2**31): a struct of ``data`` (a large list of the elements in
  row-major order) and ``shape`` (a list of int64).
- Several dtypes: a struct of ``data`` (the elements' little-endian bytes), ``shape`` and ``dtype`` (torch's name).

Arrow has no type for some dtypes. Their elements are stored as others of the same bits, and the field's metadata has
the dtype under ``tensordb.dtype``: bfloat16 as uint16, each float8 as uint8, complex as a last dimension of two floats
(real, imaginary). Every bit comes back, those of NaN included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import Bytes, adopted, byte_view, dtype_from_name, dtype_name, empty, nbytes_of, snapshot, view_of

DTYPE_KEY = b"tensordb.dtype"
_MOST_ELEMENTS = 2**31 - 1
_RAW = {
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
    "complex32": "float16",
    "complex64": "float32",
    "complex128": "float64",
}
"""Dtypes that Arrow lacks, and the elements that their bits are stored as."""
_TYPES = {"bool": pa.bool_()} | {
    np.dtype(name).name: pa.from_numpy_dtype(name)
    for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Form:
    """How tensors stand in a column.

    Attributes:
        kind: Whether they are of one spec, of one dtype, or of several.
        dtype: The one dtype; not used for several.
        shape: The one shape; not used for several.
    """

    kind: Literal["fixed", "ragged", "mixed"]
    dtype: str = ""
    shape: tuple[int, ...] = ()


def form_of(specs: Iterable[TensorSpec]) -> Form:
    """Return the plainest form that holds tensors of these specs."""
    distinct = set(specs)
    dtypes = {spec.dtype for spec in distinct}
    if len(dtypes) != 1:
        return Form("mixed")
    (dtype,) = dtypes
    if len(distinct) > 1:
        return Form("ragged", dtype)
    (spec,) = distinct
    elements = nbytes_of(spec) // dtype_from_name(dtype).itemsize * _parts(dtype)
    return Form("fixed", dtype, spec.shape) if 0 < elements <= _MOST_ELEMENTS else Form("ragged", dtype)


def field_of(form: Form, name: str) -> pa.Field:
    """Return the field of a column of this form."""
    if form.kind == "mixed":
        return pa.field(name, _struct(pa.large_binary(), dtype=True))
    metadata = {DTYPE_KEY: form.dtype.encode()} if form.dtype in _RAW else None
    return pa.field(name, _type_of(form), metadata=metadata)


def column_of(form: Form, tensors: Sequence[torch.Tensor]) -> pa.Array:
    """Return tensors as a column of a form that holds them."""
    if form.kind == "fixed":
        kind = _type_of(form)
        lists = pa.FixedSizeListArray.from_arrays(_values(form.dtype, stacked_bytes(tensors)), type=kind.storage_type)
        return pa.ExtensionArray.from_storage(kind, lists)
    views = [byte_view(snapshot(each)) for each in tensors]
    shapes = [list(each.shape) for each in tensors]
    if form.kind == "mixed":
        dtypes = pa.array([dtype_name(each.dtype) for each in tensors], pa.string())
        return pa.StructArray.from_arrays([_binary(views), _shapes(shapes), dtypes], fields=list(_type_of(form)))
    values = _values(form.dtype, np.concatenate(views) if views else np.empty(0, np.uint8))
    kind = _type_of(form)
    width = dtype_from_name(form.dtype).itemsize // _parts(form.dtype)
    offsets = np.concatenate([[0], np.cumsum([view.nbytes // width for view in views])]).astype(np.int64)
    data = pa.LargeListArray.from_arrays(pa.array(offsets), values)
    return pa.StructArray.from_arrays([data, _shapes(shapes)], fields=list(kind))


def stacked_bytes(tensors: Sequence[torch.Tensor]) -> Bytes:
    """Return the bytes of tensors of one spec, one after the other; far sooner than tensor by tensor."""
    if not tensors:
        return np.empty(0, np.uint8)
    if tensors[0].dtype == torch.complex32:  # of which torch warns
        return np.concatenate([byte_view(snapshot(each)) for each in tensors])
    return byte_view(torch.stack(list(tensors)))


def is_tensor(field: pa.Field) -> bool:
    """Tell whether a column looks like tensors: lists of numbers, or what `column_of` makes."""
    kind = _storage(field.type)
    if _is_ours(kind):
        return True
    return _is_list(kind) and bool(_leaf(kind) in _NAMES)


def holds_numbers(field: pa.Field) -> bool:
    """Tell whether a column can be taken for tensors when it is named: lists of numbers, and numbers by themselves."""
    return is_tensor(field) or bool(field.type in _NAMES)


def tensors_of(column: pa.Array, field: pa.Field, first: int = 0) -> torch.Tensor | list[torch.Tensor]:
    """Return the tensors of a column, stacked where its type says that they have one shape.

    Args:
        column: The column, or a part of it.
        field: Its field, whose metadata may name the dtype.
        first: Number of the first row, for messages.

    Raises:
        InvalidInputError: A row is null, or is no tensor.
    """
    where = f"column {field.name!r}"
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InvalidInputError(f"{where} is null in row {first + row}; drop such rows, or fill them")
    named = ((field.metadata or {}).get(DTYPE_KEY) or b"").decode("utf-8", "replace")
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        stack = adopted(_numbers(column.storage.flatten(), where)).reshape(len(column), *kind.shape)
        if kind.permutation is not None:
            stack = stack.permute(0, *(1 + place for place in kind.permutation))
        return _restored(stack, named, where)
    array = column.storage if isinstance(column, pa.ExtensionArray) else column
    if _is_ours(array.type):
        return _of_structs(array, named, where, first)
    if _is_list(array.type):
        return _of_lists(array, named, where, first)
    return _restored(adopted(_numbers(array, where)), named, where)


def _parts(dtype: str) -> int:
    return 2 if dtype.startswith("complex") else 1


def _type_of(form: Form) -> pa.DataType:
    if form.kind == "mixed":
        return _struct(pa.large_binary(), dtype=True)
    value = _TYPES[_RAW.get(form.dtype, form.dtype)]
    if form.kind == "ragged":
        return _struct(pa.large_list(value))
    return pa.fixed_shape_tensor(value, [*form.shape, 2] if _parts(form.dtype) == 2 else list(form.shape))


def _struct(data: pa.DataType, *, dtype: bool = False) -> pa.DataType:
    fields = [pa.field("data", data), pa.field("shape", pa.list_(pa.int64()))]
    return pa.struct([*fields, pa.field("dtype", pa.string())] if dtype else fields)


def _is_ours(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or [each.name for each in kind][:2] != ["data", "shape"]:
        return False
    data, shape = kind.field(0).type, kind.field(1).type
    if not (_is_list(shape) and pa.types.is_integer(shape.value_type)):
        return False
    binary = pa.types.is_binary(data) or pa.types.is_large_binary(data) or pa.types.is_binary_view(data)
    if kind.num_fields == 3:
        return bool(binary and kind.field(2).name == "dtype")
    return bool(kind.num_fields == 2 and _is_list(data) and data.value_type in _NAMES)


def _is_list(kind: pa.DataType) -> bool:
    of = pa.types
    views = of.is_list_view(kind) or of.is_large_list_view(kind)
    return bool(of.is_list(kind) or of.is_large_list(kind) or of.is_fixed_size_list(kind) or views)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _leaf(kind: pa.DataType) -> pa.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _values(dtype: str, data: np.ndarray[Any, Any]) -> pa.Array:
    if dtype == "bool":
        return pa.array(data.view(np.bool_))
    kind = _TYPES[_RAW.get(dtype, dtype)]
    return pa.Array.from_buffers(kind, data.nbytes // (kind.bit_width // 8), [None, pa.py_buffer(data)])


def _binary(views: Sequence[np.ndarray[Any, Any]]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([view.nbytes for view in views])]).astype(np.int64)
    data = np.concatenate(views) if views else np.empty(0, np.uint8)
    return pa.Array.from_buffers(pa.large_binary(), len(views), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _shapes(shapes: Sequence[Sequence[int]]) -> pa.Array:
    return pa.array(shapes, pa.list_(pa.int64()))


def _numbers(values: pa.Array, where: str) -> np.ndarray[Any, Any]:
    if values.type not in _NAMES:
        raise InvalidInputError(f"{where} holds {values.type}, not numbers; convert it")
    if values.null_count:
        raise InvalidInputError(f"{where} has tensors with null elements; fill them, as with NaN")
    array: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=values.type != pa.bool_())
    return array


def _restored(stack: torch.Tensor, named: str, where: str) -> torch.Tensor:
    """Return raw elements as those of the dtype that the field names."""
    if not named:
        return stack
    if named not in _RAW or dtype_name(stack.dtype) != _RAW[named]:
        raise InvalidInputError(f"{where} says in its metadata that {stack.dtype} elements are {named!r}; drop that")
    shape = tuple(stack.shape)
    if _parts(named) == 2:
        if not shape or shape[-1] != 2:
            raise InvalidInputError(f"{where} says that it is {named}, but its last dimension is no pair of floats")
        shape = shape[:-1]
    return view_of(byte_view(stack.contiguous()), TensorSpec(named, shape))


def _of_structs(array: pa.StructArray, named: str, where: str, first: int) -> list[torch.Tensor]:
    data, shapes = array.field(0), array.field(1).to_pylist()
    dtypes = array.field(2).to_pylist() if array.type.num_fields == 3 else [None] * len(array)
    tensors = []
    for row, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        place = f"{where}, row {first + row}"
        if shape is None or any(size is None or size < 0 for size in shape) or not data[row].is_valid:
            raise InvalidInputError(f"{place}: its data or shape is null or negative")
        flat = _row(data[row], dtype, named, place)
        tensors.append(_shaped(flat, tuple(shape), place))
    return tensors


def _row(data: pa.Scalar, dtype: str | None, named: str, place: str) -> torch.Tensor:
    if isinstance(data, pa.ListScalar | pa.LargeListScalar):
        flat: torch.Tensor = adopted(_numbers(data.values, place))
        return _restored(flat.reshape(-1, 2) if _parts(named) == 2 else flat, named, place)
    raw = np.frombuffer(data.as_buffer(), np.uint8) if len(data.as_buffer()) else np.empty(0, np.uint8)
    known = dtype_from_name(dtype or "")
    if raw.nbytes % known.itemsize:
        raise InvalidInputError(f"{place}: {raw.nbytes} bytes are no whole elements of {dtype}")
    return view_of(raw, TensorSpec(dtype_name(known), (raw.nbytes // known.itemsize,)))


def _shaped(flat: torch.Tensor, shape: tuple[int, ...], place: str) -> torch.Tensor:
    wanted = 1
    for size in shape:
        wanted *= size
    if wanted != flat.numel():
        raise InvalidInputError(f"{place}: {flat.numel()} elements do not make the shape {list(shape)}")
    return flat.reshape(shape) if wanted else empty(TensorSpec(dtype_name(flat.dtype), shape))


def _of_lists(array: pa.Array, named: str, where: str, first: int) -> torch.Tensor | list[torch.Tensor]:
    """Return the tensors of nested lists: each row's lists must be of equal lengths on each level."""
    levels, values = [], array
    fixed = True
    while _is_list(values.type):
        fixed = fixed and pa.types.is_fixed_size_list(values.type)
        offsets, values = _opened(values, where)
        levels.append(offsets)
    flat = adopted(_numbers(values, where))
    if fixed:
        sizes = [_list_size(array.type, level) for level in range(len(levels))]
        return _restored(flat.reshape(len(array), *sizes), named, where)
    rows = [_bounds(levels, row, f"{where}, row {first + row}") for row in range(len(array))]
    return [_restored(flat[begin:end].reshape(shape), named, where) for begin, end, shape in rows]


def _opened(array: pa.Array, where: str) -> tuple[np.ndarray[Any, Any], pa.Array]:
    """Return where the lists of a level begin and end in the level below, and that level."""
    kind = array.type
    if array.null_count:
        raise InvalidInputError(f"{where} has tensors with null lists; fill them")
    if pa.types.is_fixed_size_list(kind):
        return np.arange(len(array) + 1, dtype=np.int64) * kind.list_size, array.flatten()
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        array = array.cast(pa.large_list(kind.value_type))
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], array.values.slice(offsets[0], offsets[-1] - offsets[0])


def _list_size(kind: pa.DataType, level: int) -> int:
    for _ in range(level):
        kind = kind.value_type
    return int(kind.list_size)


def _bounds(levels: Sequence[np.ndarray[Any, Any]], row: int, place: str) -> tuple[int, int, list[int]]:
    begin, end, shape = int(levels[0][row]), int(levels[0][row + 1]), []
    shape.append(end - begin)
    for offsets in levels[1:]:
        lengths = np.diff(offsets[begin : end + 1])
        if lengths.size and (lengths != lengths[0]).any():
            raise InvalidInputError(f"{place}: its lists have different lengths, which makes no tensor")
        shape.append(int(lengths[0]) if lengths.size else 0)
        begin, end = int(offsets[begin]), int(offsets[end])
    return begin, end, shape
