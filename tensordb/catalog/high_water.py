"""The largest numbers of what was deleted, so that no number, and no id made of it, is given twice.

Numbers are times, so that this matters only after the clock was set back. Only what had the largest number of all is
noted: as long as there is a larger one, the next is larger still. Notes are rows of `tensordb.info`, which every format
has.
"""

from __future__ import annotations

import duckdb

from tensordb.catalog.rows import first, run

CHECKPOINTS = "last_checkpoint"
"""Key of the numbers of checkpoints."""


def of_dataset(dataset_id: int) -> str:
    """Return the key of the sequence numbers of a dataset."""
    return f"last_record_{dataset_id}"


def note(con: duckdb.DuckDBPyConnection, key: str, number: int) -> None:
    """Note the largest number there is, in the write block that deletes what has it."""
    run(con, "INSERT OR REPLACE INTO tensordb.info VALUES (?, ?)", [key, str(number)])


def above(con: duckdb.DuckDBPyConnection, key: str, number: int | None) -> int | None:
    """Return the largest number that was ever given; `number` is the largest there is now, None when there is none."""
    # What is no number, or none that fits an id's 13 digits, is damage, which must not keep anybody from writing.
    text = "SELECT try_cast(value AS BIGINT) AS noted FROM tensordb.info WHERE name = ? AND noted BETWEEN 0 AND ?"
    found = first(run(con, text, [key, (1 << 52) - 1]))
    if found is None:
        return number
    noted: int = found[0]
    return noted if number is None else max(number, noted)


def forget(con: duckdb.DuckDBPyConnection, key: str) -> None:
    """Drop a note, as its dataset is deleted."""
    run(con, "DELETE FROM tensordb.info WHERE name = ?", [key])
