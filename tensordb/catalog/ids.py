"""Sequence numbers and the record ids made from them.

A record's sequence number is the microsecond of its insertion, made unique by counting up; it orders a dataset and is
its primary key. A generated record id is the dataset's nonce and that number in hexadecimal, so it is not stored, it
sorts by insertion, and ids of different databases rarely meet.
"""

from __future__ import annotations

import time

import numpy as np

_DIGITS = 13
_LENGTH = 2 + _DIGITS
_HEX = frozenset("0123456789abcdef")


def first_sequence(last: int | None) -> int:
    """Return the next free sequence number after `last`, the dataset's largest one."""
    now = time.time_ns() // 1000
    return now if last is None else max(now, last + 1)


def generated_id(seq: int, nonce: int) -> str:
    """Return the record id that is generated for a sequence number."""
    return f"{nonce:02x}{seq:013x}"


def generated_ids(first: int, last: int, nonce: int) -> list[str]:
    """Return the record ids of the sequence numbers from `first` to `last`."""
    text = (np.arange(first, last + 1, dtype=">u8") | np.uint64(nonce << 4 * _DIGITS)).astype(">u8").tobytes().hex()
    return [text[i : i + _LENGTH] for i in range(1, len(text), 16)]


def generated_id_sql(seq: str, nonce: int) -> str:
    """Return `generated_id` as an SQL expression over a column."""
    return f"printf('{nonce:02x}%013x', {seq})"


def sequence_of(record_id: str, nonce: int) -> int | None:
    """Return the sequence number that `record_id` would have been generated from, None if it cannot have been."""
    if len(record_id) != _LENGTH or not _HEX.issuperset(record_id) or int(record_id[:2], 16) != nonce:
        return None
    return int(record_id[2:], 16)
