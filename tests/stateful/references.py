"""What the catalog counts as references against what there is: the two may never differ."""

from __future__ import annotations

from collections import Counter

from tensordb import TensorStorage

_REFERENCES = """
    SELECT object_id FROM tensordb.checkpoint_tensors
    UNION ALL SELECT document_id FROM tensordb.checkpoints WHERE document_id IS NOT NULL
    UNION ALL SELECT base_id FROM tensordb.deltas
    UNION ALL SELECT object_id FROM tensordb.weights"""


def assert_every_reference_is_counted(db: TensorStorage) -> None:
    """Check that each object's count is the number of rows that name it, and that what is named exists."""
    with db._db.catalog.read() as con:
        counted = dict(con.execute("SELECT object_id, refs FROM tensordb.objects").fetchall())
        tables = con.execute(
            "SELECT table_name FROM duckdb_columns() WHERE schema_name = 'tensordb' "
            "AND table_name LIKE 'records%' AND column_name = 'object_id'"
        ).fetchall()
        found = _REFERENCES + "".join(
            f" UNION ALL SELECT object_id FROM tensordb.{table} WHERE object_id IS NOT NULL AND payload IS NULL"
            for (table,) in tables
        )
        named = Counter(object_id for (object_id,) in con.execute(found).fetchall())
    assert counted == dict(named)


def assert_nothing_is_left(db: TensorStorage) -> None:
    """Check that a database of which everything was deleted names nothing any more, and keeps no segment."""
    tables = ("objects", "deltas", "checkpoints", "checkpoint_tensors", "tags", "runs", "weights", "weight_labels")
    for table in tables:
        assert db.sql(f"SELECT count(*) AS n FROM tensordb.{table}").to_pylist() == [{"n": 0}], table
    db.maintenance.compact(min_dead=0)
    if db._db.folder is not None:
        assert list(db._db.folder.glob("segments/*")) == []
