"""Storing the tensors of a checkpoint: each once, as a difference where that is smaller.

Invariants: a tensor whose content is stored already, by whomever, is not written; what is written is named by nobody
yet, so that until a commit names it, it is kept only by whoever holds its segment. What is given back is plain data,
which may be committed by another process than the one that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from tensordb import tensors
from tensordb.catalog import checkpoints, deltas
from tensordb.catalog.checkpoints import NamedObject
from tensordb.catalog.deltas import StoredContent
from tensordb.checkpoints.tree import Leaf
from tensordb.encoding.pipeline import Base, Prepared, prepare
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.workers import for_each
from tensordb.engine import Database, ObjectSource, Stored
from tensordb.model import TensorSpec

MAX_DELTAS = 8
"""Bases that a tensor may have one behind the other; the next difference is stored by itself again."""
MAX_CHAIN = 1.5
"""Stored bytes of a tensor and its bases, over its raw bytes, up to which another difference may follow."""
_GROUP_NBYTES = 256 << 20
_LARGE_NBYTES = 4 << 20
"""Tensors from here on are encoded one after the other, each on all cores; smaller ones beside each other."""


class Configs(Protocol):
    """Says what tensors are encoded with."""

    def of_tensor(self, name: str) -> tuple[CompressionConfig, str]:
        """Return the config of a tensor by its full name, and what rules know it by."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor of a checkpoint that is not committed yet.

    Attributes:
        name: Its full name.
        norm: Its L2 norm, None where it has none.
        content_id: What it holds.
        place: What was written for it, or was stored already.
    """

    name: str
    spec: TensorSpec
    norm: float | None
    content_id: bytes
    place: Stored | StoredContent


class TensorStore:
    """Stores the tensors of one checkpoint of a run.

    Args:
        db: The database.
        run: Name of the run, of whose newest checkpoint tensors may be differences.
        configs: What they are encoded with.
        sharing: Whether to look for what is stored already; without, everything is written.
    """

    def __init__(self, db: Database, run: str, configs: Configs, *, sharing: bool = True) -> None:
        self._db = db
        self._configs = configs
        self._sharing = sharing
        self._before = self._fetch_before(run) if sharing else {}
        self._places: dict[bytes, Stored | StoredContent] = {}

    def write(self, leaves: Iterable[Leaf]) -> list[StoredTensor]:
        """Write the tensors that are not stored yet; they are durable once the payloads are flushed."""
        return [each for group in _groups(leaves) for each in self._write(group)]

    def _fetch_before(self, name: str) -> dict[str, NamedObject]:
        """Return what the tensors of the run's newest checkpoint are stored as."""
        with self._db.catalog.read() as con:
            run = checkpoints.run_named(con, name)
            number = checkpoints.latest(con, run.run_id) if run else None
            found = [] if number is None else checkpoints.named_objects(con, number)
        return {each.name: each for each in found}

    def _write(self, group: Sequence[Leaf]) -> list[StoredTensor]:
        owned = [tensors.snapshot(leaf.tensor) for leaf in group]
        ready: dict[int, Prepared] = {}
        norms: dict[int, float | None] = {}

        def begin(index: int) -> None:
            config, path = self._configs.of_tensor(group[index].name)
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
            self._places[contents[index]] = self._db.writer.put_whole(prepared, base and base[0])

        on_all_cores(owned, fresh, finish)
        return [
            StoredTensor(
                leaf.name, tensors.spec_of(tensor), norms[index], contents[index], self._places[contents[index]]
            )
            for index, (leaf, tensor) in enumerate(zip(group, owned, strict=True))
        ]

    def _look_up(
        self, group: Sequence[Leaf], owned: Sequence[torch.Tensor], contents: Sequence[bytes]
    ) -> tuple[list[int], dict[int, tuple[StoredContent, ObjectSource]]]:
        """Return which tensors have to be written, one of each content, and from what some may be differences."""
        with self._db.catalog.read() as con:
            if self._sharing:
                self._places |= deltas.with_content(con, [each for each in contents if each not in self._places])
            first = {content: index for index, content in reversed(list(enumerate(contents)))}
            fresh = sorted(first[each] for each in first.keys() - self._places.keys())
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
        """Return what the tensor of this name was stored as before, where a difference from it is read fast enough."""
        before = self._before.get(name)
        config, path = self._configs.of_tensor(name)
        # Who names a codec, or none, wants that one.
        if config.for_tensor(path, tensors.spec_of(tensor)).compression not in ("auto", "best"):
            return None
        if before is None or before.length >= MAX_DELTAS:
            return None
        if before.chain_nbytes > MAX_CHAIN * tensor.numel() * tensor.element_size():
            return None
        return StoredContent(
            before.content_id, before.object_id, before.stored_nbytes, before.length, before.chain_nbytes
        )


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


def _groups(leaves: Iterable[Leaf]) -> Iterator[list[Leaf]]:
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
