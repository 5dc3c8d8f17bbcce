"""import_from: what each kind of source becomes, all of it or nothing."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Array2D, Dataset
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tensordb import AlreadyExistsError, InvalidInputError, ReadOnlyError, SchemaValidationError, TensorStorage

X = np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
LABELS = list("abcde")


class Numbers(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ({"x": row, "label": label} for row, label in zip(X, LABELS, strict=True))


class Endless(torch.utils.data.Dataset[Any]):
    """A map-style dataset that does not say by IndexError where it ends."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, place: int) -> Any:
        return torch.from_numpy(X[place % 5]), LABELS[place % 5]


def table() -> pa.Table:
    return pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(X), "label": LABELS})


LABELLED: dict[str, Callable[[], Any]] = {
    "a dict of arrays": lambda: {"x": X, "label": np.array(LABELS)},
    "a dict of tensors and lists": lambda: {"x": torch.from_numpy(X), "label": LABELS},
    "a table": table,
    "a record batch": lambda: table().to_batches()[0],
    "a reader": lambda: table().to_reader(2),
    "a dataset of Arrow": lambda: pyarrow.dataset.dataset(table()),
    "nested lists": lambda: pa.table({"x": pa.array(X.tolist(), pa.list_(pa.list_(pa.float32()))), "label": LABELS}),
    "large lists": lambda: table().set_column(0, "x", pa.array(X.tolist(), pa.large_list(pa.list_(pa.float32(), 2)))),
    "polars": lambda: pl.DataFrame({"x": X, "label": LABELS}),
    "pandas with arrays": lambda: pd.DataFrame({"x": list(X), "label": LABELS}, index=list("vwxyz")),
    "a relation of DuckDB": lambda: duckdb.from_arrow(pl.DataFrame({"x": X, "label": LABELS}).to_arrow()),
    "Hugging Face": lambda: Dataset.from_dict({"x": X, "label": LABELS}).cast_column("x", Array2D((3, 2), "float32")),
    "structs of Arrow": lambda: table().to_struct_array().combine_chunks(),
    "pairs": lambda: list(zip(torch.from_numpy(X), LABELS, strict=True)),
    "pairs with metadata": lambda: ((row, {"label": label}) for row, label in zip(X, LABELS, strict=True)),
    "dicts": lambda: iter([{"x": row, "label": label} for row, label in zip(X, LABELS, strict=True)]),
    "an IterableDataset": Numbers,
    "a map-style Dataset": Endless,
}


@pytest.fixture(params=LABELLED, ids=str)
def source(request: pytest.FixtureRequest) -> Any:
    return LABELLED[request.param]()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensors_with_labels_come_in_from(db: TensorStorage, source: Any) -> None:
    ids = db.import_from("data", source)
    found = db.get_many("data", ids)
    assert np.array_equal(np.stack([record.tensor.numpy() for record in found]), X)
    assert [record.metadata for record in found] == [{"label": label} for label in LABELS]
    assert db.count("data", "metadata.label = 'c'") == 1


@pytest.mark.parametrize(
    "stack",
    [X, torch.from_numpy(X), np.asfortranarray(X), X.astype(">f4"), pa.array(np.zeros(3)).to_numpy(), X[::2, ::-1]],
    ids=["array", "tensor", "fortran", "big-endian", "read-only", "strided"],
)
def test_a_stack_comes_in_row_by_row_with_metadata_beside_it(db: TensorStorage, stack: Any) -> None:
    rows = [{"n": number} for number in range(len(stack))]
    db.import_from("data", stack, metadata=rows, record_id=None)
    found = db.get_dataset_with_metadata("data")
    expected = (
        stack
        if isinstance(stack, torch.Tensor)
        else torch.from_numpy(stack.astype(stack.dtype.newbyteorder("=")).copy())
    )
    assert torch.equal(torch.stack([record.tensor for record in found]), expected)
    assert [record.metadata for record in found] == rows


@pytest.mark.parametrize(
    "column", [pa.array([[1.0], [2.0]]), pa.chunked_array([[[1.0]], [[2.0]]]), pl.Series([[1.0], [2.0]])]
)
def test_one_column_of_arrow_comes_in_by_itself(db: TensorStorage, column: Any) -> None:
    db.import_from("data", column)
    assert [tensor.tolist() for tensor in db.get_dataset("data")] == [[1.0], [2.0]]


def test_to_import_tensordb_loads_nothing_that_only_an_exchange_needs() -> None:
    names = ["pyarrow", "PIL", "pandas", "polars", "datasets"]
    program = f"import sys, tensordb; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_anything_that_speaks_dlpack_or_the_array_interface_is_a_tensor(db: TensorStorage) -> None:
    class OnlyDlpack:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    db.create_dataset("data")
    for given in (X, OnlyDlpack(X.copy()), np.float32(3), np.zeros((0, 2)), X[::-1], memory_of(X)):
        key = db.insert("data", given)
        expected = torch.from_numpy(np.array(given.array if isinstance(given, OnlyDlpack) else given))
        assert torch.equal(db.get_tensor_by_id("data", key).tensor, expected)
    assert len(db.insert_many("data", X)) == len(db.insert_many("data", OnlyDlpack(X.copy()))) == 5
    assert len(db.insert_many("data", list(X))) == 5
    assert len(db.import_from("data", OnlyDlpack(X.copy()))) == 5


def memory_of(array: Any) -> Any:
    class OnlyInterface:
        __array_interface__ = array.__array_interface__
        kept = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return array

    return OnlyInterface()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (np.array(["a"]), "<U1"),
        (np.array([object()]), "object"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.zeros(2, [("a", "f4")]), "f4"),
        (np.ma.masked_array([1.0], [True]), "masked"),
        ([1.0, 2.0], "as_tensor"),
    ],
)
def test_arrays_that_hold_no_numbers_are_refused_by_name(db: TensorStorage, given: Any, named: str) -> None:
    db.create_dataset("data")
    with pytest.raises(InvalidInputError, match=named):
        db.insert("data", given)


def test_a_column_of_whole_numbers_or_texts_becomes_the_record_ids(db: TensorStorage) -> None:
    assert db.import_from("a", {"x": X, "key": list(range(5))}, record_id="key") == list("01234")
    assert db.import_from("b", table(), record_id="label") == LABELS
    assert db.import_from("c", X, metadata=[{"key": each} for each in LABELS], record_id="key") == LABELS
    assert all(record.metadata == {} for record in db.get_dataset_with_metadata("c"))
    with pytest.raises(AlreadyExistsError, match="'a'"):
        db.import_from("b", table(), record_id="label")
    with pytest.raises(AlreadyExistsError, match="twice"):
        db.import_from("d", {"x": X, "key": ["k"] * 5}, record_id="key")
    assert not db.dataset_exists("d")


def test_only_the_columns_that_are_named_become_metadata(db: TensorStorage) -> None:
    wide = table().append_column("n", pa.array(range(5))).append_column("box", pa.array([[1, 2]] * 5))
    db.import_from("a", wide, tensor="x", metadata=["n"])
    assert db.get_dataset_with_metadata("a")[4].metadata == {"n": 4}
    db.import_from("b", wide, metadata=["box"])  # then x alone is left to be the tensor
    assert db.get_dataset_with_metadata("b")[0].metadata == {"box": [1, 2]}
    db.import_from("c", wide, tensor="n", metadata=[])
    assert [tensor.item() for tensor in db.get_dataset("c")] == [0, 1, 2, 3, 4]


def test_nulls_dates_lists_and_structs_become_metadata_that_sql_can_ask(db: TensorStorage) -> None:
    moment = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
    rows = {"x": X, "at": [moment, None, None, None, None], "tags": [["a"], [], None, ["b", None], ["c"]],
            "point": [{"lat": 1.5, "lon": None}] * 5}  # fmt: skip
    db.import_from("data", pa.table({**rows, "x": table().column("x")}))
    first = db.get_dataset_with_metadata("data")[0]
    assert first.metadata == {"at": moment, "tags": ["a"], "point": {"lat": 1.5, "lon": None}}
    assert db.count("data", "metadata.point.lat > 1 AND metadata.at IS NULL") == 4


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        (pa.table({"a": [[1.0]], "b": [[2.0]]}), {}, "several columns.*'a', 'b'.*tensor="),
        (pa.table({"a": [1], "b": ["x"]}), {}, "no column of tensors.*'a', 'b'"),
        (table(), {"tensor": "y"}, "no column 'y'; it has 'x', 'label'"),
        (table(), {"tensor": "label"}, "holds string"),
        (table(), {"tensor": "x", "record_id": "x"}, "is the tensor"),
        (table(), {"metadata": "label"}, r"\['label'\]"),
        (pa.Table.from_arrays([pa.array([[1.0]])] * 2, ["a", "a"]), {}, "two columns named 'a'"),
        (pa.table({"x": [[1.0], None, [2.0]]}), {}, "null in row 1"),
        (pa.table({"x": [[1.0], [None]]}), {}, "null elements"),
        (pa.table({"x": [[[1, 2], [3]]]}), {}, "row 0.*different lengths"),
        ({"x": X, "n": [1, 2]}, {}, "'n' of the dict has 2 rows.*5"),
        ({"x": X, "n": np.array(1.0)}, {}, "0-d"),
        ({}, {}, "no column of tensors"),
        (X, {"tensor": "x"}, "no columns"),
        (X, {"metadata": [{}]}, "fewer rows"),
        (X, {"metadata": [{}] * 6}, "more rows"),
        (np.array(1.0), {}, "0-d"),
        ([torch.ones(2), "text"], {}, "item 1 is a str"),
        ([(torch.ones(2), 1), torch.ones(2)], {}, "item 1"),
        ([(torch.ones(2), 1, 2)], {}, "item 0 has 3 parts"),
        ([{"x": X[0]}, {"y": X[0]}], {}, "item 1 has no 'x'"),
        ([(torch.ones(2), torch.ones(3))], {}, "label"),
        (DataLoader(TensorDataset(torch.ones(2, 2))), {}, "DataLoader"),
        (17, {}, "int cannot be imported"),
        (X, {"format": "npy"}, "no path"),
        (X, {"preset": 3}, "preset is a int"),
    ],
)
def test_what_is_not_clear_is_an_error_that_says_so_and_nothing_is_inserted(
    db: TensorStorage, source: Any, options: Any, named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        db.import_from("data", source, **options)
    assert not db.dataset_exists("data")


def test_an_error_late_in_a_stream_leaves_the_dataset_as_it_was(db: TensorStorage) -> None:
    db.import_from("data", X)

    def breaking() -> Iterator[Any]:
        yield from X
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        db.import_from("data", breaking())
    with pytest.raises(RuntimeError, match="the source broke"):
        db.import_from("new", breaking())
    assert db.count("data") == 5
    assert db.list_datasets() == ["data"]
    assert not db.verify().damaged


def test_a_dataset_is_made_with_the_records_unless_that_is_not_wanted(db: TensorStorage) -> None:
    with pytest.raises(ValueError, match="no dataset"):
        db.import_from("data", X, create=False)
    assert db.import_from("data", []) == []
    assert db.count("data") == 0
    with pytest.raises(AlreadyExistsError, match="DATA"):
        db.import_from("DATA", X)
    with pytest.raises(InvalidInputError, match="cannot name"):
        db.import_from(" ", X)


def test_a_schema_and_the_config_of_a_dataset_hold_for_imports_too(db: TensorStorage) -> None:
    db.create_dataset("data", {"shape": [3, 2], "metadata": {"label": "str"}}, compression_preset="none")
    with pytest.raises(SchemaValidationError, match=r"metadata\.label"):
        db.import_from("data", X)
    with pytest.raises(SchemaValidationError, match="shape"):
        db.import_from("data", {"x": X[:, :2], "label": LABELS})
    db.import_from("data", table())
    db.import_from("other", np.full((20, 64, 64), 1.1, np.float32), preset="fp16_only")
    assert {each.encoding.quantization for each in db.get_dataset_with_metadata("data")} == {"none"}
    assert {each.encoding.quantization for each in db.get_dataset_with_metadata("other")} == {"fp16"}


def test_an_import_in_a_transaction_is_undone_with_it(db: TensorStorage) -> None:
    def undone() -> None:
        with db.transaction():
            db.import_from("data", X)
            raise RuntimeError("undo")

    with pytest.raises(RuntimeError, match="undo"):
        undone()
    assert not db.dataset_exists("data")
    with db.transaction():
        db.import_from("data", X)
        db.import_from("data", table())
    assert db.count("data") == 10


def test_a_database_that_is_only_read_takes_nothing_in(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "data.tdb") as db:
        db.import_from("data", X)
        with TensorStorage(tmp_path / "data.tdb", read_only=True) as other, pytest.raises(ReadOnlyError):
            other.import_from("data", X)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_path_that_no_file_can_have_is_an_error_of_its_own(db: TensorStorage, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InvalidInputError, match="File name too long"):
        db.import_from("data", tmp_path / ("x" * 5000 + suffix))


def test_files_come_in_by_their_names(db: TensorStorage, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(X))
    np.savez_compressed(tmp_path / "x.npz", x=X, label=np.array(LABELS))
    save_file(
        {label: torch.from_numpy(row.copy()) for label, row in zip(LABELS, X, strict=True)}, tmp_path / "x.safetensors"
    )
    pq.write_table(table(), tmp_path / "x.parquet")
    with pa.ipc.new_file(tmp_path / "x.arrow", table().schema) as file:
        file.write_table(table())
    with pa.ipc.new_stream(tmp_path / "x.arrows", table().schema) as stream:
        stream.write_table(table())
    for path in sorted(tmp_path.glob("x.*")):
        ids = db.import_from(path.suffix, path)
        assert np.array_equal(np.stack([each.tensor.numpy() for each in db.get_many(path.suffix, ids)]), X), path
    for name in (".npz", ".parquet", ".arrow", ".arrows"):
        assert [each.metadata for each in db.get_dataset_with_metadata(name)] == [{"label": each} for each in LABELS]
    assert [each.metadata for each in db.get_dataset_with_metadata(".safetensors")] == [
        {"name": each} for each in LABELS
    ]
    assert db.import_from("rows", tmp_path / "x.safetensors", tensor="b", metadata=[{}] * 3) != []
    assert torch.equal(db.get_dataset("rows")[1], torch.from_numpy(X[1, 1]))


def test_many_parquet_files_are_one_source_by_pattern_or_folder(db: TensorStorage, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for number in range(3):
        pq.write_table(table().append_column("part", pa.array([number] * 5)), tmp_path / f"parts/{number}.parquet")
    db.import_from("a", tmp_path / "parts" / "*.parquet")
    db.import_from("b", tmp_path / "parts", format="parquet")
    for name in "ab":
        assert [each.metadata["part"] for each in db.get_dataset_with_metadata(name)] == sorted([0, 1, 2] * 5)
    pq.write_table(table(), tmp_path / "parts/9.parquet")
    with pytest.raises(InvalidInputError, match=r"9\.parquet has other columns"):
        db.import_from("c", tmp_path / "parts" / "*.parquet")
    with pytest.raises(InvalidInputError, match="no Parquet file matches"):
        db.import_from("c", tmp_path / "none" / "*.parquet")


def test_batches_of_any_sizes_fill_pages_in_order(db: TensorStorage) -> None:
    values = np.arange(9000, dtype=np.float32)[:, None].repeat(384, 1)
    sizes = [1, 825, 825, 1074, 6, 2731, 0, 3538]
    bounds = np.cumsum([0, *sizes])
    parts = [values[begin:end] for begin, end in pairwise(bounds) if begin < end]
    column = pa.chunked_array([pa.FixedShapeTensorArray.from_numpy_ndarray(part) for part in parts])
    db.import_from("data", pa.table({"x": column, "n": np.arange(9000)}))
    found = db.get_dataset_with_metadata("data")
    assert [record.tensor[383].item() for record in found] == [record.metadata["n"] for record in found]
    assert len(found) == 9000
    assert db.get_compression_stats("data").objects < 10


def test_progress_is_shown_when_asked_for(db: TensorStorage, capsys: pytest.CaptureFixture[str]) -> None:
    db.import_from("data", table(), progress=True)
    assert "5/5" in capsys.readouterr().err
    db.import_from("data", table())
    assert capsys.readouterr().err == ""
