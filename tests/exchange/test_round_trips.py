"""What went out comes back: every dtype, shape, bit pattern and kind of metadata."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage.kept import Kept
from storage.tensors import DTYPES, sample

from tensordb import InvalidInputError, TensorStorage

from .conftest import assert_equal, out_of

LACKING = (torch.complex32, torch.complex128)
"""Dtypes that safetensors has no name for."""
SHAPES = [(), (0,), (2, 0, 3), (1,), (3, 2), (2, 1, 3)]
SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MOMENTS = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | MOMENTS
    | st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=st.just(dt.timezone(dt.timedelta(hours=2))))
    | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["a", "A", "loss", "tensor", "record_id", "created_at", "metadata.tensor", "tensordb.document"])
DOCUMENTS = st.none() | st.dictionaries(NAMES | st.text(max_size=3), VALUES, max_size=4)
TENSORS = st.builds(
    lambda dtype, shape, seed: sample(dtype, *shape, seed=seed),
    st.sampled_from(DTYPES),
    st.sampled_from(SHAPES),
    st.integers(0, 3),
)
RECORDS = st.lists(st.tuples(TENSORS, DOCUMENTS), min_size=1, max_size=6)


def filled(db: TensorStorage, records: list[tuple[torch.Tensor, dict[str, Any] | None]]) -> None:
    db.create_dataset("a")
    db.insert_many("a", [tensor for tensor, _ in records], [document for _, document in records])


@SETTINGS
@given(records=RECORDS, suffix=st.sampled_from([".parquet", ".arrow", ".safetensors"]))
def test_files_of_parquet_arrow_and_safetensors_bring_everything_back(kept: Kept, records: Any, suffix: str) -> None:
    if suffix == ".safetensors":
        records = [(tensor, each) for tensor, each in records if tensor.dtype not in LACKING]
    with tempfile.TemporaryDirectory() as folder, kept.lent("memory") as db:
        filled(db, records)
        path = out_of(db, "a").export(Path(folder) / f"out{suffix}")
        if suffix == ".safetensors":  # large elements come first there, and order is not kept
            names = {record.id: record for record in db.get_dataset_with_metadata("a")}
            db.import_from("b", path, record_id="name")
            db.create_dataset("c")
            for key, record in names.items():
                found = db.get_tensor_by_id("b", key)
                db.insert("c", found.tensor, found.metadata, record_id=key)
                # A record without metadata has the name alone, which became its id.
                assert found.metadata or not record.metadata
            assert_equal(db, "a", "c")
        else:
            db.import_from("b", path)
            assert_equal(db, "a", "b")


@SETTINGS
@given(records=RECORDS)
def test_exact_tables_in_memory_bring_everything_back(kept: Kept, records: Any) -> None:
    with kept.lent("memory") as db:
        filled(db, records)
        db.import_from("b", out_of(db, "a").to_arrow(exact=True))
        assert_equal(db, "a", "b")


ALIKE, MIXED = [(2, 3)] * 3, [(2,), (), (0, 3)]
OF_EACH_KIND = [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64, torch.int8, torch.bool]


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [
        *((shapes, dtype) for shapes in (ALIKE, MIXED) for dtype in DTYPES),
        *((shapes, dtype) for shapes in ([()] * 3, [(0,)] * 3) for dtype in OF_EACH_KIND),
    ],
    ids=str,
)
def test_tables_streams_and_frames_of_every_dtype(db: TensorStorage, dtype: torch.dtype, shapes: Any) -> None:
    filled(db, [(sample(dtype, *shape, seed=seed), {"n": seed}) for seed, shape in enumerate(shapes)])
    chosen = out_of(db, "a")
    db.import_from("table", chosen.to_arrow(["tensor", "n"]))
    db.import_from("stream", pa.RecordBatchReader.from_stream(chosen))
    db.import_from("pandas", chosen.to_pandas(["tensor", "n"]), tensor="tensor")
    for name in ("table", "stream", "pandas"):
        assert_equal(db, "a", name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_files_of_numpy_hold_what_numpy_has_dtypes_for(
    db: TensorStorage, dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    filled(db, [(sample(dtype, 2, 3, seed=seed), {"n": seed, "text": "x"}) for seed in range(4)])
    path = tmp_path / f"out{suffix}"
    if "float8" in str(dtype) or dtype in (torch.bfloat16, torch.complex32):
        with pytest.raises(InvalidInputError, match="NumPy has no"):
            out_of(db, "a").export(path)
        assert list(tmp_path.glob("*out*")) == []
        return
    out_of(db, "a").export(path)
    db.import_from("b", path, metadata=["n", "text"] if suffix == ".npz" else None)
    assert_equal(db, "a", "b", metadata=suffix == ".npz")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_every_nan_and_zero_keeps_its_bits(db: TensorStorage, tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    words = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16}[dtype]
    infinity = torch.tensor(torch.inf, dtype=dtype).view(words)
    nans = torch.stack([(infinity + n) ^ sign for n in range(1, 9) for sign in (0, torch.iinfo(words).min)])
    values = torch.cat([nans.view(dtype), torch.tensor([0.0, -0.0], dtype=dtype)]).repeat(4, 1)
    filled(db, [(row, None) for row in values])
    db.import_from("b", out_of(db, "a").export(tmp_path / f"x{suffix}", columns=["tensor"]))
    assert_equal(db, "a", "b", metadata=False)


def test_what_typed_columns_cannot_say_of_metadata_is_there_only_when_asked_for(db: TensorStorage) -> None:
    filled(db, [(torch.ones(2), {"a": 1, "b": None}), (torch.ones(2), {"a": 1.5}), (torch.ones(2), None)])
    plain = out_of(db, "a").to_arrow()
    assert plain.column_names == ["record_id", "tensor", "a"]
    db.import_from("b", plain)
    assert [record.metadata for record in db.get_dataset_with_metadata("b")] == [{"a": 1.0}, {"a": 1.5}, {"a": None}]
    db.import_from("c", out_of(db, "a").to_arrow(exact=True))
    assert_equal(db, "a", "c")


def test_a_column_that_was_changed_after_the_export_wins_over_the_exact_document(db: TensorStorage) -> None:
    filled(db, [(torch.ones(2), {"a": 1, "b": None}), (torch.ones(2), {"a": 2.5})])
    table = out_of(db, "a").to_arrow(exact=True)
    place = table.schema.get_field_index("a")
    db.import_from("b", table.set_column(place, "a", pa.array([7.0, 2.5])))
    assert [record.metadata for record in db.get_dataset_with_metadata("b")] == [{"a": 7.0}, {"a": 2.5}]
    db.import_from("c", table.drop_columns("a"))
    assert [record.metadata for record in db.get_dataset_with_metadata("c")] == [{}, {}]


def test_record_ids_come_back_when_they_are_asked_for(db: TensorStorage, tmp_path: Path) -> None:
    db.create_dataset("a")
    db.insert_many("a", torch.ones(3, 2), record_ids=["x", "../y", "ü"])
    path = out_of(db, "a").to_parquet(tmp_path / "a.parquet")
    assert db.import_from("b", path, record_id="record_id") == ["x", "../y", "ü"]
    assert db.import_from("c", path) != ["x", "../y", "ü"]
    assert all(not record.metadata for record in db.get_dataset_with_metadata("c"))
