"""The walk through a tree that writes its tokens and gathers its tensors.

Refused, by their path: what would not come back as what it is, what contains itself, and what is nested too deep.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tensordb.checkpoints.tree.containers import CODES, MAPPINGS, MAX_DEPTH, METADATA, SEQUENCES, SETS
from tensordb.checkpoints.tree.leaves import Parts, take_apart
from tensordb.checkpoints.tree.paths import Attribute, Path, name_of
from tensordb.checkpoints.tree.shards import Sharded
from tensordb.checkpoints.tree.values import BY_TYPE, KEYS, Kind
from tensordb.checkpoints.tree.wire import ATOMS, check_size, mark, pack
from tensordb.errors import InvalidInputError

MAX_KEY_BITS = 1024  # beyond some thousands an integer has no text by default, and so no name


class TreeWriter:
    """Tokens and tensors of one tree.

    Attributes:
        tokens: The tree, with a None in each place of a tensor.
        places: For each place of a tensor in the order of the tree: its path, its token, and its number in `parts`.
        parts: The different tensors and arrays, taken apart.
    """

    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.places: list[tuple[Path, int, int]] = []
        self.parts: list[Parts] = []
        self._numbers: dict[int, int] = {}
        self._seen: list[Any] = []  # keeps every tensor alive, so that no id is given again
        self._open: set[int] = set()

    def write(self, value: Any, path: Path, depth: int) -> None:
        """Append the tokens of a value."""
        kind = type(value)
        if kind in ATOMS:
            self.tokens.append(value)
        elif isinstance(value, torch.Tensor | np.ndarray | Sharded):
            self._write_tensor(value, path)
        elif depth >= MAX_DEPTH - (kind in BY_TYPE):
            raise InvalidInputError(f"{_where(path)} is nested deeper than {MAX_DEPTH} levels; flatten it")
        elif kind in CODES:
            self._open_container(value, path)
            _CONTENTS[kind](self, value, path, depth + 1)
            self._open.discard(id(value))
        elif kind in BY_TYPE:
            self._write_form(BY_TYPE[kind], value, path, depth + 1)
        else:
            raise _refused(value, path)

    def _write_tensor(self, value: Any, path: Path) -> None:
        number = self._numbers.get(id(value))
        if number is None:
            try:
                self.parts.append(take_apart(value))
            except InvalidInputError as error:
                raise InvalidInputError(f"{_where(path)}: {error}") from None
            number = self._numbers[id(value)] = len(self._seen)
            self._seen.append(value)
        self.places.append((path, len(self.tokens), number))
        self.tokens.append(None)

    def _open_container(self, value: Any, path: Path) -> None:
        if id(value) in self._open:
            raise InvalidInputError(f"{_where(path)} contains itself; break the cycle")
        check_size(self.tokens)
        self._open.add(id(value))
        self.tokens.append(mark(CODES[type(value)], len(value)))

    def _write_entries(self, mapping: dict[Any, Any], path: Path, depth: int) -> None:
        tokens = self.tokens
        for key, value in mapping.items():
            if type(key) is str:
                tokens.append(key)
            else:
                check_key(key, path)
                self.write(key, (path, key), depth)
            if type(value) in ATOMS:
                tokens.append(value)
            else:
                self.write(value, (path, key), depth)
        if type(mapping) is not dict:
            self._write_attributes(mapping, path, depth)

    def _write_attributes(self, mapping: Any, path: Path, depth: int) -> None:
        attributes = vars(mapping)
        kept = [METADATA] if type(mapping) is OrderedDict else []
        lost = next((name for name in attributes if name not in kept), None)
        if lost is not None:
            raise InvalidInputError(
                f"{_where(path)} has the attribute {lost!r}, which a stored {type(mapping).__name__} does not keep; "
                "store it as an entry"
            )
        for name in kept:
            self.tokens.append(name in attributes)
            if name in attributes:
                self.write(attributes[name], (path, Attribute(name)), depth)

    def _write_items(self, items: list[Any] | tuple[Any, ...], path: Path, depth: int) -> None:
        if ATOMS.issuperset(map(type, items)):
            self.tokens.extend(items)
            return
        for index, item in enumerate(items):
            self.write(item, (path, index), depth)

    def _write_members(self, members: set[Any] | frozenset[Any], path: Path, depth: int) -> None:
        tokens, places = self.tokens, len(self.places)
        written = []
        for member in members:
            self.tokens = []
            self.write(member, path, depth)
            written.append((pack(self.tokens), self.tokens))
        if len(self.places) != places:
            raise InvalidInputError(f"{_where(path)} is a set that holds a tensor; use a list")
        self.tokens = tokens
        for _, member_tokens in sorted(written, key=lambda pair: pair[0]):  # sets of text have another order each run
            tokens.extend(member_tokens)

    def _write_form(self, kind: Kind, value: Any, path: Path, depth: int) -> None:
        form = kind.take(value)
        if type(form) is not kind.form_type:
            raise _refused(value, path)
        self.tokens.append(mark(kind.code))
        if type(form) is not tuple:
            self.tokens.append(form)
            return
        self.tokens.append(mark(CODES[tuple], len(form)))
        for item in form:  # their path is the value's: where in its form they are says nothing to its owner
            self.write(item, path, depth + 1)


_CONTENTS: dict[type, Callable[[TreeWriter, Any, Path, int], None]] = {
    **dict.fromkeys(MAPPINGS.values(), TreeWriter._write_entries),
    **dict.fromkeys(SEQUENCES.values(), TreeWriter._write_items),
    **dict.fromkeys(SETS.values(), TreeWriter._write_members),
}


def check_key(key: Any, path: Path, depth: int = 0) -> None:
    """Raise InvalidInputError when this cannot be a key of a dict in a tree."""
    if type(key) is tuple:
        if depth >= MAX_DEPTH:
            raise InvalidInputError(f"{_where(path)} has a key nested deeper than {MAX_DEPTH} levels; use text")
        for item in key:
            check_key(item, path, depth + 1)
    elif type(key) not in KEYS:
        raise InvalidInputError(
            f"{_where(path)} has a key of type {_type_name(key)}; keys are text, numbers, bytes, None, torch.dtype, "
            "torch.device, or tuples of these (of an optimizer, store its state_dict())"
        )
    elif type(key) is int and key.bit_length() > MAX_KEY_BITS:
        raise InvalidInputError(f"{_where(path)} has an integer key of {key.bit_length()} bits; use text")
    elif key != key:
        raise InvalidInputError(f"{_where(path)} has the key NaN, which cannot be looked up; use None or text")


def _refused(value: Any, path: Path) -> InvalidInputError:
    return InvalidInputError(f"{_where(path)} is a {_type_name(value)}, which would not come back; {_remedy(value)}")


def _remedy(value: Any) -> str:
    if isinstance(value, torch.nn.Module | torch.optim.Optimizer) or hasattr(value, "state_dict"):
        return "store its state_dict()"
    if isinstance(value, dict):
        return "store dict(x)"
    if isinstance(value, tuple):
        return "store tuple(x), or x._asdict() of a named tuple"
    if hasattr(value, "__dataclass_fields__"):
        return "store dataclasses.asdict(x)"
    if callable(value):
        return "leave it out, and give it anew when the state is loaded"
    return "store what it is made of as dicts, lists, numbers, text and tensors"


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _where(path: Path) -> str:
    name = name_of(path)
    return name if 0 < len(name) <= 200 else f"{name[:197]}..." if name else "the state"
