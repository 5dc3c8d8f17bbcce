"""Whatever bytes the catalog holds for metadata, reading them gives a document or an IntegrityError."""

from __future__ import annotations

from .documents_fuzzer import fuzz


def test_damaged_and_forged_documents_are_documents_or_integrity_errors() -> None:
    found = fuzz(20_000, seed=3)
    assert 100 < found["documents"] < found["inputs"]
