"""Sequence numbers and the record ids made from them.

A record's sequence number is the microsecond of its insertion, made unique by counting up; it orders a dataset. A
generated record id is that number and the dataset's nonce in 12 digits of base 32 (RFC 4648's extended-hex
alphabet, which sorts like the number), so that many ids are found by a scan of small integers, and ids of different
databases rarely meet.
"""

from __future__ import annotations

import time

import numpy as np

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_TABLE = np.frombuffer(_DIGITS.encode(), np.uint8)
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_LENGTH, _SHIFTS = 12, np.arange(55, -1, -5, dtype=np.uint64)


def first_sequence(last: int | None) -> int:
    """Return the next free sequence number after `last`, the dataset's largest one."""
    now = time.time_ns() // 1000
    return now if last is None else max(now, last + 1)


def generated_ids(first: int, count: int, nonce: int) -> list[str]:
    """Return the record ids of `count` sequence numbers from `first` on."""
    values = (np.arange(first, first + count, dtype=np.uint64) << np.uint64(8)) | np.uint64(nonce)
    digits = _TABLE[((values[:, None] >> _SHIFTS) & np.uint64(31)).astype(np.intp)]
    text = digits.tobytes().decode("ascii")
    return [text[i : i + _LENGTH] for i in range(0, len(text), _LENGTH)]


def sequence_of(record_id: str, nonce: int) -> int | None:
    """Return the sequence number that `record_id` would have been generated from, None if it was not generated."""
    if len(record_id) != _LENGTH:
        return None
    value = 0
    for digit in record_id:
        part = _VALUES.get(digit)
        if part is None:
            return None
        value = value << 5 | part
    return value >> 8 if value & 0xFF == nonce else None
