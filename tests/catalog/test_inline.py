"""Payloads in records' rows are given up by the record that holds them, and by no other."""

import torch

from tensordb import TensorStorage
from tensordb.catalog import inline


def test_a_record_that_took_the_number_of_a_deleted_one_keeps_its_payload() -> None:
    with TensorStorage(None) as storage:
        storage.create_dataset("d")
        storage.insert("d", torch.arange(3.0))
        db = storage._db
        with db.catalog.read() as con:
            row = db.catalog.known.dataset(con, "d")
            (held,) = inline.rows_of(con, row)
        with db.catalog.write("testing") as con:
            assert inline.take_out(con, row, [(held.seq, bytes(16)), (held.seq + 1, held.object_id)]) == set()
            assert inline.rows_of(con, row) == [held]
            assert inline.take_out(con, row, [(held.seq, held.object_id)]) == {held.seq}
            assert inline.rows_of(con, row) == []
