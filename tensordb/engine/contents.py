"""Storing tensors by what they hold: each content once, as a difference from another where that is smaller.

Invariants: payloads are durable before the commit, which holds the catalog for itself alone; a tensor whose content is
stored already, by whomever, is named and not written, unless it was found damaged: then it is written, which mends it;
what a commit relies on (shared objects, bases) is looked for again inside it, and where others deleted it meanwhile
everything is written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import damage, deltas, objects
from tensordb.catalog.deltas import Chain, StoredContent
from tensordb.encoding.pipeline import Prepared, prepare
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.workers import for_each
from tensordb.engine.database import Database
from tensordb.engine.sources import ObjectSource
from tensordb.engine.writer import BaseGoneError, Stored
from tensordb.errors import ConflictError, FormatError, IntegrityError

MAX_DELTAS = 64
"""Differences from one tensor, after which the next version is stored by itself again."""
_ATTEMPTS = 4
_GROUP_NBYTES = 256 << 20
_GROUP_TENSORS = 1 << 14
_LARGE_NBYTES = 4 << 20
"""Tensors from here on are worked on one after the other, each on all cores; smaller ones beside each other."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A tensor that is to be stored.

    Attributes:
        tensor: Of any strides, on any device.
        config: What to encode it with.
        rules_name: What the config's rules know it by, None when it has no name.
        title: What it is called in errors.
        before: The chain that it may continue, as another difference from what that began with.
    """

    tensor: torch.Tensor
    config: CompressionConfig
    rules_name: str | None
    title: str
    before: Chain | None = None

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensor."""
        return self.tensor.numel() * self.tensor.element_size()


class SharedGoneError(ConflictError):
    """Others deleted what was stored already; what shares it has to be written anew."""


class ContentWriter:
    """One attempt to store tensors that are named by one commit."""

    def __init__(self, db: Database, *, sharing: bool) -> None:
        """Bind a database; without `sharing` nothing that is stored is relied on until the commit."""
        self._db = db
        self._sharing = sharing
        self._known: dict[bytes, StoredContent] = {}
        self._stored: dict[bytes, Stored] = {}

    @property
    def sharing(self) -> bool:
        """Whether what is stored already is relied on."""
        return self._sharing

    @property
    def added_nbytes(self) -> int:
        """Bytes of what was written so far."""
        return sum(each.encoded.nbytes for each in self._stored.values())

    def nbytes(self, content_id: bytes) -> int:
        """Return the stored bytes of a content that was given to `write`."""
        stored = self._stored.get(content_id)
        return self._known[content_id].stored_nbytes if stored is None else stored.encoded.nbytes

    def write(
        self, group: Sequence[Content], measure: Callable[[int, torch.Tensor], None] | None = None
    ) -> list[bytes]:
        """Write the tensors of a group that are not stored yet, on all cores.

        Args:
            group: Tensors that fit into memory together.
            measure: Called for each position with a snapshot of its tensor, on any thread.

        Returns:
            Their content ids.
        """
        owned = [tensors.snapshot(each.tensor) for each in group]
        ready: dict[int, Prepared] = {}

        def begin(index: int) -> None:
            ready[index] = prepare(owned[index], group[index].config, name=group[index].rules_name)
            if measure is not None:
                measure(index, owned[index])

        sizes = [each.nbytes for each in group]
        on_all_cores(sizes, range(len(group)), begin)
        contents = [ready[index].content_id() for index in range(len(group))]
        fresh, bases = self._look_up(group, contents)

        def finish(index: int) -> None:
            self._stored[contents[index]] = self._put(ready.pop(index), *bases.get(index, (None, None)))

        on_all_cores(sizes, fresh, finish)
        return contents

    def place(self, content_id: bytes) -> Stored | StoredContent:
        """Return what was written for a content that was given to `write`, or was stored already; plain data."""
        return self._stored.get(content_id) or self._known[content_id]

    def adopt(self, places: Mapping[bytes, Stored | StoredContent]) -> None:
        """Take what others wrote, or saw stored, for contents: it is named as if it had been given to `write` here."""
        for content_id, place in places.items():
            if isinstance(place, StoredContent):
                self._known[content_id] = place
            else:
                self._stored[content_id] = place

    def name(
        self, con: duckdb.DuckDBPyConnection, refs: Mapping[bytes, int], more: Sequence[Stored] = ()
    ) -> dict[bytes, bytes]:
        """Count references to what was given to `write`, inside a write block.

        Args:
            con: The block's connection.
            refs: How often each content is named anew. What was written and is not here stays an orphan.
            more: Further objects that were written, each named once.

        Returns:
            The object id of each of these contents.

        Raises:
            SharedGoneError: Others deleted what was stored already; likewise BaseGoneError for a base.
        """
        ids = {key: self._object_id(key) for key in refs}
        new = [self._stored[key] for key in refs if key in self._stored]
        counts = {ids[key]: refs[key] for key in refs}
        counts |= {each.encoded.object_id: counts.get(each.encoded.object_id, 0) + 1 for each in more}
        written = {each.encoded.object_id for each in (*new, *more)}
        shared = {key: count for key, count in counts.items() if key not in written}
        if shared:
            if len(objects.existing(con, list(shared))) < len(shared):
                raise SharedGoneError("tensors stored before were deleted by others while they were stored again")
            objects.add_references(con, shared)
        if written:
            self._db.writer.name(con, [*new, *more], counts)
        self._db.writer.mend(con, list(self._stored.values()))
        return ids

    def _object_id(self, content_id: bytes) -> bytes:
        stored = self._stored.get(content_id)
        return self._known[content_id].object_id if stored is None else stored.encoded.object_id

    def _look_up(
        self, group: Sequence[Content], contents: Sequence[bytes]
    ) -> tuple[list[int], dict[int, tuple[Chain, ObjectSource]]]:
        """Return which tensors have to be written, one of each content, and from what some may be differences."""
        with self._db.catalog.read() as con:
            marked = damage.marked(con)
            damaged = set(marked.values())
            if self._sharing:
                unknown = {each for each in contents if each not in self._known and each not in self._stored}
                self._known |= deltas.with_content(con, list(unknown - damaged))
            first = {content: index for index, content in reversed(list(enumerate(contents)))}
            fresh = sorted(first[each] for each in first.keys() - self._known.keys() - self._stored.keys())
            likely = {
                index: chain
                for index in fresh
                # What mends others is stored by itself.
                if contents[index] not in damaged
                and (chain := self.chain_of(group[index])) is not None
                and chain.key_id not in marked
            }
            if not likely:
                return fresh, {}
            names = {chain.key_id: f"the base of {group[index].title}" for index, chain in likely.items()}
            # One that is damaged is no base; the tensor is then stored by itself.
            opened = {
                key: source for key, source in self._db.sources.try_open(con, names) if isinstance(source, ObjectSource)
            }
        return fresh, {
            index: (chain, opened[chain.key_id]) for index, chain in likely.items() if chain.key_id in opened
        }

    def chain_of(self, content: Content) -> Chain | None:
        """Return the chain that a tensor may continue, where that is worth while.

        All differences are from what the chain began with, and not from each other: reading one decodes two tensors,
        however many versions lie between.
        """
        chain = content.before
        if chain is None or not self._sharing or chain.length >= MAX_DELTAS:
            return None
        # Who names a codec, or none, wants that one.
        config = content.config.for_tensor(content.rules_name, tensors.spec_of(content.tensor))
        if config.compression not in ("auto", "best"):
            return None
        # Differences grow with the distance from their base. Once one is larger than what the versions of the chain
        # took on average, another chain is cheaper.
        return chain if not chain.length or chain.last_nbytes * (chain.length + 1) <= chain.nbytes else None

    def _put(self, prepared: Prepared, chain: Chain | None, key: ObjectSource | None) -> Stored:
        if chain is not None and key is not None:
            try:
                based = replace(prepared, base=key.as_base(chain.key_content))
                return self._db.writer.put_whole(based, chain)
            except (IntegrityError, FormatError):  # the base is damaged, which is for its own readers to learn
                pass
        return self._db.writer.put_whole(prepared)


def attempts(db: Database, store: Callable[[ContentWriter], T], *, repeatable: bool = True) -> T:
    """Return what `store` does with a writer; where others deleted what it relied on it is called again.

    Args:
        db: The database.
        store: Writes, and names in one commit what was written.
        repeatable: Whether it can be called again.
    """
    with db.catalog.read():
        repeatable = repeatable and not db.catalog.in_transaction
    for _ in range(_ATTEMPTS - 1):
        try:
            with db.payloads.writing():
                return store(ContentWriter(db, sharing=True))
        except (BaseGoneError, SharedGoneError):
            if not repeatable:
                raise
    with db.payloads.writing():
        return store(ContentWriter(db, sharing=False))


def on_all_cores(sizes: Sequence[int], which: Iterable[int], work: Callable[[int], None]) -> None:
    """Call ``work(index)`` for some tensors of these raw bytes: small ones beside each other, large ones by itself."""
    wanted = sorted(which)
    small = [index for index in wanted if sizes[index] < _LARGE_NBYTES]
    for_each(len(small), lambda at: work(small[at]))
    for index in wanted:
        if sizes[index] >= _LARGE_NBYTES:
            work(index)


def in_groups(items: Iterable[T], nbytes: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield items in parts of bounded raw bytes, at least one in each."""
    group: list[T] = []
    total = 0
    for item in items:
        size = nbytes(item)
        if group and (total + size > _GROUP_NBYTES or len(group) >= _GROUP_TENSORS):
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group
