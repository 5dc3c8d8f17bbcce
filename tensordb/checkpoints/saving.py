"""Writing a checkpoint: each tensor once, as a difference where that is smaller, then one commit that names them all.

Invariants: payloads are durable before the commit, which holds the catalog for itself alone; a tensor whose content is
stored already, by whomever, is named and not written; what a commit relies on (shared objects, bases) is looked for
again inside it, and where others deleted it meanwhile the checkpoint is written anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import checkpoints, deltas, objects
from tensordb.catalog.checkpoints import NamedObject, NewCheckpoint, TensorRow
from tensordb.catalog.deltas import StoredContent
from tensordb.checkpoints.checkpoint import Checkpoint, from_row
from tensordb.checkpoints.requests import Request
from tensordb.checkpoints.tree import Leaf
from tensordb.encoding.pipeline import Base, Prepared, prepare
from tensordb.encoding.presets import get_compression_preset
from tensordb.encoding.workers import for_each
from tensordb.engine import BaseGoneError, Database, ObjectSource, Stored
from tensordb.errors import ConflictError
from tensordb.model import TensorSpec

MAX_DELTAS = 64
"""Differences from one tensor, after which the next version is stored by itself again."""
_ATTEMPTS = 4
_GROUP_NBYTES = 256 << 20
_LARGE_NBYTES = 4 << 20
"""Tensors from here on are encoded one after the other, each on all cores; smaller ones beside each other."""
_INLINE_NBYTES = 8 << 10
"""Largest document that lies in the checkpoint's row."""


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A tensor of the checkpoint, found by what it holds."""

    name: str
    spec: TensorSpec
    norm: float | None
    content_id: bytes


class _SharedGoneError(ConflictError):
    """Others deleted what was stored already; the checkpoint has to be written anew."""


def save(db: Database, request: Request) -> Checkpoint:
    """Write a checkpoint and return it once it is durable."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return _Writing(db, request, sharing=True).run()
        except (BaseGoneError, _SharedGoneError):
            if db.catalog.in_transaction or attempt == _ATTEMPTS:
                raise
    return _Writing(db, request, sharing=False).run()


class _Writing:
    """One attempt to write a checkpoint."""

    def __init__(self, db: Database, request: Request, *, sharing: bool) -> None:
        self._db = db
        self._request = request
        self._sharing = sharing
        self._before: dict[str, NamedObject] = {}
        self._known: dict[bytes, StoredContent] = {}
        self._stored: dict[bytes, Stored] = {}

    def run(self) -> Checkpoint:
        """Write all tensors, then commit."""
        with self._db.payloads.writing():
            self._before = self._fetch_before() if self._sharing else {}
            written = [each for group in _groups(self._request.leaves) for each in self._write(group)]
            document = self._write_document()
            self._db.payloads.flush()
            return self._commit(written, document)

    def _fetch_before(self) -> dict[str, NamedObject]:
        """Return what the tensors of the run's newest checkpoint are stored as."""
        with self._db.catalog.read() as con:
            run = checkpoints.run_named(con, self._request.facts.run)
            number = checkpoints.latest(con, run.run_id) if run else None
            found = [] if number is None else checkpoints.named_objects(con, number)
        return {each.name: each for each in found}

    def _write(self, group: Sequence[Leaf]) -> list[_Tensor]:
        """Write the tensors of a group that are not stored yet."""
        owned = [tensors.snapshot(leaf.tensor) for leaf in group]
        ready: dict[int, Prepared] = {}
        norms: dict[int, float | None] = {}

        def begin(index: int) -> None:
            config, path = self._request.configs.of_tensor(group[index].name)
            ready[index] = prepare(owned[index], config, name=path)
            norms[index] = norm_of(owned[index])

        on_all_cores(owned, range(len(owned)), begin)
        contents = [ready[index].content_id() for index in range(len(owned))]
        fresh, bases = self._look_up(group, owned, contents)

        def finish(index: int) -> None:
            base = bases.get(index)
            prepared = ready.pop(index)
            if base is not None:
                prepared = replace(prepared, base=Base(base[0].content_id, base[1].reader))
            self._stored[contents[index]] = self._db.writer.put_whole(prepared, base and base[0])

        on_all_cores(owned, fresh, finish)
        return [
            _Tensor(leaf.name, tensors.spec_of(tensor), norms[index], contents[index])
            for index, (leaf, tensor) in enumerate(zip(group, owned, strict=True))
        ]

    def _look_up(
        self, group: Sequence[Leaf], owned: Sequence[torch.Tensor], contents: Sequence[bytes]
    ) -> tuple[list[int], dict[int, tuple[StoredContent, ObjectSource]]]:
        """Return which tensors have to be written, one of each content, and from what some may be differences."""
        with self._db.catalog.read() as con:
            if self._sharing:
                self._known |= deltas.with_content(con, [each for each in contents if each not in self._known])
            first = {content: index for index, content in reversed(list(enumerate(contents)))}
            fresh = sorted(first[each] for each in first.keys() - self._known.keys() - self._stored.keys())
            likely = {index: base for index in fresh if (base := self._base_of(group[index].name, owned[index]))}
            names = {base.object_id: f"the base of {group[index].name!r}" for index, base in likely.items()}
            # One that is damaged is no base; the tensor is then stored by itself.
            opened = {
                key: source for key, source in self._db.sources.try_open(con, names) if isinstance(source, ObjectSource)
            }
        return fresh, {
            index: (base, opened[base.object_id]) for index, base in likely.items() if base.object_id in opened
        }

    def _base_of(self, name: str, tensor: torch.Tensor) -> StoredContent | None:
        """Return what the chain of the tensor of this name began with, where it is worth while to continue it.

        All differences are from that one tensor, and not from each other: reading one decodes two tensors, however many
        checkpoints lie between.
        """
        before = self._before.get(name)
        config, path = self._request.configs.of_tensor(name)
        # Who names a codec, or none, wants that one.
        if config.for_tensor(path, tensors.spec_of(tensor)).compression not in ("auto", "best"):
            return None
        if before is None or before.length >= MAX_DELTAS:
            return None
        # Differences grow with the distance from their base. Once one is larger than what the versions of the chain
        # took on average, another chain is cheaper.
        if before.length and before.stored_nbytes * (before.length + 1) > before.chain_nbytes:
            return None
        return StoredContent(before.key_content, before.key_id, 0, before.length, before.chain_nbytes)

    def _write_document(self) -> bytes | Stored:
        """Return the document, as an object where it is large."""
        document = self._request.document
        if len(document) <= _INLINE_NBYTES:
            return document
        values = torch.frombuffer(bytearray(document), dtype=torch.uint8)
        return self._db.writer.put_whole(prepare(values, get_compression_preset("lossless")))

    def _commit(self, written: Sequence[_Tensor], document: bytes | Stored) -> Checkpoint:
        facts = self._request.facts
        with self._db.catalog.write(f"saving a checkpoint of {facts.run!r}") as con:
            ids = self._name_objects(con, written, document)
            run = checkpoints.run_named(con, facts.run) or checkpoints.add_run(con, facts.run)
            nbytes = {key: each.stored_nbytes for key, each in self._known.items()}
            nbytes |= {key: each.encoded.nbytes for key, each in self._stored.items()}
            document_nbytes = document.encoded.nbytes if isinstance(document, Stored) else len(document)
            sizes = {each.content_id: nbytes[each.content_id] for each in written}
            new = NewCheckpoint(
                run_id=run.run_id,
                step=facts.step,
                epoch=facts.epoch,
                parent=checkpoints.latest(con, run.run_id),
                metrics=facts.numbers,
                metadata=facts.metadata_json,
                facts=facts.packed,
                document=None if isinstance(document, Stored) else document,
                document_id=document.encoded.object_id if isinstance(document, Stored) else None,
                tensors=len(written),
                nbytes=sum(tensors.nbytes_of(each.spec) for each in written),
                stored_nbytes=sum(sizes.values()) + document_nbytes,
                added_nbytes=sum(each.encoded.nbytes for each in self._stored.values()) + document_nbytes,
            )
            number = checkpoints.add(con, new, self._rows(con, written, ids))
            return from_row(checkpoints.by_number(con, [number])[0])

    def _name_objects(
        self, con: duckdb.DuckDBPyConnection, written: Sequence[_Tensor], document: bytes | Stored
    ) -> dict[bytes, bytes]:
        """Count the references to all objects, those that are new included; return their ids by content."""
        ids = {key: each.object_id for key, each in self._known.items()}
        ids |= {key: each.encoded.object_id for key, each in self._stored.items()}
        refs = Counter(ids[each.content_id] for each in written)
        new = list(self._stored.values())
        if isinstance(document, Stored):
            new.append(document)
            refs[document.encoded.object_id] += 1
        shared = {each: refs[each] for each in refs.keys() - {stored.encoded.object_id for stored in new}}
        if len(objects.existing(con, list(shared))) < len(shared):
            raise _SharedGoneError("tensors stored before were deleted by others while they were saved again")
        objects.add_references(con, shared)
        self._db.writer.name(con, new, refs)
        return ids

    def _rows(
        self, con: duckdb.DuckDBPyConnection, written: Sequence[_Tensor], ids: dict[bytes, bytes]
    ) -> list[TensorRow]:
        spec_id = self._db.catalog.known.spec_id
        return [
            TensorRow(
                position,
                each.name,
                ids[each.content_id],
                spec_id(con, each.spec, tensors.nbytes_of(each.spec)),
                each.norm,
            )
            for position, each in enumerate(written)
        ]


def norm_of(tensor: torch.Tensor) -> float | None:
    """Return the L2 norm of a tensor of floats, accumulated in float64; None for other dtypes."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    values = tensor if tensor.element_size() > 1 else tensor.float()
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def on_all_cores(owned: Sequence[torch.Tensor], which: Sequence[int], work: Callable[[int], None]) -> None:
    """Call ``work(index)`` for some of these tensors: small ones beside each other, large ones each by itself."""
    large = [index for index in which if owned[index].numel() * owned[index].element_size() >= _LARGE_NBYTES]
    small = sorted(set(which) - set(large))
    for_each(len(small), lambda at: work(small[at]))
    for index in large:
        work(index)


def _groups(leaves: Sequence[Leaf]) -> Iterator[list[Leaf]]:
    """Yield the tensors in parts of bounded raw bytes, at least one in each."""
    group: list[Leaf] = []
    total = 0
    for leaf in leaves:
        nbytes = leaf.tensor.numel() * leaf.tensor.element_size()
        if group and total + nbytes > _GROUP_NBYTES:
            yield group
            group, total = [], 0
        group.append(leaf)
        total += nbytes
    if group:
        yield group
