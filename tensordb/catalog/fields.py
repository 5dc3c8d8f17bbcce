"""SQL types of metadata fields: inferred from values, widened when a new value needs it.

A dataset's fields are one DuckDB STRUCT. Types form a lattice: NULL below everything; BOOLEAN < BIGINT < DOUBLE;
DATE < TIMESTAMP; lists and structs element by element; anything else mixed is VARCHAR, as text. Struct fields are
compared without regard to case, as SQL does: the first spelling names the column.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tensordb.catalog.json_text import json_of
from tensordb.errors import IntegrityError

Scalar = Literal["NULL", "BOOLEAN", "BIGINT", "DOUBLE", "DATE", "TIMESTAMP", "VARCHAR"]


@dataclass(frozen=True)
class ListOf:
    """A list whose elements have one type."""

    element: FieldType


@dataclass(frozen=True)
class StructOf:
    """Named fields, in the order in which they appeared."""

    fields: Mapping[str, FieldType] = field(default_factory=dict)


FieldType = Scalar | ListOf | StructOf

INT64 = range(-(2**63), 2**63)
_MOST_LEVELS = 100
"""Levels of a stored type; documents nest less deep."""
_SCALARS: dict[type, Scalar] = {
    type(None): "NULL",
    bool: "BOOLEAN",
    int: "BIGINT",
    float: "DOUBLE",
    str: "VARCHAR",
    dt.datetime: "TIMESTAMP",
    dt.date: "DATE",
}
_LADDERS: tuple[tuple[Scalar, ...], ...] = (("BOOLEAN", "BIGINT", "DOUBLE"), ("DATE", "TIMESTAMP"))


def type_of(value: Any) -> FieldType:
    """Return the type of one normalized value."""
    if isinstance(value, dict):
        kinds = {name: type_of(inner) for name, inner in value.items() if _is_column_name(name)}
        if len({name.casefold() for name in kinds}) == len(kinds):
            return StructOf(kinds)
        return functools.reduce(_widen_struct, (StructOf({name: kind}) for name, kind in kinds.items()), StructOf())
    if isinstance(value, list):
        element: FieldType = "NULL"
        for item in value:
            element = widen(element, type_of(item))
        return ListOf(element)
    scalar = _SCALARS[type(value)]
    # Beyond 64 bits a number still compares as a number; its exact value is in the document.
    return "DOUBLE" if scalar == "BIGINT" and value not in INT64 else scalar


def widen(left: FieldType, right: FieldType) -> FieldType:
    """Return the narrowest type that holds values of both."""
    if left == right or right == "NULL":
        return left
    if left == "NULL":
        return right
    if isinstance(left, StructOf) and isinstance(right, StructOf):
        return _widen_struct(left, right)
    if isinstance(left, ListOf) and isinstance(right, ListOf):
        return ListOf(widen(left.element, right.element))
    for ladder in _LADDERS:
        if left in ladder and right in ladder:
            return max(left, right, key=ladder.index)
    return "VARCHAR"


def struct_of(document: dict[str, Any] | None) -> StructOf:
    """Return the type of a document; none has no fields."""
    found = type_of(document or {})
    assert isinstance(found, StructOf)
    return found


def sql_type(kind: FieldType) -> str | None:
    """Return DuckDB's name of a type; None while nothing but NULL was seen."""
    if isinstance(kind, StructOf):
        inner = [f"{quoted(name)} {sql}" for name, sql in ((n, sql_type(k)) for n, k in kind.fields.items()) if sql]
        return f"STRUCT({', '.join(inner)})" if inner else None
    if isinstance(kind, ListOf):
        element = sql_type(kind.element)
        return f"{element}[]" if element else None
    return None if kind == "NULL" else kind


def columns(kind: FieldType) -> FieldType | None:
    """Return the part of a type that has columns: without what was nothing but NULL so far."""
    if isinstance(kind, StructOf):
        inner = {name: typed for name, each in kind.fields.items() if (typed := columns(each)) is not None}
        return StructOf(inner) if inner else None
    if isinstance(kind, ListOf):
        element = columns(kind.element)
        return None if element is None else ListOf(element)
    return None if kind == "NULL" else kind


def of_column(kind: Any) -> StructOf:
    """Return the type of the fields that a metadata column of this type, as DuckDB describes it, was made for."""
    found = _of_column(kind)
    return found if isinstance(found, StructOf) else StructOf()


def _of_column(kind: Any) -> FieldType:
    if kind.id == "struct":
        return StructOf({name: _of_column(inner) for name, inner in kind.children})
    if kind.id == "list":
        return ListOf(_of_column(kind.children[0][1]))
    scalar: Scalar = kind.id.upper()
    return scalar if scalar in get_args(Scalar) else "VARCHAR"


def coerce(value: Any, kind: FieldType) -> Any:
    """Return `value` as what a column of type `kind`, as `columns` gave it, holds."""
    if value is None:
        return None
    if isinstance(kind, StructOf):
        folded = {name.casefold(): inner for name, inner in value.items()}
        return {
            name: coerce(value[name] if name in value else folded.get(name.casefold()), inner)
            for name, inner in kind.fields.items()
        }
    if isinstance(kind, ListOf):
        return [coerce(item, kind.element) for item in value]
    return _coerce_scalar(value, kind)


def _coerce_scalar(value: Any, kind: Scalar) -> Any:
    if kind == "VARCHAR":
        if isinstance(value, dt.datetime):
            value = _in_utc(value)  # as the column's own values become text when it is widened
        return str(value) if isinstance(value, str | float | dt.date) else json_of(value)
    if kind == "DOUBLE":
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    if kind == "BIGINT":
        return int(value)
    if kind == "TIMESTAMP":
        moment = value if isinstance(value, dt.datetime) else dt.datetime(value.year, value.month, value.day)
        return _in_utc(moment)
    return value


def _in_utc(moment: dt.datetime) -> dt.datetime:
    try:
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except OverflowError:  # the last hours of the year 9999, or the first of the year 1
        return moment.replace(tzinfo=None)


def to_dict(kind: FieldType) -> Any:
    """Return a JSON form of a type."""
    if isinstance(kind, StructOf):
        return {"struct": {name: to_dict(inner) for name, inner in kind.fields.items()}}
    if isinstance(kind, ListOf):
        return {"list": to_dict(kind.element)}
    return kind


def from_dict(form: Any, levels: int = _MOST_LEVELS) -> FieldType:
    """Return the type of its JSON form.

    Raises:
        IntegrityError: It is no such form. What it says becomes a part of SQL, so that nothing of it is taken on trust.
    """
    if isinstance(form, str) and form in get_args(Scalar):
        scalar: Scalar = form  # type: ignore[assignment]
        return scalar
    if isinstance(form, dict) and len(form) == 1 and levels:
        ((kind, inner),) = form.items()
        if kind == "list":
            return ListOf(from_dict(inner, levels - 1))
        if kind == "struct" and isinstance(inner, dict) and _are_column_names(inner):
            return StructOf({name: from_dict(each, levels - 1) for name, each in inner.items()})
    raise IntegrityError(f"a type of metadata fields is said to be {str(form)[:200]!r}, which is none")


def is_name(name: str) -> bool:
    """Tell whether text can name a column; JSON may hold half of a surrogate pair, which no SQL can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return _is_column_name(name)


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _widen_struct(left: StructOf, right: StructOf) -> StructOf:
    fields = dict(left.fields)
    spelling = {name.casefold(): name for name in fields}
    for name, kind in right.fields.items():
        known = spelling.setdefault(name.casefold(), name)
        fields[known] = widen(fields[known], kind) if known in fields else kind
    return StructOf(fields)


def _is_column_name(name: str) -> bool:
    return bool(name) and "\0" not in name


def _are_column_names(names: Mapping[str, Any]) -> bool:
    return all(map(is_name, names)) and len({name.casefold() for name in names}) == len(names)
