"""Changes to inputs by their structure: trees of plain values, tokens of documents, text in JSON and MessagePack."""

from __future__ import annotations

import copy
import datetime as dt
import json
import random
from collections.abc import Callable
from typing import Any

import atheris
import msgpack

from tensordb.catalog import documents
from tensordb.checkpoints.tree import wire

_ATOMS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**62, 2**63, -(2**63) - 1, 10**5000, 0.5, float("nan"), float("inf"), "",
    "a", "BIGINT", "VARCHAR", "NULL", "struct", "list", "x" * 300, "ü", "\0", "'\"; --", "metadata", "metrics", [], {},
    "float32", "int8", "auto", "per_group", "int?", "name", "use",
)  # fmt: skip
_BINARY: tuple[Any, ...] = (b"", b"a", bytes(16), dt.datetime(1, 1, 1), dt.date(9999, 12, 31))
_DEPTHS = (1, 2, 5, 63, 66, 101, 300, 900, 990, 1100)
_MOST_NUMBER = 1 << 64


def json_changed(data: bytes, chance: random.Random) -> bytes:
    """Change JSON as what it says, or the text of it."""
    if chance.random() < 0.1:
        return deep_text(chance)
    return json.dumps(tree_changed(json.loads(data), chance, _ATOMS), ensure_ascii=False).encode("utf-8")


def document_changed(data: bytes, chance: random.Random) -> bytes:
    """Change a document of metadata as what it says; it may end up with values that none is written with."""
    found = tree_changed(documents.unpack(data), chance, _ATOMS + _BINARY)
    try:
        return msgpack.packb(found, default=documents._extend)
    except ValueError:  # nested deeper than it packs
        return data


def tokens_changed(data: bytes, chance: random.Random) -> bytes:
    """Change a document of a tree token by token."""
    tokens = wire.unpack(data)
    place = chance.randrange(len(tokens) + 1)
    kind = chance.randrange(7)
    if kind == 0:
        del tokens[place : place + chance.randint(1, 3)]
    elif kind == 1:
        tokens[place:place] = tokens[place - chance.randint(1, 4) : place] * chance.randint(1, 3)
    elif kind == 2:
        tokens[place:place] = [chance.choice(_ATOMS[:33] + _BINARY[:3])]
    elif kind == 3:
        code = chance.choice((*range(1, 9), *range(32, 52)))
        tokens[place:place] = [wire.mark(code, chance.choice((0, 1, 2, 3, 5, 100, 2**70, 1 << 16_000)))]
    elif kind == 4 and tokens:
        _change_token(tokens, place % len(tokens), chance)
    elif kind == 5 and tokens:
        one, other = (chance.randrange(len(tokens)) for _ in range(2))
        tokens[one], tokens[other] = tokens[other], tokens[one]
    else:
        tokens[place:place] = [wire.mark(chance.choice((5, 6)), 1)] * chance.choice(_DEPTHS[:7])
    return wire.pack([each for each in tokens if type(each) in wire.ATOMS or type(each) is wire.Mark])


def _change_token(tokens: list[Any], place: int, chance: random.Random) -> None:
    token = tokens[place]
    if type(token) is wire.Mark and chance.random() < 0.7:
        number = (wire.number_of(token) + chance.choice((-1, 1, 2, 1 << 20))) % _MOST_NUMBER
        tokens[place] = wire.mark(token.code, number)
    elif type(token) is wire.Mark:
        tokens[place] = wire.mark(chance.choice((*range(1, 9), *range(32, 52))), wire.number_of(token) % _MOST_NUMBER)
    elif type(token) is str and token:
        tokens[place] = text_changed(token, chance)
    elif type(token) is bytes:
        tokens[place] = bytes(atheris.Mutate(token, len(token) + 8))
    elif type(token) is int:
        tokens[place] = token + chance.choice((-1, 1, 3, 1 << 33, 1 << 62, -(1 << 62)))
    else:
        tokens[place] = chance.choice(_ATOMS[:33])


def tree_changed(tree: Any, chance: random.Random, atoms: tuple[Any, ...]) -> Any:
    """Return a tree of dicts and lists with one of its places changed."""
    places: list[tuple[Any, Any]] = []
    _gather(tree, places)
    if not places or chance.random() < 0.05:
        return chance.choice(atoms)
    container, key = chance.choice(places)
    old = container[key]
    container[key] = chance.choice(_CHANGES)(old, places, chance, atoms)
    if isinstance(container, dict) and chance.random() < 0.25:
        name = key if isinstance(key, str) else ""
        container[text_changed(name, chance)] = container.pop(key) if chance.random() < 0.5 else copy.copy(old)
    elif chance.random() < 0.1:
        del container[key]
    return tree


def text_changed(text: str, chance: random.Random) -> str:
    """Return a text with a letter or its case changed, or another."""
    if chance.random() < 0.2:
        return text.swapcase()
    if chance.random() < 0.3:
        return str(chance.choice([each for each in _ATOMS if isinstance(each, str)]))
    return bytes(atheris.Mutate(text.encode("utf-8", "ignore"), len(text) + 8)).decode("utf-8", "ignore")


def deep_text(chance: random.Random) -> bytes:
    """Return JSON that goes deep."""
    depth = chance.choice(_DEPTHS)
    begin, end = chance.choice((("[", "]"), ('{"list":', "}"), ('{"struct":{"a":', "}}"), ('{"a":', "}")))
    inner = chance.choice(('"BIGINT"', "1", "{}"))
    return (begin * depth + inner + end * depth).encode()


def _gather(tree: Any, places: list[tuple[Any, Any]], depth: int = 0) -> None:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        places.append((tree, key))
        if depth < 200:
            _gather(value, places, depth + 1)


def _nested(value: Any, chance: random.Random) -> Any:
    for _ in range(chance.choice(_DEPTHS)):
        value = [value] if chance.random() < 0.5 else {chance.choice(("a", "list", "struct")): value}
    return value


def _near(old: Any, chance: random.Random) -> Any:
    """Return a value like another one."""
    if isinstance(old, bool) or old is None:
        return not old
    if isinstance(old, int):
        return old + chance.choice((-1, 1, 1 << 31, 1 << 63, -(1 << 63)))
    if isinstance(old, float):
        return old * chance.choice((-1, 1e300, 0))
    if isinstance(old, str):
        return text_changed(old, chance)
    return old


_CHANGES: list[Callable[[Any, list[tuple[Any, Any]], random.Random, tuple[Any, ...]], Any]] = [
    lambda old, places, chance, atoms: chance.choice(atoms),
    lambda old, places, chance, atoms: chance.choice(atoms),
    lambda old, places, chance, atoms: _near(old, chance),
    lambda old, places, chance, atoms: _near(old, chance),
    lambda old, places, chance, atoms: copy.deepcopy(_item(chance.choice(places))),
    lambda old, places, chance, atoms: [copy.copy(old) for _ in range(chance.choice((0, 1, 2, 70)))],
    lambda old, places, chance, atoms: {"a": copy.copy(old), "A": chance.choice(atoms)},
    lambda old, places, chance, atoms: _nested(old, chance),
]


def _item(place: tuple[Any, Any]) -> Any:
    container, key = place
    return container[key]
