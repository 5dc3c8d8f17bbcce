"""What tensordb says of the columns that it writes, in the schema of Arrow, so that they are read back as they were.

A schema's metadata has, under ``tensordb.columns``, a JSON object: ``tensor``, ``record_id`` and ``created_at`` name
those columns, ``fields`` has the metadata field of each other column, and ``document`` names the column that holds the
metadata exactly (MessagePack, as the catalog has it) in the rows where typed columns cannot: they know no difference
between None and a missing field, or 1 and 1.0.

It is only a hint: a file may have been changed since. What names no column that is there is ignored, and an exact
document counts only where it agrees with the columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from tensordb.catalog import documents, fields
from tensordb.catalog.fields import FieldType, ListOf, StructOf
from tensordb.errors import IntegrityError

KEY = b"tensordb.columns"


@dataclass(frozen=True)
class Marks:
    """Names of the columns by what they hold, None for those that are not there.

    `whole` says that all columns which the documents know are there.
    """

    tensor: str | None = None
    record_id: str | None = None
    created_at: str | None = None
    document: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the metadata of a schema."""
        return {KEY: json.dumps(asdict(self)).encode()}


def marks_of(schema: pa.Schema) -> Marks:
    """Return what is said of the columns of a schema, without what is not so."""
    try:
        said = json.loads((schema.metadata or {})[KEY])
    except (KeyError, ValueError, RecursionError):
        return Marks()
    if not isinstance(said, dict):
        return Marks()
    single = {
        name: said.get(name) if said.get(name) in schema.names else None
        for name in ("tensor", "record_id", "created_at", "document")
    }
    if single["document"] is not None and schema.field(single["document"]).type != pa.binary():
        single["document"] = None
    named = said.get("fields")
    if not isinstance(named, dict) or not all(isinstance(each, str) for each in named.values()):
        named = {}
    there = {name: each for name, each in named.items() if name in schema.names}
    return Marks(**single, fields=there, whole=len(there) == len(named))


def exact(packed: bytes | None, typed: Mapping[str, Any], kinds: Mapping[str, FieldType]) -> dict[str, Any] | None:
    """Return the document of a row; None when there is none, or when the typed values say something else."""
    if packed is None:
        return None
    try:
        document = documents.unpack(packed)
        for name, kind in kinds.items():
            if not _equal(fields.coerce(_value(document, name), kind), typed[name]):
                return None
    except (IntegrityError, ValueError, TypeError, AttributeError):
        return None
    return document


def kind_of(kind: pa.DataType) -> FieldType | None:
    """Return the metadata type that a column of tensordb's has; None for any other."""
    if pa.types.is_struct(kind):
        inner = {each.name: kind_of(each.type) for each in kind}
        return StructOf({name: each for name, each in inner.items() if each is not None})
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        element = kind_of(kind.value_type)
        return None if element is None else ListOf(element)
    return _KINDS.get(kind)


_KINDS: dict[pa.DataType, FieldType] = {
    pa.bool_(): "BOOLEAN",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.date32(): "DATE",
    pa.timestamp("us"): "TIMESTAMP",
    pa.string(): "VARCHAR",
}


def _value(document: Mapping[str, Any], name: str) -> Any:
    if name in document:
        return document[name]
    return {each.casefold(): value for each, value in document.items()}.get(name.casefold())


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (left != left and right != right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_equal(value, right[name]) for name, value in left.items())
    if isinstance(left, Sequence) and isinstance(right, Sequence) and not isinstance(left, str):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)
