"""A SQLite file whose rows hold safetensors bytes beside typed metadata columns."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from peers.base import Metadata, Store

SCHEMA = "CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, token INT, split TEXT, score REAL, payload BLOB)"
INSERT = "INSERT INTO records (token, split, score, payload) VALUES (?, ?, ?, ?)"


class SQLiteRows(Store):
    """One table keyed by SQLite's row id, its fastest key; WAL mode, a 64 MB page cache."""

    name = "sqlite"
    package = "sqlite3"
    import_statement = "import sqlite3, safetensors.torch"
    durability = "WAL with synchronous=FULL: fsync at each commit"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        path.mkdir(exist_ok=True)
        self._con = sqlite3.connect(path / "records.sqlite")
        self._con.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-64000;" + SCHEMA)

    def insert_many(self, tensors: Tensor | Iterable[Tensor], metadata: Sequence[Metadata]) -> list[str]:
        """Insert with one `executemany` in one transaction."""
        first = self._con.execute("SELECT coalesce(max(id), 0) + 1 FROM records").fetchone()[0]
        with self._con:
            self._con.executemany(INSERT, _rows(tensors, metadata))
        return [str(first + number) for number in range(len(metadata))]

    def insert(self, tensor: Tensor, metadata: Metadata) -> str:
        """Insert one row in a transaction of its own."""
        with self._con:
            return str(self._con.execute(INSERT, _row(tensor, metadata)).lastrowid)

    def get(self, record_id: str) -> Tensor:
        """Return one row's tensor."""
        return _decode(self._con.execute("SELECT payload FROM records WHERE id = ?", (int(record_id),)).fetchone()[0])

    def get_many(self, record_ids: Sequence[str]) -> list[Tensor]:
        """Return rows with one `IN` list."""
        marks = ",".join("?" * len(record_ids))
        rows = self._con.execute(f"SELECT id, payload FROM records WHERE id IN ({marks})", [int(i) for i in record_ids])
        found = {row_id: _decode(payload) for row_id, payload in rows}
        return [found[int(record_id)] for record_id in record_ids]

    def page(self, offset: int, limit: int) -> list[Tensor]:
        """Return a page in key order."""
        return self._tensors("SELECT payload FROM records ORDER BY id LIMIT ? OFFSET ?", (limit, offset))

    def count_below(self, score: float) -> int:
        """Count by a scan; no index exists on the field."""
        return int(self._con.execute("SELECT count(*) FROM records WHERE score < ?", (score,)).fetchone()[0])

    def query_below(self, score: float) -> list[Tensor]:
        """Select by a scan; no index exists on the field."""
        return self._tensors("SELECT payload FROM records WHERE score < ?", (score,))

    def close(self) -> None:
        """Close the file, which folds the WAL into it."""
        self._con.close()

    def _tensors(self, query: str, parameters: tuple[float, ...]) -> list[Tensor]:
        return [_decode(payload) for (payload,) in self._con.execute(query, parameters)]


def _rows(tensors: Tensor | Iterable[Tensor], metadata: Sequence[Metadata]) -> Iterator[tuple[object, ...]]:
    return (_row(tensor, fields) for tensor, fields in zip(tensors, metadata, strict=True))


def _row(tensor: Tensor, fields: Metadata) -> tuple[object, ...]:
    return fields["token"], fields["split"], fields["score"], save({"tensor": tensor})


def _decode(payload: bytes) -> Tensor:
    # safetensors.torch.load copies a large payload twice; reading the header by hand copies it once.
    start = 8 + int.from_bytes(payload[:8], "little")
    shape = json.loads(payload[8:start])["tensor"]["shape"]
    return torch.frombuffer(bytearray(memoryview(payload)[start:]), dtype=torch.float32).view(shape)
