"""Where a value lies in a tree, and the name that says so.

A path is a chain ``(parent, key)`` that ends in None, the root, so that going down costs one small tuple. A name is
the keys with dots between them, ``model.layer.0.weight``; keys that hold dots stay as they are. Only where two names
would be the same are both written with their keys quoted, ``['a']['b']`` and ``['a.b']``: names depend on the keys
of a tree and on nothing else, since they are matched between checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

Path: TypeAlias = "tuple[Path, Any] | None"


class Attribute(str):
    """The key of a value that is an attribute of its container rather than an entry."""

    __slots__ = ()


def name_of(path: Path) -> str:
    """Return the keys with dots between them.

    >>> name_of(((None, "layer"), 0))
    'layer.0'
    """
    name = ".".join([key if isinstance(key, str) else _text(key) for key in _keys(path)])
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def quoted_name_of(path: Path) -> str:
    """Return the keys each in brackets and quoted; different paths have different ones.

    >>> quoted_name_of(((None, "layer"), 0))
    "['layer'][0]"
    """
    return "".join(f".{key}" if isinstance(key, Attribute) else f"[{key!r}]" for key in _keys(path))


def unique_names(claims: Sequence[tuple[Path, tuple[str, ...]]]) -> list[str]:
    """Return a name for each path, so that these and the names of their parts are all different.

    Args:
        claims: Different paths, each with what the names of its parts add to its name, such as ``".values"``.
    """
    names = [name_of(path) for path, _ in claims]
    if len(set(names)) == len(names) and not any(parts for _, parts in claims):
        return names
    quoted: set[int] = set()
    while pending := _clashing(names, claims) - quoted:
        quoted |= pending
        for index in pending:
            names[index] = quoted_name_of(claims[index][0])
    return names


def _clashing(names: Sequence[str], claims: Sequence[tuple[Path, tuple[str, ...]]]) -> set[int]:
    holders: dict[str, list[int]] = defaultdict(list)
    for index, (name, (_, parts)) in enumerate(zip(names, claims, strict=True)):
        for part in ("", *parts):
            holders[name + part].append(index)
    return {index for held_by in holders.values() if len(held_by) > 1 for index in held_by}


def _keys(path: Path) -> Iterator[Any]:
    keys = []
    while path is not None:
        path, key = path
        keys.append(key)
    return reversed(keys)


def _text(key: Any) -> str:
    return repr(key) if isinstance(key, bytes) else str(key)
