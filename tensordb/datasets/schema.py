"""What a dataset's schema demands of a tensor and its metadata."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensordb import tensors
from tensordb.catalog.datasets import DatasetRow
from tensordb.catalog.documents import check_text
from tensordb.catalog.fields import FieldType, ListOf, StructOf
from tensordb.errors import IntegrityError, InvalidInputError, SchemaValidationError
from tensordb.model import TensorSpec


@dataclass(frozen=True)
class _Kind:
    accepts: Callable[[Any], bool]
    column: FieldType


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS = {
    "int": _Kind(_is_int, "BIGINT"),
    "float": _Kind(lambda value: isinstance(value, float) or _is_int(value), "DOUBLE"),
    "str": _Kind(lambda value: isinstance(value, str), "VARCHAR"),
    "bool": _Kind(lambda value: isinstance(value, bool), "BOOLEAN"),
    "datetime": _Kind(lambda value: isinstance(value, dt.date), "TIMESTAMP"),
    "list": _Kind(lambda value: isinstance(value, list), ListOf("NULL")),
    "dict": _Kind(lambda value: isinstance(value, dict), StructOf()),
}
_SYNONYMS = {"integer": "int", "double": "float", "number": "float", "string": "str", "text": "str", "boolean": "bool"}
_FORM = '{"shape": [None, 224, 224], "dtype": "float32", "metadata": {"label": "int"}}'


@dataclass(frozen=True)
class DatasetSchema:
    """Checks of a dataset; every part is optional.

    Attributes:
        shape: Length of each dimension, None for any; None as a whole for any shape.
        dtype: The tensors' dtype, None for any.
        metadata: Kind of each required metadata field: int, float (takes ints too), str, bool, datetime, list or
            dict; with a ``?`` behind it the field may be missing or None.
    """

    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, schema: Mapping[str, Any] | None) -> DatasetSchema:
        """Return the schema of the form that users write.

        Raises:
            InvalidInputError: A part is unknown or malformed.
        """
        if schema is None:
            return cls()
        if not isinstance(schema, Mapping):
            raise InvalidInputError(f"a schema is a mapping such as {_FORM}, not {type(schema).__name__}")
        unknown = [part for part in schema if part not in ("shape", "dtype", "metadata")]
        if unknown:
            raise InvalidInputError(f"unknown schema part {unknown[0]!r}; there are shape, dtype and metadata")
        dtype = schema.get("dtype")
        return cls(
            _parse_shape(schema.get("shape")),
            None if dtype is None else tensors.dtype_name(tensors.dtype_from_name(dtype)),
            _parse_metadata(schema.get("metadata")),
        )

    @classmethod
    def of_row(cls, row: DatasetRow) -> DatasetSchema:
        """Return the schema that the catalog has of a dataset; raise IntegrityError when it is none."""
        try:
            return cls.parse(row.schema)
        except InvalidInputError as error:
            raise IntegrityError(f"the stored schema of dataset {row.name!r} is damaged: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which `parse` takes back."""
        parts: dict[str, Any] = {"metadata": dict(self.metadata)} if self.metadata else {}
        if self.shape is not None:
            parts["shape"] = list(self.shape)
        if self.dtype is not None:
            parts["dtype"] = self.dtype
        return parts

    def columns(self) -> StructOf:
        """Return the SQL types of the declared metadata fields."""
        return StructOf({name: _KINDS[kind.rstrip("?")].column for name, kind in self.metadata.items()})

    def check_spec(self, spec: TensorSpec) -> None:
        """Raise SchemaValidationError unless a tensor of this spec fits."""
        if self.dtype is not None and spec.dtype != self.dtype:
            raise SchemaValidationError(
                f"dtype: the schema wants {self.dtype}, the tensor has {spec.dtype}; convert it"
            )
        if self.shape is None:
            return
        fits = len(spec.shape) == len(self.shape) and all(
            wanted is None or wanted == length for wanted, length in zip(self.shape, spec.shape, strict=True)
        )
        if not fits:
            raise SchemaValidationError(
                f"shape: the schema wants {list(self.shape)}, the tensor has {list(spec.shape)}"
            )

    def check_metadata(self, document: dict[str, Any] | None) -> None:
        """Raise SchemaValidationError unless the normalized metadata has the declared fields."""
        for name, kind in self.metadata.items():
            value = (document or {}).get(name)
            if value is None:
                if kind.endswith("?"):
                    continue
                state = "None" if name in (document or {}) else "missing"
                raise SchemaValidationError(f"metadata.{name}: the schema wants {kind}, it is {state}")
            if not _KINDS[kind.rstrip("?")].accepts(value):
                raise SchemaValidationError(
                    f"metadata.{name}: the schema wants {kind}, {value!r} is a {type(value).__name__}"
                )


def _parse_shape(shape: Any) -> tuple[int | None, ...] | None:
    if shape is None:
        return None
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise InvalidInputError(f"schema shape {shape!r} is not a list of lengths; None stands for any length")
    for length in shape:
        if length is not None and (not _is_int(length) or length < 0):
            raise InvalidInputError(f"schema shape {list(shape)!r} has {length!r}; a length is an int from 0 or None")
    return tuple(shape)


def _parse_metadata(metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"schema metadata {metadata!r} is not a mapping of field names to kinds")
    for name in metadata:
        if not isinstance(name, str) or not name or "\0" in name:
            raise InvalidInputError(f"schema metadata has the field {name!r}; a field's name is text without NUL")
        check_text(name, "the name of a schema metadata field")
    if len({name.casefold() for name in metadata}) < len(metadata):
        raise InvalidInputError(
            f"schema metadata {list(metadata)!r} has names that differ by case only; SQL ignores case"
        )
    return {name: _parse_kind(name, kind) for name, kind in metadata.items()}


def _parse_kind(name: Any, kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) else kind
    if isinstance(text, str):
        bare = text.rstrip("?").strip()
        bare = _SYNONYMS.get(bare, bare)
        if bare in _KINDS:
            return bare + ("?" if text.endswith("?") else "")
    raise InvalidInputError(
        f"schema metadata field {name!r} has the kind {kind!r}; there are {', '.join(_KINDS)}, each with ? if optional"
    )
