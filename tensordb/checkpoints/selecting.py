"""Which names of a checkpoint are wanted, and which of those that were asked for it does not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tensordb.checkpoints.roles import ROLES, role_of
from tensordb.errors import InvalidInputError
from tensordb.suggesting import meant


class Selection:
    """Tells whether a name is among `keys`: names, names of what they are in, or shell-style patterns.

    It remembers which names it was asked for, and which keys any of them was found by.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        """Take the keys."""
        self._keys = dict.fromkeys(keys)
        self._patterns = [key for key in self._keys if any(each in key for each in "*?[")]
        # A name whose keys are quoted (`paths.unique_names`) begins with the role in brackets.
        self._quoted = {key: f"[{key!r}]" for key in self._keys}
        self._found: set[str] = set()
        self._names: dict[str, None] = {}

    def __call__(self, name: str) -> bool:
        """Tell whether a name is wanted."""
        self._names[name] = None
        found = set(self._matching(name))
        self._found |= found
        return bool(found)

    @property
    def roles(self) -> set[str]:
        """The roles of the names that it was asked for."""
        return {role_of(name) for name in self._names}

    def check(self, what: str = "the checkpoint has nothing") -> None:
        """Raise InvalidInputError for a key that named nothing; a role may be one that was not saved."""
        lost = [key for key in self._keys if key not in self._found and key not in ROLES]
        if lost:
            containers = {begin: None for name in self._names for begin in _beginnings(name)}
            raise InvalidInputError(
                f"{what} named {lost[0]!r}; names begin with a role: 'model.…'"
                f"{meant(lost[0], [*self._names, *containers])}"
            )

    def _matching(self, name: str) -> Iterator[str]:
        if name in self._keys:
            yield name
        yield from (begin for begin in _beginnings(name) if begin in self._keys)
        yield from (pattern for pattern in self._patterns if fnmatchcase(name, pattern))
        if name.startswith("["):
            yield from (key for key, quoted in self._quoted.items() if name.startswith(quoted))


def selection(keys: Any) -> Selection | None:
    """Return what tells whether a name is among `keys`, None for all names.

    Raises:
        InvalidInputError: `keys` is not text, or a sequence of texts.
    """
    if keys is None:
        return None
    patterns = [keys] if isinstance(keys, str) else keys
    if not isinstance(patterns, Sequence) or not all(isinstance(each, str) and each for each in patterns):
        raise InvalidInputError(f"keys is {keys!r}; give names or patterns such as ['model.encoder.*', 'optimizer']")
    return Selection(patterns)


def _beginnings(name: str) -> Iterator[str]:
    """Return the names of what a name is in."""
    end = name.find(".")
    while end >= 0:
        yield name[:end]
        end = name.find(".", end + 1)
