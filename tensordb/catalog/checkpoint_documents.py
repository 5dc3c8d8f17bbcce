"""Documents of checkpoints that lie in their rows, each with a checksum among the facts of its checkpoint.

Documents that are objects have the checksums of payloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb
from blake3 import blake3

from tensordb.catalog import documents
from tensordb.errors import IntegrityError

CHECKSUM = "document"
"""Key of the checksum among the facts; checkpoints of earlier releases have none."""
_CHECKSUM_NBYTES = 16


class DocumentRow(NamedTuple):
    """A document with the checkpoint that it belongs to; `document` is None when it is missing."""

    number: int
    run: str
    step: int | None
    document: bytes | None
    facts: bytes


def checksum(document: bytes) -> str:
    """Return what tells a document from all others."""
    return blake3(document).hexdigest(_CHECKSUM_NBYTES)


def check(document: bytes | None, facts: bytes) -> bytes:
    """Return a document; raise IntegrityError when it is missing, or not the one that was saved with these facts."""
    if document is None:
        raise IntegrityError("it has no document in the catalog")
    expected = documents.unpack(facts).get(CHECKSUM)
    if expected is not None and checksum(document) != expected:
        raise IntegrityError("its document in the catalog is not what was saved: the checksum does not match")
    return document


def after(con: duckdb.DuckDBPyConnection, number: int, run_id: int | None, limit: int) -> Sequence[DocumentRow]:
    """Return the documents of the checkpoints that follow this number, of a run or of all, oldest first."""
    rows = con.execute(
        """
        SELECT c.number, r.name, c.step, c.document, c.facts
        FROM tensordb.checkpoints c JOIN tensordb.runs r USING (run_id)
        WHERE c.document_id IS NULL AND c.number > $1 AND ($2 IS NULL OR c.run_id = $2)
        ORDER BY c.number LIMIT $3""",
        [number, run_id, limit],
    )
    return [DocumentRow(*row) for row in rows.fetchall()]
