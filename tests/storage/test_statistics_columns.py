"""`stats`: what a record's values are, known to SQL without reading a payload."""

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch

from tensordb import TensorStorage
from tests.storage.tensors import DTYPES, sample

FIELDS = ["min", "max", "mean", "std", "norm", "zeros", "non_finite"]


def stats(db: TensorStorage, record_id: str) -> dict[str, Any]:
    """Return a record's statistics."""
    found: dict[str, Any] = db.sql("SELECT stats FROM data WHERE record_id = ?", [record_id]).to_pylist()[0]["stats"]
    return found


def test_records_are_found_by_what_their_values_are(data: TensorStorage) -> None:
    calm = data.insert_many("data", torch.full((20, 5), 0.5), [{"layer": n} for n in range(20)])
    exploded = data.insert("data", torch.tensor([3e8, 4e8]), {"layer": 20})
    broken = data.insert("data", torch.tensor([1.0, math.nan, math.inf]), {"layer": 21})
    assert [each.id for each in data.query("data", "stats.norm > 100")] == [exploded]
    assert [each.id for each in data.query("data", "stats.non_finite > ?", params=[0])] == [broken]
    assert [each.id for each in data.query("data", order_by="stats.max DESC", limit=2)] == [exploded, broken]
    assert data.count("data", "stats.std = 0 AND metadata.layer < 5") == 5
    assert data.sql("SELECT avg(stats.mean) AS m FROM data WHERE stats.norm < 2").column("m").to_pylist() == [
        pytest.approx((20 * 0.5 + 1) / 21)
    ]
    assert data.delete_where("data", "stats.max = 0.5") == len(calm)


def test_each_record_has_its_own_however_it_was_inserted(data: TensorStorage) -> None:
    pages = torch.randn(3000, 11, generator=torch.Generator().manual_seed(0))
    mixed = [pages[0], pages[:3], torch.empty(0, 4), torch.tensor(7), pages[1], torch.tensor([True, False, True])]
    ids = [
        *data.insert_many("data", pages),
        *data.insert_many("data", iter(mixed)),
        *(data.insert("data", each) for each in mixed),
    ]
    rows = data.sql("SELECT record_id, stats FROM data").to_pylist()
    known = {row["record_id"]: row["stats"] for row in rows}
    for record_id, tensor in zip(ids, [*pages, *mixed, *mixed], strict=True):
        mine, values = known[record_id], tensor.double().numpy()
        assert list(mine) == FIELDS
        assert mine["norm"] == pytest.approx(np.linalg.norm(values))
        assert mine["zeros"] == (values == 0).sum()
        assert mine["non_finite"] == 0
        expected = (values.min(), values.max(), values.mean(), values.std()) if values.size else (None,) * 4
        assert tuple(mine.values())[:4] == pytest.approx(expected)


@pytest.mark.parametrize("preset", ["lossless", "q4"])
def test_every_dtype_has_those_of_the_values_given_and_not_of_the_quantized_ones(
    data: TensorStorage, preset: str
) -> None:
    data.set_compression_preset(preset)
    tensors = [sample(dtype, 16, 100) for dtype in DTYPES]
    ids = [(data.insert("data", tensor), *data.insert_many("data", tensor[:1])) for tensor in tensors]
    known = {each["record_id"]: each["stats"] for each in data.sql("SELECT record_id, stats FROM data").to_pylist()}
    for tensor, (whole, row) in zip(tensors, [(known[a], known[b]) for a, b in ids], strict=True):
        assert row["non_finite"] + row["zeros"] <= 100
        given = torch.view_as_complex(torch.view_as_real(tensor).float()) if tensor.dtype == torch.complex32 else tensor
        values = (given.abs() if given.is_complex() else given.double()).double().numpy()
        finite = values[np.isfinite(values)]
        assert whole["min"] == pytest.approx(finite.min()), tensor.dtype
        assert whole["max"] == pytest.approx(finite.max()), tensor.dtype
        assert whole["zeros"] == (values == 0).sum(), tensor.dtype
        assert whole["non_finite"] == values.size - finite.size, tensor.dtype


def test_nothing_finite_is_no_value_and_not_zero(data: TensorStorage) -> None:
    for tensor in (torch.tensor([math.nan, -math.inf]), torch.empty(3, 0), torch.tensor(math.nan)):
        found = stats(data, data.insert("data", tensor))
        assert [found[name] for name in FIELDS[:4]] == [None] * 4
        assert found["norm"] == 0
        assert found["non_finite"] == tensor.numel()


def test_they_stay_when_metadata_changes_and_widens(data: TensorStorage) -> None:
    key = data.insert("data", torch.tensor([1.0, 2.0]))
    before = stats(data, key)
    data.update_tensor_metadata("data", key, {"a": 1})
    data.insert("data", torch.zeros(2), {"a": "text", "b": {"c": 1.5}})
    data.insert_many("data", torch.zeros(3, 2), [{"a": n} for n in range(3)])
    data.maintenance.compact()
    assert stats(data, key) == before
    assert data.count("data", "stats.zeros = 2") == 4


def test_a_database_of_an_earlier_release_is_upgraded_and_its_records_have_none(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        for name in ("with fields", "without"):
            db.create_dataset(name)
        old = db.insert("with fields", torch.ones(3), {"a": 1})
        db.insert("without", torch.ones(3))
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:
        for number, name in ((1, "with fields"), (2, "without")):
            con.execute(f'DROP VIEW "{name}"')
            con.execute(f"ALTER TABLE tensordb.records_{number} DROP COLUMN stats")
        con.execute("ALTER TABLE tensordb.datasets DROP COLUMN indexes")
        con.execute("DROP TABLE tensordb.damaged")
        con.execute("UPDATE tensordb.info SET value = '3' WHERE name = 'format'")
    with TensorStorage(tmp_path) as db:
        new = db.insert("with fields", torch.full((3,), 2.0), {"a": 2, "b": "more"})
        db.insert_many("with fields", torch.ones(5, 3), [{"a": n} for n in range(5)])
        db.insert("without", torch.ones(3), {"first": 1})
        rows = db.sql('SELECT record_id, stats, metadata.a AS a FROM "with fields" ORDER BY created_at').to_pylist()
        assert [row["record_id"] for row in rows][:2] == [old, new]
        assert rows[0]["stats"] is None
        assert rows[1]["stats"]["mean"] == 2.0
        assert [row["a"] for row in rows] == [1, 2, 0, 1, 2, 3, 4]
        assert [each.id for each in db.query("with fields", "stats.max > 1")] == [new]
        assert db.count("without", "stats IS NULL") == 1
