"""The walk through a document's tokens that makes its tree.

Nothing in a document is trusted: whatever the bytes, the walk gives a value or raises FormatError or IntegrityError.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from tensordb.checkpoints.tree.containers import MAPPINGS, MAX_DEPTH, METADATA, SEQUENCES, SETS, TENSOR
from tensordb.checkpoints.tree.paths import Attribute, Path
from tensordb.checkpoints.tree.values import BY_CODE, FAILURES
from tensordb.checkpoints.tree.wire import ATOMS, Mark, number_of
from tensordb.checkpoints.tree.writing import check_key
from tensordb.errors import IntegrityError, InvalidInputError, UnsupportedFormatError

PRUNED: Any = object()
"""Stands where nothing was wanted."""


class TreeReader:
    """Values of one document, in the order of its tokens.

    Args:
        tokens: From `wire.unpack`.
        place: Gives what stands in the place of a tensor, by its path and its number; or `PRUNED`.
        keep: Whether the value at a path that is not a tensor is kept.
    """

    def __init__(
        self,
        tokens: list[Any],
        place: Callable[[Path, int], Any],
        keep: Callable[[Path], bool] | None = None,
        *,
        position: int = 0,
    ) -> None:
        self.position = position
        self._tokens = tokens
        self._place = place
        self._keep = keep

    @property
    def at_end(self) -> bool:
        """Whether all tokens are read."""
        return self.position == len(self._tokens)

    def read(self, path: Path, depth: int) -> Any:
        """Return the next value, or `PRUNED`."""
        token = self._next()
        if type(token) is not Mark:
            return token if self._keep is None or self._keep(path) else PRUNED
        if token.code == TENSOR:
            return self._place(path, number_of(token))
        if depth >= MAX_DEPTH:
            raise IntegrityError(f"a document is nested deeper than {MAX_DEPTH} levels, deeper than any is written")
        if token.code in MAPPINGS:
            return self._read_entries(token, path, depth + 1)
        if token.code in SEQUENCES:
            return self._read_items(token, path, depth + 1)
        value = self._read_whole(token, path, depth + 1)
        return value if self._keep is None or self._keep(path) else PRUNED

    def _read_entries(self, token: Any, path: Path, depth: int) -> Any:
        mapping: Any = MAPPINGS[token.code]()
        count = self._count(token, 2)
        for _ in range(count):
            key = self._next()
            if type(key) is not str:
                key = self._read_key(key, depth)
            value = self.read((path, key), depth)
            if key in mapping:
                raise IntegrityError(f"a document has the key {key!r:.100} twice in one dict")
            if value is not PRUNED:
                mapping[key] = value
        if type(mapping) is OrderedDict:
            self._read_metadata(mapping, path, depth)
        return mapping if mapping or (not count and self._is_kept(path)) else PRUNED

    def _read_metadata(self, mapping: OrderedDict[Any, Any], path: Path, depth: int) -> None:
        if self._next() is not True:
            return
        metadata = self._read_all((path, Attribute(METADATA)), depth)
        if metadata is not PRUNED:
            vars(mapping)[METADATA] = metadata

    def _read_items(self, token: Any, path: Path, depth: int) -> Any:
        count = self._count(token, 1)
        items = self._tokens[self.position : self.position + count]
        if self._keep is None and ATOMS.issuperset(map(type, items)):
            self.position += count
        else:
            items = [self.read((path, index), depth) for index in range(count)]
            if all(item is PRUNED for item in items) and (count or not self._is_kept(path)):
                return PRUNED
            items = [None if item is PRUNED else item for item in items]
        return SEQUENCES[token.code](items)

    def _read_whole(self, token: Any, path: Path, depth: int) -> Any:
        """Read a value that is kept or left out as one."""
        if token.code in SETS:
            members = [self._read_all(path, depth) for _ in range(self._count(token, 1))]
            return self._made(SETS[token.code], members, len(members))
        kind = BY_CODE.get(token.code)
        if kind is None:
            raise UnsupportedFormatError(
                f"a document holds a value of kind {token.code}, which this release does not know"
            )
        form = self._read_all(path, depth)
        if type(form) is not kind.form_type:
            raise IntegrityError(f"a document describes a {kind.value_type.__name__} by a {type(form).__name__}")
        return self._made(kind.make, form)

    def _made(self, make: Callable[[Any], Any], form: Any, length: int | None = None) -> Any:
        try:
            value = make(form)
        except FAILURES as error:
            raise IntegrityError(f"a document describes a value that cannot be made: {error}") from error
        if length is not None and len(value) != length:
            raise IntegrityError("a document has a member twice in one set")
        return value

    def _read_key(self, token: Any, depth: int) -> Any:
        self.position -= 1
        key = self._read_all(None, depth)
        try:
            check_key(key, None)
        except InvalidInputError as error:
            raise IntegrityError(f"a document cannot be read: {error}") from None
        return key

    def _read_all(self, path: Path, depth: int) -> Any:
        keep, self._keep = self._keep, None
        value = self.read(path, depth)
        self._keep = keep
        return value

    def _is_kept(self, path: Path) -> bool:
        return self._keep is None or self._keep(path)

    def _count(self, token: Any, tokens_each: int) -> int:
        count = number_of(token)
        if count * tokens_each > len(self._tokens) - self.position:
            raise IntegrityError(f"a document ends before the {count} values of a container")
        return count

    def _next(self) -> Any:
        if self.position == len(self._tokens):
            raise IntegrityError("a document ends before its last value")
        token = self._tokens[self.position]
        self.position += 1
        return token
