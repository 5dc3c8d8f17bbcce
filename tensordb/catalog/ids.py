"""Sequence numbers and the record ids made from them.

A record's sequence number is the microsecond of its insertion, made unique by counting up; it orders a dataset and is
its primary key. A generated record id is the dataset's nonce and that number in hexadecimal, so it is not stored, it
sorts by insertion, and ids of different databases rarely meet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

_DIGITS = 13
_LENGTH = 2 + _DIGITS
_HEX = frozenset("0123456789abcdef")

CHECKPOINT_NONCE = 0xCC
"""In place of a dataset's nonce in the ids of checkpoints."""


def first_sequence(last: int | None) -> int:
    """Return the next free sequence number after `last`, the dataset's largest one."""
    now = time.time_ns() // 1000
    return now if last is None else max(now, last + 1)


def generated_id(seq: int, nonce: int) -> str:
    """Return the record id that is generated for a sequence number."""
    return f"{nonce:02x}{seq:013x}"


def generated_ids(first: int, last: int, nonce: int) -> list[str]:
    """Return the record ids of the sequence numbers from `first` to `last`."""
    if first == last:  # as most inserts ask
        return [generated_id(first, nonce)]
    return generated_ids_of(np.arange(first, last + 1), nonce)


def generated_ids_of(numbers: np.ndarray[Any, np.dtype[np.int64]], nonce: int) -> list[str]:
    """Return `generated_id` of each sequence number."""
    text = (numbers | nonce << 4 * _DIGITS).astype(">u8").tobytes().hex()
    return [text[i : i + _LENGTH] for i in range(1, len(text), 16)]


def generated_id_sql(seq: str, nonce: int) -> str:
    """Return `generated_id` as an SQL expression over a column."""
    return f"printf('{nonce:02x}%013x', {seq})"


def sequence_of(record_id: str, nonce: int) -> int | None:
    """Return the sequence number that `record_id` would have been generated from, None if it cannot have been."""
    if len(record_id) != _LENGTH or not _HEX.issuperset(record_id) or int(record_id[:2], 16) != nonce:
        return None
    return int(record_id[2:], 16)


def sequences_of(record_ids: Sequence[str], nonce: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return `sequence_of` each id, -1 for None."""
    # All at once, as most lists are of generated ids: 15 digits each become 8 bytes with a zero in front.
    text = "0" + "0".join(record_ids)
    try:
        data = bytes.fromhex(text) if set(map(len, record_ids)) == {_LENGTH} else b""
    except ValueError:
        data = b""
    if data.hex() != text:  # another digit, such as a capital one or a space, which are not ours
        each = (sequence_of(record_id, nonce) for record_id in record_ids)
        return np.array([-1 if number is None else number for number in each], np.int64)
    numbers = np.frombuffer(data, ">u8").astype(np.int64)
    return np.where(numbers >> 4 * _DIGITS == nonce, numbers & (1 << 4 * _DIGITS) - 1, -1)
