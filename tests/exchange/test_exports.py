"""What leaves a dataset: its columns, its order, its bounds, and files that are there whole or not at all."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from storage.tensors import sample

from tensordb import AlreadyExistsError, ConflictError, InvalidInputError, InvalidQueryError, TensorStorage
from tensordb.exchange import selecting

from .conftest import out_of

X = torch.arange(30, dtype=torch.float32).reshape(5, 3, 2)


@pytest.fixture
def data(db: TensorStorage) -> TensorStorage:
    """Five records in `data`, with metadata of several kinds."""
    db.create_dataset("data")
    rows = [
        {
            "n": n,
            "name": f"r{n}",
            "at": dt.datetime(2024, 1, 1 + n),
            "lr": {"base": n / 2, "tags": ["a"] * n},
            "tensor": n,
        }
        for n in range(5)
    ]
    db.insert_many("data", X, rows, record_ids=[f"id{n}" for n in range(5)])
    return db


def test_a_table_has_the_id_the_tensor_and_every_field(data: TensorStorage) -> None:
    table = out_of(data, "data").to_arrow()
    assert table.column_names == ["record_id", "tensor", "n", "name", "at", "lr", "metadata.tensor"]
    assert table.schema.field("tensor").type == pa.fixed_shape_tensor(pa.float32(), [3, 2])
    assert np.array_equal(table.column("tensor").combine_chunks().to_numpy_ndarray(), X.numpy())
    assert table.column("record_id").to_pylist() == [f"id{n}" for n in range(5)]
    assert table.column("lr").to_pylist()[2] == {"base": 1.0, "tags": ["a", "a"]}
    assert table.column("metadata.tensor").to_pylist() == list(range(5))


def test_columns_are_chosen_by_name_with_dots_for_nested_fields(data: TensorStorage) -> None:
    names = ["lr.base", "metadata.tensor", "N", "record_id", "created_at", "metadata.lr.tags"]
    table = out_of(data, "data", "metadata.n > 2", order_by="metadata.n DESC").to_arrow(names)
    assert table.column_names == names
    rows = [tuple(row[name] for name in names if name != "created_at") for row in table.to_pylist()]
    assert rows == [(2.0, 4, 4, "id4", ["a"] * 4), (1.5, 3, 3, "id3", ["a"] * 3)]
    assert table.schema.field("created_at").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("columns", "named"),
    [(["nowhere"], "no column 'nowhere'; it has"), ([], "at least one"), (["n", "n"], "once"), ([3], "3")],
)
def test_columns_that_are_not_there_are_named(data: TensorStorage, columns: Any, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        out_of(data, "data").to_arrow(columns)
    with pytest.raises(InvalidQueryError, match="nowhere"):
        out_of(data, "data", "metadata.nowhere = 1").to_arrow()


def test_frames_of_pandas_and_polars_hold_the_tensors_in_their_shapes(data: TensorStorage) -> None:
    frame = out_of(data, "data").to_pandas()
    assert list(frame.columns) == out_of(data, "data").to_arrow().column_names
    assert all(np.array_equal(cell, row) for cell, row in zip(frame["tensor"], X.numpy(), strict=True))
    assert frame["n"].tolist() == list(range(5))
    table = out_of(data, "data").to_polars()
    assert table.schema["tensor"] == pl.Array(pl.Float32, (3, 2))
    assert np.array_equal(table["tensor"].to_numpy(), X.numpy())


def test_the_stream_of_arrow_is_read_by_others_without_a_copy_of_the_whole(data: TensorStorage) -> None:
    chosen = out_of(data, "data", "metadata.n < 3")
    assert pl.DataFrame(chosen)["n"].to_list() == [0, 1, 2]
    assert duckdb.sql("SELECT sum(n), max(len(tensor)) FROM chosen").fetchall() == [(3, 6)]
    assert pa.table(chosen).num_rows == 3


def test_arrays_are_stacked_or_refused_with_the_shapes(data: TensorStorage) -> None:
    stack = out_of(data, "data").to_numpy()
    assert stack.dtype == np.float32
    assert np.array_equal(stack, X.numpy())
    data.insert("data", torch.ones(4, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match=r"float32\[3, 2\].*int64\[4\]"):
        out_of(data, "data").to_numpy()
    assert np.array_equal(out_of(data, "data", "dtype = 'int64'").to_numpy(), np.ones((1, 4)))
    with pytest.raises(InvalidInputError, match="no record"):
        out_of(data, "data", "false").to_numpy()


def test_files_are_read_by_their_own_libraries(data: TensorStorage, tmp_path: Path) -> None:
    chosen = out_of(data, "data")
    parquet = pq.read_table(chosen.to_parquet(tmp_path / "x.parquet"))
    assert np.array_equal(parquet.column("tensor").combine_chunks().to_numpy_ndarray(), X.numpy())
    assert pl.read_parquet(tmp_path / "x.parquet", columns=["n"])["n"].to_list() == list(range(5))
    found = duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/x.parquet' WHERE lr.base >= 1").fetchall()
    assert found == [(3,)]
    assert pa.ipc.open_file(chosen.export(tmp_path / "x.arrow")).read_all().num_rows == 5
    assert np.array_equal(np.load(chosen.export(tmp_path / "x.npy"), allow_pickle=False), X.numpy())
    arrays = np.load(chosen.export(tmp_path / "x.npz", columns=["tensor", "name", "at", "lr.base"]), allow_pickle=False)
    assert np.array_equal(arrays["tensor"], X.numpy())
    assert arrays["name"].tolist() == [f"r{n}" for n in range(5)]
    assert arrays["at"][1] == np.datetime64("2024-01-02")
    tensors = load_file(chosen.export(tmp_path / "x.safetensors"))
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {f"id{n}": X[n].tolist() for n in range(5)}


@pytest.mark.parametrize(
    ("name", "columns", "named"),
    [
        ("x.npz", None, r"metadata\.lr holds lists"),
        ("x.npz", ["tensor", "some"], r"metadata\.some is missing or None in 5"),
        ("x.npy", ["tensor", "n"], "tensors alone"),
        ("x.zip", None, "does not say its format"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(
    data: TensorStorage, tmp_path: Path, name: str, columns: Any, named: str
) -> None:
    data.insert("data", X[0], {"some": 1, "n": 1, "name": "x", "at": dt.datetime(2024, 1, 1), "lr": {}, "tensor": 1})
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidInputError, match=named):
        out_of(data, "data").export(tmp_path / "out" / name, columns=columns)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(data: TensorStorage, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_text("mine")
    with pytest.raises(AlreadyExistsError, match=r"x\.npy"):
        out_of(data, "data").export(path)
    assert path.read_text() == "mine"
    out_of(data, "data").export(path, overwrite=True)
    assert np.load(path).shape == (5, 3, 2)
    with pytest.raises(AlreadyExistsError, match="new folder"):
        out_of(data, "data").export(tmp_path, format="images", overwrite=True)


@pytest.mark.parametrize("path", ["", ".", "..", "/", "a\0.npy", "a\0/x.npy"])
def test_what_is_no_name_of_a_file_is_bad_input_and_no_damage(data: TensorStorage, path: str) -> None:
    with pytest.raises(InvalidInputError, match="no name of a file"):
        out_of(data, "data").export(path, format="npy")


def test_pictures_whose_ids_and_labels_are_dots_come_in_again(db: TensorStorage, tmp_path: Path) -> None:
    ids = [".", "..", "...", ".a", "a."]
    pictures = torch.arange(5, dtype=torch.uint8).repeat_interleave(12).reshape(5, 3, 2, 2)
    db.create_dataset("data")
    db.insert_many("data", pictures, [{"label": each} for each in ids], record_ids=ids)
    out_of(db, "data").export(tmp_path / "out", format="images")
    db.import_from("again", tmp_path / "out")
    assert {each.tensor[0, 0, 0].item() for each in db.query("again")} == set(range(5))


def test_a_pipe_or_a_device_is_never_replaced_by_a_file(data: TensorStorage, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npy"
    os.mkfifo(pipe)
    link = tmp_path / "link.npy"
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(AlreadyExistsError, match="no file"):
            out_of(data, "data").export(path, overwrite=True)
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_records_deleted_meanwhile_are_an_error_and_no_file_that_lacks_them(
    data: TensorStorage, tmp_path: Path
) -> None:
    selected = selecting.select(data._db, "data", out_of(data, "data")._selection())
    data.delete_tensor("data", "id3")
    with pytest.raises(ConflictError, match="1 of the 5 records"):
        list(selected.parts())
    assert out_of(data, "data").to_numpy().shape == (4, 3, 2)


def test_an_empty_selection_makes_empty_tables_and_files(data: TensorStorage, tmp_path: Path) -> None:
    chosen = out_of(data, "data", "metadata.n > 99")
    assert chosen.to_arrow().num_rows == len(chosen.to_pandas()) == len(chosen.to_polars()) == 0
    for name in ("x.parquet", "x.arrow", "x.safetensors"):
        assert data.import_from(f"from {name}", chosen.export(tmp_path / name)) == []


def test_record_batches_are_bounded_in_bytes_and_not_in_rows(db: TensorStorage) -> None:
    db.create_dataset("data")
    db.insert_many("data", torch.zeros(30, 1 << 20))
    db.insert_many("data", torch.zeros(30_000, 4))
    sizes = [batch.nbytes for batch in pa.RecordBatchReader.from_stream(out_of(db, "data"))]
    assert max(sizes) < 64 << 20
    assert len(sizes) < 12


def test_pictures_come_out_as_png_in_folders_of_their_labels_and_in_again(db: TensorStorage, tmp_path: Path) -> None:
    db.create_dataset("data")
    pictures = [
        sample(torch.uint8, *shape, seed=seed)
        for seed, shape in enumerate([(3, 4, 5), (1, 4, 5), (4, 2, 2), (3, 1, 1)])
    ]
    labels = ["cat", "../up", ".", "a/b"]
    db.insert_many(
        "data", pictures, [{"label": each, "n": 1} for each in labels], record_ids=["a", "../../b", "ü c", "d"]
    )
    db.insert("data", sample(torch.uint16, 1, 3, 3), {"n": float("nan")}, record_id="e")
    folder = out_of(db, "data").export(tmp_path / "pictures", format="images")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert len(files) == 5
    assert all(each.startswith("pictures/") and each.count("/") <= 2 for each in files)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [each["label"] for each in lines] == [*labels, None]
    with Image.open(folder / lines[0]["file_name"]) as picture:
        assert np.array_equal(np.array(picture), pictures[0].permute(1, 2, 0).numpy())
    db.import_from("again", folder, record_id="path")
    for line, record in zip(lines, db.get_dataset_with_metadata("data"), strict=True):
        assert torch.equal(db.get_tensor_by_id("again", line["file_name"]).tensor, record.tensor)


@pytest.mark.parametrize(
    "tensor", [torch.rand(3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(3, 0, 4).byte()]
)
def test_what_is_no_picture_is_named_and_no_folder_is_left(
    db: TensorStorage, tmp_path: Path, tensor: torch.Tensor
) -> None:
    db.create_dataset("data")
    db.insert("data", torch.zeros(3, 4, 4, dtype=torch.uint8))
    db.insert("data", tensor, record_id="odd one")
    with pytest.raises(InvalidInputError, match="'odd one'"):
        out_of(db, "data").export(tmp_path / "out", format="images")
    assert list(tmp_path.iterdir()) == []
