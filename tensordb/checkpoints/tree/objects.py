"""The tensors and arrays of a tree as descriptions: which parts, in which leaves, seen how.

Two values in a tree with the same description are the same object when they are read. A document holds the
descriptions as plain values; those read from one are checked before anything is done by them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from tensordb.checkpoints.tree.leaves import DENSE, Parts, check_form, part_names, put_together
from tensordb.checkpoints.tree.sharing import Reference, View
from tensordb.errors import IntegrityError, InvalidInputError, UnsupportedFormatError
from tensordb.tensors import dtype_from_name

_FLAG_BITS = 2
_MAX_SIZE = 1 << 62
_MAX_RANK = 64
_FLAGS = (1 << _FLAG_BITS) - 1


class TensorObject(NamedTuple):
    """How a tensor or array is put together from leaves."""

    form: tuple[Any, ...]
    flags: int
    references: tuple[Reference, ...]

    @property
    def leaves(self) -> tuple[int, ...]:
        """Numbers of the leaves that it needs, each once."""
        return tuple(dict.fromkeys(_leaf_of(reference) for reference in self.references))

    @property
    def claimed(self) -> tuple[str, ...]:
        """What the names of its leaves may add to its own."""
        if self.form is DENSE and type(self.references[0]) is int:
            return ()
        names = zip(part_names(self.form), self.references, strict=True)
        return tuple(suffix for name, reference in names if (suffix := leaf_suffix(name, type(reference) is View)))


def leaf_suffix(part: str, is_span: bool) -> str:
    """Return what the name of a leaf adds to the name of the tensor that it is a part of."""
    return (f".{part}" if part else "") + (".storage" if is_span else "")


def describe(parts: Parts, references: Sequence[Reference]) -> TensorObject:
    """Return the description of a value whose parts refer to these leaves."""
    return TensorObject(parts.form, parts.flags, tuple(references))


def to_plain(tensor: TensorObject) -> Any:
    """Return a description as plain values; the usual one, a dense tensor that is a leaf, as one number."""
    if tensor.form == DENSE and type(tensor.references[0]) is int:
        return tensor.references[0] << _FLAG_BITS | tensor.flags
    return (tensor.form, tensor.flags, *(_reference_to_plain(reference) for reference in tensor.references))


def from_plain(value: Any) -> TensorObject:
    """Return the description that `to_plain` gave; raise IntegrityError for anything else."""
    if _is_size(value):
        return TensorObject(DENSE, value & _FLAGS, (value >> _FLAG_BITS,))
    if type(value) is not tuple or len(value) < 3:
        raise _malformed(value)
    form, flags, *references = value
    check_form(form)
    if type(flags) is not int or not 0 <= flags <= _FLAGS or len(references) != len(part_names(form)):
        raise _malformed(value)
    return TensorObject(form, flags, tuple(map(_reference_from_plain, references)))


class Deferred(ABC):
    """What stands for a tensor until it is loaded. A tensor that is put together of parts loads them at once."""

    @abstractmethod
    def load(self) -> torch.Tensor:
        """Return the dense tensor."""


class ObjectLoader:
    """The objects of one document while they are read: each leaf is fetched once, each object made once."""

    def __init__(self, objects: Sequence[TensorObject], fetch: Callable[[int], Any]) -> None:
        self._objects = objects
        self._fetch = fetch
        self._leaves: dict[int, Any] = {}
        self._made: dict[int, Any] = {}

    def load(self, number: int) -> Any:
        """Return the object of this number."""
        if number not in self._made:
            tensor = self._objects[number]
            if tensor.form == DENSE and type(tensor.references[0]) is int:
                leaf = self._fetched(tensor.references[0])
                if isinstance(leaf, Deferred):
                    return leaf
            parts = [self._part(reference) for reference in tensor.references]
            self._made[number] = put_together(tensor.form, tensor.flags, parts)
        return self._made[number]

    def _part(self, reference: Reference) -> torch.Tensor:
        if type(reference) is View:
            return _see(self._leaf(reference.source), reference)
        return self._leaf(_leaf_of(reference))

    def _leaf(self, index: int) -> torch.Tensor:
        leaf = self._fetched(index)
        if isinstance(leaf, Deferred):
            leaf = self._leaves[index] = leaf.load()
        if type(leaf) is not torch.Tensor or leaf.layout != torch.strided:
            raise InvalidInputError(f"leaf {index} was given as {type(leaf).__name__}; give a dense torch.Tensor")
        return leaf

    def _fetched(self, index: int) -> Any:
        if index not in self._leaves:
            self._leaves[index] = self._fetch(index)
        return self._leaves[index]


def _see(span: torch.Tensor, view: View) -> torch.Tensor:
    dtype = dtype_from_name(view.dtype)
    if span.ndim != 1 or not span.is_contiguous() or span.dtype not in (dtype, torch.uint8):
        raise IntegrityError(f"a view of {view.dtype} does not fit a leaf of {span.dtype} with shape {span.shape}")
    if span.dtype != dtype:
        span = span[: span.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.stride, strict=True))
    if math.prod(view.shape) and last >= span.numel():
        raise IntegrityError(f"{view} reaches beyond its leaf of {span.numel()} elements")
    return span.as_strided(view.shape, view.stride, span.storage_offset() + view.offset)


def _leaf_of(reference: Reference) -> int:
    return reference.source if type(reference) is View else reference  # type: ignore[return-value]


def _reference_to_plain(reference: Reference) -> Any:
    if type(reference) is not View:
        return reference
    return (reference.source, reference.dtype, reference.offset, reference.shape, reference.stride)


def _reference_from_plain(value: Any) -> Reference:
    if _is_size(value):
        number: int = value
        return number
    if type(value) is not tuple or len(value) != 5:
        raise _malformed(value)
    source, dtype, offset, shape, stride = value
    numbers_given = type(shape) is type(stride) is tuple and len(shape) == len(stride) <= _MAX_RANK
    if type(dtype) is not str or not numbers_given or not all(map(_is_size, (source, offset, *shape, *stride))):
        raise _malformed(value)
    if math.prod(shape) >= _MAX_SIZE or any(n > 1 and step == 0 for n, step in zip(shape, stride, strict=True)):
        raise _malformed(value)
    try:
        dtype_from_name(dtype)
    except InvalidInputError as error:
        raise UnsupportedFormatError(
            f"a document has a tensor that this version of torch cannot hold: {error}"
        ) from None
    return View(source, dtype, offset, shape, stride)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _malformed(value: Any) -> IntegrityError:
    return IntegrityError(f"a document describes a tensor by a {type(value).__name__} that none is written with")
