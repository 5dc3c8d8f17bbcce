"""Tensors of a checkpoint that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.checkpoints.placing import placed
from tensordb.checkpoints.tree import Deferred
from tensordb.engine import Database, ObjectSource
from tensordb.errors import InvalidInputError
from tensordb.model import Encoding
from tensordb.tensors import dtype_from_name, nbytes_of


class LazyTensor(Deferred):
    """A tensor of a checkpoint that is read when it is asked for; it stays readable when the checkpoint is deleted.

    Functions of torch and NumPy read it whole each time they are given it: ``torch.mean(lazy)``, ``net.weight + lazy``,
    ``net.load_state_dict(...)``. Methods of tensors are those of ``lazy.load()``.

    Attributes:
        name: Its full name, such as ``"model.layer.0.weight"``.
        shape: Of the tensor.
        dtype: Of the tensor.
        nbytes: Raw bytes.
        encoding: What was applied to the stored tensor.
    """

    def __init__(self, db: Database, name: str, source: ObjectSource, device: torch.device | None) -> None:
        self._db = db
        self._source = source
        self._device = device
        self.name = name

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return torch.Size(self._source.reader.spec.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tensor."""
        return dtype_from_name(self._source.reader.spec.dtype)

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensor."""
        return nbytes_of(self._source.reader.spec)

    @property
    def encoding(self) -> Encoding:
        """What was applied to the stored tensor."""
        return self._source.reader.encoding

    def load(self) -> torch.Tensor:
        """Read the whole tensor."""
        return placed(self._db.sources.decode(f"tensor {self.name!r}", self._source), self._device)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read what `index` picks (ints, slices, ``...``), decoding only the chunks it touches."""
        return placed(self._db.sources.decode(f"tensor {self.name!r}", self._source, index=index), self._device)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Read what a function of torch is given, and call it."""
        return function(*_read(tuple(args)), **_read(dict(kwargs or {})))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read it as an array, which is always a copy."""
        tensor = self.load().cpu()
        try:
            return np.asarray(tensor.numpy(), dtype)
        except TypeError as error:
            raise InvalidInputError(f"{self!r} has a dtype that NumPy lacks; .load().float() is an array") from error

    def __getattr__(self, name: str) -> NoReturn:
        known = not name.startswith("_") and hasattr(torch.Tensor, name)
        remedy = f", which is not read yet; it is .load().{name}, or [index].{name} of a part" if known else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{remedy}", name=name, obj=self)

    def __len__(self) -> NoReturn:
        # `torch.as_tensor` asks for the length first, as of any sequence.
        raise InvalidInputError(f"{self!r} is not read yet; .load() is the tensor, .shape[0] its length")

    def __repr__(self) -> str:
        return f"LazyTensor({self.name!r}, {str(self.dtype).removeprefix('torch.')}{list(self.shape)})"


def _read(value: Any) -> Any:
    """Return arguments of a function with the tensors in place of what stands for them."""
    if isinstance(value, LazyTensor):
        return value.load()
    if type(value) in (list, tuple):
        return type(value)(map(_read, value))
    return {key: _read(each) for key, each in value.items()} if type(value) is dict else value
