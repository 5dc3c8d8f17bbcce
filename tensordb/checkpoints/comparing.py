"""Comparing two checkpoints: what the catalog knows first, then the tensors that differ, decoded in bounded memory.

Invariants: tensors of one content id are equal and not read; what is read was found in one catalog block, so that a
checkpoint deleted meanwhile is compared to its end. A tensor is known by its path in the state, so that one that is
tied in one checkpoint and not in the other still meets itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import duckdb
import torch

from tensordb.catalog import checkpoint_tensors, deltas
from tensordb.catalog.checkpoint_tensors import StoredTensor
from tensordb.catalog.checkpoints import CheckpointRow
from tensordb.checkpoints.checkpoint import from_row
from tensordb.checkpoints.diff import CheckpointDiff, TensorDiff
from tensordb.checkpoints.distance import Distance, distance
from tensordb.checkpoints.history import find
from tensordb.checkpoints.loading import document_of
from tensordb.checkpoints.selecting import selection
from tensordb.checkpoints.tree import tensor_paths
from tensordb.encoding.workers import for_each
from tensordb.engine import Database, ObjectSource
from tensordb.errors import InvalidInputError
from tensordb.model import TensorSpec
from tensordb.tensors import dtype_from_name

_LARGE_NBYTES = 4 << 20
_PIECE_NBYTES = 64 << 20
"""Tensors are decoded in pieces of about this size, one of each checkpoint at a time."""

Objects = dict[bytes, int]
"""Stored bytes by object id."""


class _Pair(NamedTuple):
    """A tensor in the two checkpoints; None where it is not."""

    name: str
    a: StoredTensor | None
    b: StoredTensor | None


class _Named(NamedTuple):
    """What a tensor is called in errors, and what it is stored as."""

    name: str
    source: ObjectSource


def compare(db: Database, a: Any, b: Any, *, keys: Any, values: bool) -> CheckpointDiff:
    """Compare two checkpoints, with `values` also the values of tensors that differ."""
    wanted = selection(keys)
    with db.catalog.read() as con:
        row_a, row_b = _find(con, a, "a"), _find(con, b, "b")
        pairs = _paired(_tensors(db, con, row_a, wanted), _tensors(db, con, row_b, wanted))
        if wanted is not None:
            wanted.check("neither checkpoint has a tensor")
        needs = _needs(con, [each for _, *both in pairs for each in both if each])
        sources = _open(db, con, pairs, row_a, row_b) if values else {}
    found = _distances(db, pairs, sources)
    rows = tuple(_row(pair, needs, found.get(_key(pair))) for pair in pairs)
    in_a, in_b = (_union(needs[each.object_id] for each in side if each) for side in _sides(pairs))
    shared = sum(nbytes for object_id, nbytes in in_b.items() if object_id in in_a)
    return CheckpointDiff(from_row(row_a), from_row(row_b), rows, sum(in_b.values()), shared)


def _find(con: duckdb.DuckDBPyConnection, given: Any, what: str) -> CheckpointRow:
    if not isinstance(given, tuple):
        return find(con, given)
    if len(given) != 2:
        raise InvalidInputError(f"{what} is {given!r}; a pair is a run and a step or tag, such as ('baseline', 100)")
    run, at = given
    return find(con, run, which=at) if isinstance(at, str) else find(con, run, step=at)


def _tensors(
    db: Database, con: duckdb.DuckDBPyConnection, row: CheckpointRow, wanted: Callable[[str], bool] | None
) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by their paths; the parts of those that have several by the parts' names."""
    stored = {each.position: each for each in checkpoint_tensors.stored_tensors(con, row.number)}
    named: dict[str, StoredTensor] = {}
    for path, indices in tensor_paths(document_of(db, con, row)).items():
        if wanted is None or wanted(path):
            parts = [stored[index] for index in indices]
            whole = len(parts) == 1 and not parts[0].name.endswith(".storage")
            for part in parts:
                named.setdefault(path if whole else part.name, part)
    return named


def _paired(a: Mapping[str, StoredTensor], b: Mapping[str, StoredTensor]) -> list[_Pair]:
    return [_Pair(name, a.get(name), b.get(name)) for name in [*b, *(name for name in a if name not in b)]]


def _sides(pairs: list[_Pair]) -> tuple[list[StoredTensor | None], list[StoredTensor | None]]:
    return [pair.a for pair in pairs], [pair.b for pair in pairs]


def _needs(con: duckdb.DuckDBPyConnection, stored: list[StoredTensor]) -> dict[bytes, Objects]:
    """Return which objects each object is read from: itself, and its bases down to the last."""
    bases = deltas.bases_of(con, list({each.object_id for each in stored}))
    needs: dict[bytes, Objects] = {}
    for each in stored:
        needed: Objects = {each.object_id: each.stored_nbytes}
        base = bases.get(each.object_id)
        while base is not None and base.base_id not in needed:
            needed[base.base_id] = base.stored_nbytes
            base = bases.get(base.base_id)
        needs[each.object_id] = needed
    return needs


def _union(needs: Iterator[Objects]) -> Objects:
    return {object_id: nbytes for each in needs for object_id, nbytes in each.items()}


def _is_equal(pair: _Pair) -> bool:
    return pair.a is not None and pair.b is not None and pair.a.content_id == pair.b.content_id != b""


def _is_comparable(pair: _Pair) -> bool:
    return pair.a is not None and pair.b is not None and pair.a.spec.shape == pair.b.spec.shape and not _is_equal(pair)


def _key(pair: _Pair) -> tuple[bytes, bytes]:
    return (pair.a.object_id if pair.a else b"", pair.b.object_id if pair.b else b"")


def _open(
    db: Database, con: duckdb.DuckDBPyConnection, pairs: list[_Pair], a: CheckpointRow, b: CheckpointRow
) -> dict[bytes, _Named]:
    """Open what has to be read, by object id."""
    names = {
        object_id: f"tensor {pair.name!r} of checkpoint step {row.step} of run {row.run!r}"
        for pair in filter(_is_comparable, pairs)
        for object_id, row in zip(_key(pair), (a, b), strict=True)
    }
    return {object_id: _Named(names[object_id], source) for object_id, source in db.sources.open(con, names).items()}


def _distances(
    db: Database, pairs: list[_Pair], sources: Mapping[bytes, _Named]
) -> dict[tuple[bytes, bytes], Distance]:
    """Compare the tensors whose objects are open, each pair of objects once."""
    waiting = {_key(pair): pair for pair in pairs if _is_comparable(pair) and _key(pair)[0] in sources}
    found: dict[tuple[bytes, bytes], Distance] = {}

    def work(pair: _Pair) -> None:
        key = _key(pair)
        found[key] = distance(_pieces(db, sources[key[0]], sources[key[1]]))

    small = [pair for pair in waiting.values() if pair.b and pair.b.nbytes < _LARGE_NBYTES]
    for_each(len(small), lambda index: work(small[index]))
    for key, pair in waiting.items():
        if key not in found:
            work(pair)
    return found


def _pieces(db: Database, a: _Named, b: _Named) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    spec = a.source.reader.spec
    largest = max(dtype_from_name(each.source.reader.spec.dtype).itemsize for each in (a, b))
    for index in _indices(spec, _PIECE_NBYTES // largest):
        yield tuple(db.sources.decode(*each, index=index) for each in (a, b))  # type: ignore[misc]


def _indices(spec: TensorSpec, most: int) -> Iterator[Any]:
    """Yield what to index a tensor with to get it in pieces of about `most` elements; None for all of it."""
    if math.prod(spec.shape) <= most:
        yield None
        return
    dim = next(dim for dim in range(len(spec.shape)) if math.prod(spec.shape[dim + 1 :]) <= most)
    length = max(1, most // max(1, math.prod(spec.shape[dim + 1 :])))
    for leading in product(*(range(size) for size in spec.shape[:dim])):
        for begin in range(0, spec.shape[dim], length):
            yield (*leading, slice(begin, begin + length))


def _row(pair: _Pair, needs: Mapping[bytes, Objects], found: Distance | None) -> TensorDiff:
    a, b = pair.a, pair.b
    one = b or a
    row = TensorDiff(
        pair.name,
        "changed",
        a and a.spec,
        b and b.spec,
        nbytes=one.nbytes if one else 0,
        stored_nbytes=one.stored_nbytes if one else 0,
    )
    if a is None or b is None:
        return replace(row, change="added" if a is None else "removed")
    in_a, in_b = needs[a.object_id], needs[b.object_id]
    row = replace(row, shared_nbytes=sum(nbytes for key, nbytes in in_b.items() if key in in_a))
    if _is_equal(pair):
        return replace(row, change="equal", relative_l2=0.0, max_abs=0.0)
    row = replace(row, change="changed" if a.spec == b.spec else "spec changed")
    return row if found is None else _measured(row, found)


def _measured(row: TensorDiff, found: Distance) -> TensorDiff:
    return replace(
        row,
        change="equal" if found.same_bits else row.change,
        relative_l2=found.relative_l2,
        cosine=found.cosine,
        max_abs=found.max_abs,
        not_finite=found.not_finite,
    )
