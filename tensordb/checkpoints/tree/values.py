"""Values that are neither containers nor tensors: how each type is written as atoms, and made again from them.

Invariants: a value comes back with its exact type; a type that is not in the table is refused rather than turned
into a relative of it; codes are stored and never change their meaning.
"""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import torch

FIRST_CODE = 32


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of values.

    Attributes:
        code: Stored in documents.
        value_type: The exact type of the values.
        form_type: The exact type of what `take` gives and `make` expects.
        take: Turns a value into atoms, or a tuple of such and of other values.
        make: The reverse; it may raise one of `FAILURES` for what `take` never gives.
    """

    code: int
    value_type: type
    form_type: type
    take: Callable[[Any], Any]
    make: Callable[[Any], Any]


FAILURES = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)

_CONSTANTS = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format)
}
_NUMPY_DTYPE = re.compile(r"[<>|=][biufcmMSU]\d{1,9}(\[\d*[A-Za-z]+\])?")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the plain NumPy dtype of this name, such as ``"<f4"``; raise ValueError or TypeError for others."""
    if _NUMPY_DTYPE.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not the name of a plain NumPy dtype")
    return np.dtype(name)


def _numpy_scalar(form: tuple[str, bytes]) -> Any:
    name, data = form
    scalar = np.frombuffer(data, numpy_dtype(name)).reshape(())[()]
    if scalar.tobytes() != data:
        raise ValueError(f"{data!r} is no {name}")
    return scalar


def _constant(kind: type) -> Callable[[str], Any]:
    def find(name: str) -> Any:
        value = _CONSTANTS[name]
        if type(value) is not kind:
            raise TypeError(f"{name} is not a {kind.__name__}")
        return value

    return find


def _datetime(form: tuple[str, int, Any]) -> dt.datetime:
    text, fold, zone = form
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _time(form: tuple[str, int, Any]) -> dt.time:
    text, fold, zone = form
    return dt.time.fromisoformat(text).replace(fold=fold, tzinfo=zone)


# A code is a row's place, so rows are only added at the end.
_ROWS: tuple[tuple[type, type, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (complex, tuple, lambda value: (value.real, value.imag), lambda form: complex(*form)),
    (bytearray, bytes, bytes, bytearray),
    (dt.datetime, tuple, lambda value: (value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo), _datetime),
    (dt.date, str, dt.date.isoformat, dt.date.fromisoformat),
    (dt.time, tuple, lambda value: (value.replace(tzinfo=None).isoformat(), value.fold, value.tzinfo), _time),
    (
        dt.timedelta,
        tuple,
        lambda value: (value.days, value.seconds, value.microseconds),
        lambda form: dt.timedelta(*form),
    ),
    (dt.timezone, tuple, lambda value: value.__getinitargs__(), lambda form: dt.timezone(*form)),
    (ZoneInfo, str, lambda value: value.key, ZoneInfo),
    (Decimal, str, str, Decimal),
    (uuid.UUID, bytes, lambda value: value.bytes, lambda form: uuid.UUID(bytes=form)),
    (range, tuple, lambda value: (value.start, value.stop, value.step), lambda form: range(*form)),
    (slice, tuple, lambda value: (value.start, value.stop, value.step), lambda form: slice(*form)),
    (torch.dtype, str, str, _constant(torch.dtype)),
    (torch.layout, str, str, _constant(torch.layout)),
    (torch.memory_format, str, str, _constant(torch.memory_format)),
    (torch.device, str, str, torch.device),
    (torch.Size, tuple, tuple, torch.Size),
    (np.str_, str, str.__str__, np.str_),
    (np.bytes_, bytes, bytes.__bytes__, np.bytes_),
    (np.generic, tuple, lambda value: (value.dtype.str, value.tobytes()), _numpy_scalar),
)
BY_CODE: dict[int, Kind] = {code: Kind(code, *row) for code, row in enumerate(_ROWS, FIRST_CODE)}
BY_TYPE: dict[type, Kind] = {kind.value_type: kind for kind in BY_CODE.values()}
_SCALAR_TYPES = set(np.sctypeDict.values()) - {np.object_, np.void, np.str_, np.bytes_}
BY_TYPE |= dict.fromkeys(_SCALAR_TYPES, BY_TYPE.pop(np.generic))
KEYS: frozenset[type] = frozenset({str, int, float, bool, type(None), bytes, torch.dtype, torch.device})
"""Types of the keys of dicts, beside tuples of them; the ``repr`` of each says which key it is."""
