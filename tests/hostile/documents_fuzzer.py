"""Changed and invented bytes for what the catalog keeps of metadata: a document of plain values, or IntegrityError."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import msgpack

from tensordb.catalog import documents
from tensordb.errors import IntegrityError

CORPUS: tuple[dict[str, Any], ...] = (
    {},
    {"loss": 0.5, "epoch": 3, "tag": "a", "none": None, "yes": True},
    {"big": 1 << 200, "negative": -(1 << 90), "at": dt.datetime(2024, 2, 3, 4, 5, 6), "day": dt.date(2024, 2, 3)},
    {"list": [1, 2.5, "x", [None, {"deep": [True]}]], "text": "ü\0'\"; DROP TABLE x; --" * 9},
    {"a": {"b": {"c": {"d": {"e": list(range(40))}}}}},
)
_FORGED = (
    b"\x81\x90\x01",  # a list for a key
    b"\x81\x80\x01",
    b"\x81\xc0\x01",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff\xa1a\x01",
    b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    b"\x81\xa1a" + b"\x91" * 5000,
    b"\x81\xa1a" * 5000 + b"\x01",
    b"\x81\xa1a\xd6\xff\xff\xff\xff\xff",  # MessagePack's own timestamp
    b"\x81\xa1a\xc7\x04\x01zzzz",
    b"\x81\xa1a\xc7\x04\x021234",
    b"\x81\xa1a\xd4\x63\x00",
)


def inputs(chance: random.Random) -> bytes:
    """Return the next input: forged, cut, joined, or with some bytes changed."""
    if chance.random() < 0.1:
        return chance.choice(_FORGED)
    data = bytearray(documents.pack(chance.choice(CORPUS)) or b"")
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            data[place : place + 1] = chance.randbytes(1)
        elif kind == 1:
            del data[place : place + chance.randint(1, 9)]
        elif kind == 2:
            data[place:place] = chance.randbytes(chance.randint(1, 6))
        else:
            data[place:place] = chance.choice(_FORGED)[:40]
    return bytes(data)


def one_input(data: bytes) -> bool:
    """Read a document; return whether it was one."""
    try:
        found = documents.unpack(data)
    except IntegrityError:
        return False
    _check_plain(found)
    assert documents.unpack(documents.pack(found)) is not None
    return True


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            assert isinstance(key, str | bytes), f"a key of type {type(key).__name__}"
            _check_plain(each)
    elif isinstance(value, list):
        for each in value:
            _check_plain(each)
    else:
        assert not isinstance(value, msgpack.ExtType)


def fuzz(runs: int, seed: int) -> dict[str, int]:
    """Read so many inputs; return how many there were and how many were documents."""
    chance = random.Random(seed)
    for forged in _FORGED:
        one_input(forged)
    return {"inputs": runs + len(_FORGED), "documents": sum(one_input(inputs(chance)) for _ in range(runs))}
