"""What storing was asked for, checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tensordb import tensors
from tensordb.catalog import documents
from tensordb.encoding.presets import CompressionConfig, get_compression_preset
from tensordb.errors import InvalidInputError
from tensordb.weights.weight import Label, Weight

Preset = str | CompressionConfig | None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A weight to be stored.

    Attributes:
        tensor: Plain; it may alias the user's memory.
        label: What it is to be known as, None when nothing was given.
    """

    tensor: torch.Tensor
    label: Label | None

    @classmethod
    def of(
        cls,
        given: Any,
        name: Any = None,
        layer_type: Any = None,
        model_name: Any = None,
        metadata: Any = None,
        *,
        what: str = "the weight",
    ) -> Request:
        """Return a tensor, or a `Weight`, with what is said beside it, which takes precedence.

        Raises:
            InvalidInputError: Something of it cannot be stored.
        """
        weight = given if isinstance(given, Weight) else Weight(given)
        try:
            tensor = tensors.plain(weight.tensor)
        except InvalidInputError as error:
            raise InvalidInputError(f"{what}: {error}") from error
        plain = documents.normalize(weight.metadata if metadata is None else metadata)
        texts = (
            _text(weight.name if name is None else name, "name"),
            _text(weight.layer_type if layer_type is None else layer_type, "layer_type"),
            _text(weight.model_name if model_name is None else model_name, "model_name"),
        )
        nothing = plain is None and texts == (None, None, None)
        return cls(tensor, None if nothing else Label(*texts, plain or {}))

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensor."""
        return self.tensor.numel() * self.tensor.element_size()

    @property
    def name(self) -> str | None:
        """The name that a config's rules know it by."""
        return None if self.label is None else self.label.name

    @property
    def title(self) -> str:
        """What it is called in errors."""
        return "a weight" if self.name is None else f"the weight {self.name!r}"


def requests_of(weights: Any, layer_type: Any, model_name: Any, metadata: Any) -> Iterator[Request]:
    """Yield what a batch asks for, one by one as it is taken from an iterable.

    Raises:
        InvalidInputError: The batch, or the element that is reached, is none.
    """
    if isinstance(weights, Mapping):
        for name, given in weights.items():
            own = isinstance(given, Weight) and given.name is not None
            yield Request.of(given, None if own else name, layer_type, model_name, metadata, what=f"weights[{name!r}]")
        return
    for position, given in enumerate(weights):
        name, value = given if isinstance(given, tuple) and len(given) == 2 else (None, given)
        yield Request.of(value, name, layer_type, model_name, metadata, what=f"weights[{position}]")


def check_batch(weights: Any) -> None:
    """Raise InvalidInputError for what is no batch, such as a single tensor or a module."""
    if isinstance(weights, torch.Tensor | Weight | str | bytes) or not isinstance(weights, Iterable):
        raise InvalidInputError(
            f"weights is a {type(weights).__name__}; give a mapping of names to tensors such as model.state_dict(), "
            "or an iterable of tensors, Weight values or (name, tensor) pairs"
        )


def config_of(preset: Any, default: CompressionConfig) -> CompressionConfig:
    """Return the config that a user gave, or its preset's; `default` for None."""
    if preset is None:
        return default
    return preset if isinstance(preset, CompressionConfig) else get_compression_preset(preset)


def check_max_error(max_error: Any) -> float | None:
    """Return the bound of a delta; raise InvalidInputError for what is none."""
    if max_error is None:
        return None
    if isinstance(max_error, bool) or not isinstance(max_error, int | float) or not 0 < max_error < math.inf:
        raise InvalidInputError(f"max_error is {max_error!r}; give a number above 0, or None for bit for bit")
    return float(max_error)


def _text(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise InvalidInputError(f"{what} is {value!r}; give text without NUL, or None")
    return documents.check_text(value, what)
