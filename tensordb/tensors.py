"""Tensor memory: the dtype table, snapshots, byte views and new tensors. No other module touches it.

Invariants: a snapshot is a plain, detached, dense, contiguous CPU tensor; a byte view aliases its tensor; the
canonical bytes of a tensor are its elements in row-major order, little-endian.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec

if sys.byteorder != "little":
    raise ImportError("tensordb stores tensors little-endian and needs a little-endian machine; this one is not")

_NAMES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "complex32",
    "complex64",
    "complex128",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)
# A dtype that the installed torch lacks is absent here; a payload that holds it is then refused with its name.
_BY_NAME: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}
_BY_DTYPE: dict[torch.dtype, str] = {dtype: name for name, dtype in _BY_NAME.items()}

Bytes = NDArray[np.uint8]

_COPIED_ALONE_NBYTES = 16 << 20
HUGE_PAGE_NBYTES = 4 << 20
"""Bytes of a new tensor from which on huge pages are asked for: two of them lie whole within it."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name of a dtype without the prefix, such as ``"float32"``.

    Raises:
        InvalidInputError: for a quantized or sub-byte dtype, which has no fixed bytes for an element.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    name = _BY_DTYPE.get(dtype)
    if name is None:
        raise InvalidInputError(
            f"dtype {dtype} cannot be stored; dequantize or convert the tensor to one of: {', '.join(_BY_NAME)}"
        )
    return name


def dtype_from_name(name: str | torch.dtype) -> torch.dtype:
    """Return the dtype called `name`, given as ``"float32"``, ``"torch.float32"`` or the dtype itself.

    Raises:
        InvalidInputError: if no storable dtype has this name.
    """
    if isinstance(name, torch.dtype):
        dtype_name(name)
        return name
    dtype = _BY_NAME.get(name.removeprefix("torch.")) if isinstance(name, str) else None
    if dtype is None:
        raise InvalidInputError(f"unknown dtype {name!r}; use one of: {', '.join(_BY_NAME)}")
    return dtype


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """Return dtype and shape of a tensor."""
    return TensorSpec(dtype_name(tensor.dtype), tuple(int(size) for size in tensor.shape))


def nbytes_of(spec: TensorSpec) -> int:
    """Return the raw bytes of a tensor with this spec; exact for any size."""
    return math.prod(spec.shape) * dtype_from_name(spec.dtype).itemsize


def adopted(value: Any) -> Any:
    """Return an array of another library as a tensor that aliases it where torch can, and anything else as it is.

    Arrays are those of NumPy, and objects with ``__dlpack__``, ``__array_interface__`` or ``__array__``.

    Raises:
        InvalidInputError: torch has no dtype for its elements, or it is masked or cannot be handed over.
    """
    if isinstance(value, torch.Tensor):
        return value
    try:
        if isinstance(value, np.ndarray | np.generic):
            return _of_array(value)
        if hasattr(value, "__dlpack__"):
            return torch.utils.dlpack.from_dlpack(value)
        if not isinstance(value, type) and (hasattr(value, "__array_interface__") or hasattr(value, "__array__")):
            return _of_array(np.asarray(value))
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"a {type(value).__name__} cannot be taken as a tensor: {error}") from error
    return value


def _of_array(value: Any) -> torch.Tensor:
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidInputError("a masked array has elements without a value; fill them with array.filled(...)")
    array = np.asarray(value)
    if array.dtype.name not in _BY_NAME:
        raise InvalidInputError(
            f"an array of {array.dtype} cannot be stored; convert it to one of: {', '.join(_BY_NAME)}"
        )
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    dense = np.require(native, requirements="C")
    return view_of(dense.reshape(-1).view(np.uint8), TensorSpec(array.dtype.name, array.shape))


def plain(tensor: Any) -> torch.Tensor:
    """Return `tensor` detached and free of subclasses; it aliases `tensor`.

    Raises:
        InvalidInputError: for what is not a tensor, and for meta, sparse, nested, quantized and wrapper tensors.
    """
    if not isinstance(tensor, torch.Tensor):
        raise InvalidInputError(
            f"expected a tensor or an array, got {type(tensor).__name__}; convert it with torch.as_tensor(...)"
        )
    if tensor.is_nested:
        raise InvalidInputError("a nested tensor cannot be stored; store each of tensor.unbind()")
    if tensor.layout != torch.strided:
        raise InvalidInputError(f"a tensor of layout {tensor.layout} cannot be stored; use tensor.to_dense()")
    if tensor.is_meta:
        raise InvalidInputError("a meta tensor has no values to store; materialize it with to_empty(device='cpu')")
    if tensor.is_quantized:
        raise InvalidInputError(f"a tensor of dtype {tensor.dtype} cannot be stored; use tensor.dequantize()")
    if hasattr(tensor, "__tensor_flatten__"):
        raise InvalidInputError(
            f"{type(tensor).__name__} keeps its values in other tensors; "
            "store a plain tensor, such as the result of full_tensor() or dequantize()"
        )
    dtype_name(tensor.dtype)
    detached = tensor.detach()
    return detached if type(detached) is torch.Tensor else detached.as_subclass(torch.Tensor)


def _dense(plain: torch.Tensor, copy: bool) -> torch.Tensor:
    dense = plain.cpu().resolve_conj().resolve_neg().contiguous()
    shares = dense.data_ptr() == plain.data_ptr() and plain.device.type == "cpu"
    return _cloned(dense) if copy and shares else dense


def _cloned(dense: torch.Tensor) -> torch.Tensor:
    """Return a copy of a contiguous CPU tensor, made by this thread alone up to some size.

    torch shares a copy of 128 KiB out among all cores, and waits for the one that comes last: milliseconds where others
    are at work, as those are that encode the tensors before.
    """
    if dense.nbytes > _COPIED_ALONE_NBYTES:
        return dense.clone()
    copied = torch.empty_like(dense)
    np.copyto(byte_view(copied), byte_view(dense))
    return copied


# torch warns on every allocation of complex32, so such tensors are copied as the pairs of halves that they are.
def _halves(plain: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(plain.conj() if plain.is_conj() else plain)


def _complex32(halves: torch.Tensor, *, conjugate: bool) -> torch.Tensor:
    if conjugate:
        halves = halves.clone()
        halves.select(-1, 1).neg_()
    return torch.view_as_complex(halves)


def snapshot(tensor: torch.Tensor, *, copy: bool = False) -> torch.Tensor:
    """Return a plain CPU tensor with the same values: detached, dense, contiguous, conjugation and sign resolved.

    Args:
        tensor: Any dense tensor or parameter on any device.
        copy: Give the result its own memory, so that later changes of `tensor` do not reach it. Without it the
            result aliases `tensor` where that needs no copy.

    Raises:
        InvalidInputError: for what is not a tensor, and for meta, sparse, nested and quantized tensors.
    """
    with torch.no_grad():
        detached = plain(tensor)
        if detached.dtype == torch.complex32:
            return _complex32(_dense(_halves(detached), copy), conjugate=detached.is_conj())
        return _dense(detached, copy)


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a snapshot in memory of its own; a large one lies in huge pages if it can, which halves the time."""
    detached = plain(tensor)
    if detached.dtype == torch.complex32 or detached.is_conj() or detached.is_neg() or not detached.numel():
        return snapshot(tensor, copy=True)
    if detached.nbytes < HUGE_PAGE_NBYTES and detached.device.type == "cpu":
        return detached.clone(memory_format=torch.contiguous_format)
    return empty(spec_of(detached)).copy_(detached)


def byte_view(tensor: torch.Tensor) -> Bytes:
    """Return the canonical bytes of a contiguous CPU tensor as ``uint8[nbytes]``, without a copy."""
    if tensor.numel() == 0:
        return np.empty(0, np.uint8)
    # A dimension of one element may have any stride in a contiguous tensor, which view() does not accept.
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()


def empty(spec: TensorSpec) -> torch.Tensor:
    """Return an uninitialised contiguous CPU tensor that owns its memory; a large one lies in huge pages if it can."""
    dtype = dtype_from_name(spec.dtype)
    if dtype == torch.complex32:
        return torch.view_as_complex(torch.empty((*spec.shape, 2), dtype=torch.float16))
    tensor = torch.empty(spec.shape, dtype=dtype)
    if tensor.numel() * tensor.element_size() >= HUGE_PAGE_NBYTES:
        ask_for_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor


def ask_for_huge_pages(address: int, nbytes: int) -> None:
    """Advise the system to back new memory with huge pages, whose faults take a fraction of the time (Linux).

    It is only advice: where it is not taken nothing else changes.
    """
    if _madvise is not None:
        begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        _madvise(begin, max(0, address + nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)


def _system_madvise() -> Any:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_madvise = _system_madvise()


def view_of(buffer: Any, spec: TensorSpec) -> torch.Tensor:
    """Return a tensor that aliases `buffer` and keeps it alive; writing to it is undefined if the buffer is read-only.

    Args:
        buffer: A contiguous bytes-like object of exactly the spec's bytes.

    Raises:
        InvalidInputError: if the length does not fit the spec.
    """
    flat = np.frombuffer(buffer, np.uint8)
    if flat.nbytes != nbytes_of(spec):
        raise InvalidInputError(f"{spec} needs {nbytes_of(spec)} bytes, the buffer has {flat.nbytes}; pass all of it")
    if flat.nbytes == 0:
        return empty(spec)
    # torch warns about each read-only buffer it is given; a ctypes array over the same memory is taken silently.
    memory = (ctypes.c_uint8 * flat.nbytes).from_address(flat.ctypes.data)
    memory.owner = flat  # type: ignore[attr-defined]
    return torch.frombuffer(memory, dtype=dtype_from_name(spec.dtype)).reshape(spec.shape)
