"""Writing a checkpoint: its tensors through the engine, which stores each content once, then one commit for them all.

Invariant: the checkpoint's row, those of its tensors and the references that they hold come in one transaction, after
all payloads are durable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import checkpoint_tensors, checkpoints
from tensordb.catalog.checkpoint_tensors import TensorRow
from tensordb.catalog.checkpoints import NewCheckpoint
from tensordb.catalog.deltas import Chain
from tensordb.checkpoints.checkpoint import Checkpoint, from_row
from tensordb.checkpoints.requests import Facts, Request
from tensordb.checkpoints.tree import Leaf
from tensordb.encoding.pipeline import prepare
from tensordb.encoding.presets import CompressionConfig, get_compression_preset
from tensordb.engine import Database, Stored
from tensordb.engine.contents import Content, ContentWriter, attempts, in_groups
from tensordb.model import TensorSpec

_INLINE_NBYTES = 8 << 10
"""Largest document that lies in the checkpoint's row."""
_NORM_ELEMENTS = 1 << 20
_SMALLEST_NORM = 1e-12


class Configs(Protocol):
    """Says what the tensors of a checkpoint are encoded with."""

    def of_tensor(self, name: str) -> tuple[CompressionConfig, str]:
        """Return the config of a tensor by its full name, and what rules know it by."""


@dataclass(frozen=True, slots=True, eq=False)
class WrittenTensor:
    """A tensor of a checkpoint that is not committed yet, found by what it holds."""

    name: str
    spec: TensorSpec
    norm: float | None
    content_id: bytes


def save(db: Database, request: Request) -> Checkpoint:
    """Write a checkpoint and return it once it is durable."""
    return attempts(db, lambda writer: _save(db, request, writer))


def _save(db: Database, request: Request, writer: ContentWriter) -> Checkpoint:
    written = write_tensors(db, writer, request.facts.run, request.configs, request.leaves)
    document = write_document(db, request.document)
    db.payloads.flush()
    return commit(db, writer, request.facts, written, document)


def write_tensors(
    db: Database, writer: ContentWriter, run: str, configs: Configs, leaves: Iterable[Leaf]
) -> list[WrittenTensor]:
    """Write the tensors of a checkpoint that are not stored yet; they are durable once the payloads are flushed.

    Args:
        db: The database.
        writer: Of this attempt.
        run: Name of the run, of whose newest checkpoint they may be differences.
        configs: What they are encoded with.
        leaves: The tensors; they are asked for as they are written.
    """
    before = _chains(db, run) if writer.sharing else {}

    def content(leaf: Leaf) -> Content:
        config, path = configs.of_tensor(leaf.name)
        return Content(leaf.tensor, config, path, repr(leaf.name), before.get(leaf.name))

    groups = in_groups(leaves, lambda leaf: leaf.tensor.numel() * leaf.tensor.element_size())
    return [each for group in groups for each in _write(writer, group, content)]


def _chains(db: Database, name: str) -> dict[str, Chain]:
    """Return what the tensors of a run's newest checkpoint are stored as."""
    with db.catalog.read() as con:
        run = checkpoints.run_named(con, name)
        number = checkpoints.latest(con, run.run_id) if run else None
        return {} if number is None else checkpoint_tensors.chains(con, number)


def _write(writer: ContentWriter, group: Sequence[Leaf], content: Callable[[Leaf], Content]) -> list[WrittenTensor]:
    norms: dict[int, float | None] = {}

    def measure(index: int, tensor: torch.Tensor) -> None:
        norms[index] = norm_of(tensor)

    contents = writer.write([content(leaf) for leaf in group], measure)
    return [
        WrittenTensor(leaf.name, tensors.spec_of(leaf.tensor), norms[index], contents[index])
        for index, leaf in enumerate(group)
    ]


def write_document(db: Database, document: bytes) -> bytes | Stored:
    """Return a document, written as an object where it is large."""
    if len(document) <= _INLINE_NBYTES:
        return document
    values = torch.frombuffer(bytearray(document), dtype=torch.uint8)
    return db.writer.put_whole(prepare(values, get_compression_preset("lossless")))


def commit(
    db: Database, writer: ContentWriter, facts: Facts, written: Sequence[WrittenTensor], document: bytes | Stored
) -> Checkpoint:
    """Name what was written, and return the checkpoint once it is durable.

    Args:
        db: The database.
        writer: Knows the contents of all that was written.
        facts: What is known of the checkpoint beside its state.
        written: The tensors in the order of the document's leaves.
        document: From `write_document`.
    """
    with db.catalog.write(f"saving a checkpoint of {facts.run!r}", keeps_records=True) as con:
        more = [document] if isinstance(document, Stored) else []
        ids = writer.name(con, Counter(each.content_id for each in written), more)
        run = checkpoints.run_named(con, facts.run) or checkpoints.add_run(con, facts.run)
        inline = None if isinstance(document, Stored) else document
        document_nbytes = document.encoded.nbytes if isinstance(document, Stored) else len(document)
        sizes = {each.content_id: writer.nbytes(each.content_id) for each in written}
        new = NewCheckpoint(
            run_id=run.run_id,
            step=facts.step,
            epoch=facts.epoch,
            parent=checkpoints.latest(con, run.run_id),
            metrics=facts.numbers,
            metadata=facts.metadata_json,
            facts=facts.packed(inline),
            document=inline,
            document_id=document.encoded.object_id if isinstance(document, Stored) else None,
            tensors=len(written),
            nbytes=sum(tensors.nbytes_of(each.spec) for each in written),
            stored_nbytes=sum(sizes.values()) + document_nbytes,
            added_nbytes=writer.added_nbytes + document_nbytes,
        )
        number = checkpoints.add(con, new, _rows(db, con, written, ids))
        return from_row(checkpoints.by_number(con, [number])[0])


def _rows(
    db: Database, con: duckdb.DuckDBPyConnection, written: Sequence[WrittenTensor], ids: dict[bytes, bytes]
) -> list[TensorRow]:
    spec_id = db.catalog.known.spec_id
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
    """Return the L2 norm of a tensor of floats to about six digits; None for other dtypes."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    parts = [torch.linalg.vector_norm(_wide(part)) for part in torch.split(tensor.reshape(-1), _NORM_ELEMENTS)]
    norm = float(torch.linalg.vector_norm(torch.stack(parts), dtype=torch.float64))
    if not math.isfinite(norm) or norm < _SMALLEST_NORM:
        # Squares of float32 may have been too large or too small for it; in float64 it takes twenty times as long.
        return float(torch.linalg.vector_norm(_wide(tensor), dtype=torch.float64)) if _wide(tensor).any() else 0.0
    return norm


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
