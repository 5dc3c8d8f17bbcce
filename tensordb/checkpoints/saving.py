"""Writing a checkpoint: its tensors through the engine, which stores each content once, then one commit for them all.

Invariant: the checkpoint's row, those of its tensors and the references that they hold come in one transaction, after
all payloads are durable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import checkpoints
from tensordb.catalog.checkpoints import NewCheckpoint, TensorRow
from tensordb.catalog.deltas import Chain
from tensordb.checkpoints.checkpoint import Checkpoint, from_row
from tensordb.checkpoints.requests import Request
from tensordb.checkpoints.tree import Leaf
from tensordb.encoding.pipeline import prepare
from tensordb.encoding.presets import get_compression_preset
from tensordb.engine import Database, Stored
from tensordb.engine.contents import Content, ContentWriter, attempts, in_groups
from tensordb.model import TensorSpec

_INLINE_NBYTES = 8 << 10
"""Largest document that lies in the checkpoint's row."""
_NORM_ELEMENTS = 1 << 20
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A tensor of the checkpoint, found by what it holds."""

    name: str
    spec: TensorSpec
    norm: float | None
    content_id: bytes


def save(db: Database, request: Request) -> Checkpoint:
    """Write a checkpoint and return it once it is durable."""
    return attempts(db, lambda writer: _Writing(db, request, writer).run())


class _Writing:
    """One attempt to write a checkpoint."""

    def __init__(self, db: Database, request: Request, writer: ContentWriter) -> None:
        self._db = db
        self._request = request
        self._writer = writer
        self._before: dict[str, Chain] = {}

    def run(self) -> Checkpoint:
        """Write all tensors, then commit."""
        self._before = self._fetch_before() if self._writer.sharing else {}
        groups = in_groups(self._request.leaves, lambda leaf: leaf.tensor.numel() * leaf.tensor.element_size())
        written = [each for group in groups for each in self._write(group)]
        document = self._write_document()
        self._db.payloads.flush()
        return self._commit(written, document)

    def _fetch_before(self) -> dict[str, Chain]:
        """Return what the tensors of the run's newest checkpoint are stored as."""
        with self._db.catalog.read() as con:
            run = checkpoints.run_named(con, self._request.facts.run)
            number = checkpoints.latest(con, run.run_id) if run else None
            return {} if number is None else checkpoints.chains(con, number)

    def _write(self, group: Sequence[Leaf]) -> list[_Tensor]:
        """Write the tensors of a group that are not stored yet."""
        norms: dict[int, float | None] = {}

        def measure(index: int, tensor: torch.Tensor) -> None:
            norms[index] = norm_of(tensor)

        contents = self._writer.write([self._content(leaf) for leaf in group], measure)
        return [
            _Tensor(leaf.name, tensors.spec_of(leaf.tensor), norms[index], contents[index])
            for index, leaf in enumerate(group)
        ]

    def _content(self, leaf: Leaf) -> Content:
        config, path = self._request.configs.of_tensor(leaf.name)
        return Content(leaf.tensor, config, path, repr(leaf.name), self._before.get(leaf.name))

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
            more = [document] if isinstance(document, Stored) else []
            ids = self._writer.name(con, Counter(each.content_id for each in written), more)
            run = checkpoints.run_named(con, facts.run) or checkpoints.add_run(con, facts.run)
            document_nbytes = document.encoded.nbytes if isinstance(document, Stored) else len(document)
            sizes = {each.content_id: self._writer.nbytes(each.content_id) for each in written}
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
                added_nbytes=self._writer.added_nbytes + document_nbytes,
            )
            number = checkpoints.add(con, new, self._rows(con, written, ids))
            return from_row(checkpoints.by_number(con, [number])[0])

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
