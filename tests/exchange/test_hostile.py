"""Files made to do harm, or damaged: refused with their names, nothing inserted, nothing allocated on their word."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tensordb import InvalidInputError, TensorStorage

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


def npy_of(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def write_all_kinds(folder: Path) -> None:
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(X), "label": list("abcd")})
    np.save(folder / "x.npy", X)
    np.savez(folder / "stored.npz", x=X, label=np.arange(4))
    np.savez_compressed(folder / "deflated.npz", x=X, label=np.arange(4))
    pq.write_table(table, folder / "x.parquet")
    with pa.ipc.new_file(folder / "x.arrow", table.schema) as file:
        file.write_table(table)
    save_file({"x": torch.from_numpy(X)}, folder / "x.safetensors")


NAMES = ["x.npy", "stored.npz", "deflated.npz", "x.parquet", "x.arrow", "x.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cut_off_anywhere_is_refused_by_name(db: TensorStorage, tmp_path: Path, name: str) -> None:
    write_all_kinds(tmp_path)
    whole = (tmp_path / name).read_bytes()
    bad = tmp_path / f"cut-{name}"
    for length in sorted({*range(0, len(whole), max(1, len(whole) // 23)), len(whole) - 1}):
        bad.write_bytes(whole[:length])
        with pytest.raises(InvalidInputError, match="cut-"):
            db.import_from("data", bad)
    assert db.list_datasets() == []


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.parquet", "x.arrow", "x.safetensors", "pictures/x.png"])
def test_a_pipe_is_refused_and_not_waited_for(db: TensorStorage, tmp_path: Path, name: str) -> None:
    pipe = tmp_path / name
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    source = pipe if pipe.parent == tmp_path else pipe.parent
    with pytest.raises(InvalidInputError, match=rf"{pipe.name}.* regular file"):
        db.import_from("data", source)
    assert db.list_datasets() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_changed_anywhere_is_refused_or_gives_whole_tensors(
    db: TensorStorage, tmp_path: Path, name: str
) -> None:
    write_all_kinds(tmp_path)
    whole = bytearray((tmp_path / name).read_bytes())
    bad = tmp_path / f"bad-{name}"
    for place in range(0, len(whole), max(1, len(whole) // 41)):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        bad.write_bytes(changed)
        before = db.list_datasets()
        try:
            db.import_from(f"data {place}", bad)
        except InvalidInputError:
            assert db.list_datasets() == before


def test_pickles_are_never_read(db: TensorStorage, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    harm = np.array([Harm()], dtype=object)
    np.save(tmp_path / "x.npy", harm, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=X[:1], label=harm)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(InvalidInputError, match=rf"{name}.*Python objects"):
            db.import_from("data", tmp_path / name)
    assert not (tmp_path / "harm").exists()


def zip_of(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def header_of(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"x.npy": header_of((2**50, 4))}, "no whole array"),
        ({"x.npy": npy_of(X) + b"more"}, "no whole array"),
        ({"x.npy": npy_of(X), "label.npy": header_of((4,), "<U500000000")}, "no whole array"),
        ({"x.npy": npy_of(np.array(["a"] * 4)[:, None])}, "<U1"),
        ({"x.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'}\n"}, "cannot be read"),
        ({"readme.txt": b"hello"}, "no column of tensors"),
    ],
)
def test_an_archive_whose_arrays_lie_about_their_size_or_kind_is_refused(
    db: TensorStorage, tmp_path: Path, entries: dict[str, bytes], named: str
) -> None:
    zip_of(tmp_path / "bad.npz", entries)
    with pytest.raises(InvalidInputError, match=named):
        db.import_from("data", tmp_path / "bad.npz", metadata=None)
    assert db.list_datasets() == []


def test_metadata_in_an_archive_that_unpacks_to_gigabytes_is_refused_unread(db: TensorStorage, tmp_path: Path) -> None:
    zeros = bytes(1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.compresslevel = 1
        archive.writestr("x.npy", npy_of(X[:1]))
        with archive.open("label.npy", "w", force_zip64=True) as entry:
            entry.write(header_of((1,), f"<U{(1100 << 20) // 4}"))
            for _ in range(1100):
                entry.write(zeros)
    assert (tmp_path / "bomb.npz").stat().st_size < 8 << 20
    with pytest.raises(InvalidInputError, match=r"'label'.*read whole"):
        db.import_from("data", tmp_path / "bomb.npz")
    assert db.import_from("data", tmp_path / "bomb.npz", metadata=[]) != []


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_packed_as_numpy_does_not_is_refused_unread(db: TensorStorage, tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", method) as archive:
        archive.writestr("x.npy", header_of((1, 1 << 20), "|u1") + bytes(1 << 20))
    with pytest.raises(InvalidInputError, match="NumPy does not write"):
        db.import_from("data", tmp_path / "bomb.npz")
    assert db.list_datasets() == []


def test_rows_without_elements_do_not_go_on_forever(db: TensorStorage, tmp_path: Path) -> None:
    header = header_of((1 << 50, 0))
    (tmp_path / "x.npy").write_bytes(header)
    zip_of(tmp_path / "x.npz", {"x.npy": header})
    text = json.dumps({"x": {"dtype": "F32", "shape": [1 << 50, 0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    for name, options in (("x.npy", {}), ("x.npz", {}), ("x.safetensors", {"tensor": "x"})):
        with pytest.raises(InvalidInputError, match=f"{name}.*no elements"):
            db.import_from("data", tmp_path / name, **options)
    assert db.list_datasets() == []


@pytest.mark.parametrize("kind", [pa.time64("us"), pa.timestamp("s"), pa.date64()])
def test_times_that_python_has_no_place_for_are_refused_by_the_files_name(
    db: TensorStorage, tmp_path: Path, kind: pa.DataType
) -> None:
    at = pa.array([1 << 62], pa.int64()).view(kind)
    table = pa.table({"x": pa.array([[1.0]]), "at": at})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as file:
        file.write_table(table)
    with pytest.raises(InvalidInputError, match=r"x\.arrow"):
        db.import_from("data", tmp_path / "x.arrow")
    assert db.list_datasets() == []


@pytest.mark.parametrize("offset", [1 << 30, -(1 << 30), 4])
def test_arrow_whose_offsets_leave_its_buffers_is_refused(db: TensorStorage, tmp_path: Path, offset: int) -> None:
    buffers = [None, pa.py_buffer(np.array([0, offset, 3], np.int32)), pa.py_buffer(b"abc")]
    names = pa.Array.from_buffers(pa.string(), 2, buffers)
    lists = pa.Array.from_buffers(pa.list_(pa.int8()), 2, buffers[:2], children=[pa.array([1, 2, 3], pa.int8())])
    for table in (
        pa.table({"x": pa.array([[1.0]] * 2), "name": names}), pa.table({"x": lists}),
    ):  # fmt: skip
        with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as file:
            file.write_table(table)
        with pytest.raises(InvalidInputError, match=r"x\.arrow"):
            db.import_from("data", tmp_path / "x.arrow")
    assert db.list_datasets() == []


def test_columns_named_like_those_of_tensordb_are_metadata_like_any_other(db: TensorStorage, tmp_path: Path) -> None:
    names = ["tensor", "record_id", "created_at", "metadata", "metadata.tensor", "tensordb.document", "dtype"]
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(X)} | {name: list("abcd") for name in names})
    pq.write_table(table, tmp_path / "x.parquet")
    db.import_from("data", tmp_path / "x.parquet")
    assert db.get_dataset_with_metadata("data")[1].metadata == dict.fromkeys(names, "b")
    assert db.sql("SELECT DISTINCT dtype FROM \"data\" WHERE metadata.dtype = 'a'").to_pylist() == [
        {"dtype": "float32"}
    ]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        json.dumps({"tensor": 3, "record_id": ["x"], "fields": 7}).encode(),
        json.dumps({"tensor": "nowhere", "document": "label", "fields": {"label": 5, "gone": "a"}}).encode(),
        json.dumps({"document": "bytes", "fields": {"label": "label"}}).encode(),
    ],
)
def test_what_a_file_says_of_its_own_columns_is_only_a_hint(db: TensorStorage, said: bytes) -> None:
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(X), "label": list("abcd")})
    table = table.append_column("bytes", pa.array([b"\xff", b"", None, b"\x81\xa5label\x01"], pa.binary()))
    known = table if b"bytes" in said else table.drop_columns("bytes")
    db.import_from("data", known.replace_schema_metadata({b"tensordb.columns": said}))
    found = [record.metadata for record in db.get_dataset_with_metadata("data")]
    assert found == [{"label": label} for label in "abcd"]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [("bfloat16", pa.float32()), ("float8_e5m2", pa.uint16()), ("complex64", pa.float32()), ("strange", pa.int8())],
)
def test_a_dtype_that_does_not_fit_the_bits_of_its_column_is_refused(
    db: TensorStorage, dtype: str, values: pa.DataType
) -> None:
    field = pa.field("x", pa.list_(values, 3), metadata={"tensordb.dtype": dtype})
    column = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3] * 2, values), 3)
    with pytest.raises(InvalidInputError, match="'x'"):
        db.import_from("data", pa.Table.from_arrays([column], schema=pa.schema([field])))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"data": [1.0, 2.0], "shape": [3]}, "2 elements do not make"),
        ({"data": [1.0, 2.0], "shape": [-1, -2]}, "negative"),
        ({"data": [1.0, 2.0], "shape": [2**62, 2**62]}, "do not make"),
        ({"data": [1.0, 2.0], "shape": None}, "null"),
        ({"data": None, "shape": [2]}, "null"),
        ({"data": b"123", "shape": [1], "dtype": "float32"}, "no whole elements"),
        ({"data": b"1234", "shape": [1], "dtype": "object"}, "unknown dtype"),
        ({"data": b"1234", "shape": [1], "dtype": None}, "unknown dtype"),
    ],
)
def test_a_shape_that_does_not_fit_its_elements_is_refused(db: TensorStorage, row: dict[str, Any], named: str) -> None:
    binary = "dtype" in row
    kinds = [("data", pa.binary() if binary else pa.list_(pa.float32())), ("shape", pa.list_(pa.int64()))]
    kind = pa.struct([*kinds, ("dtype", pa.string())] if binary else kinds)
    with pytest.raises(InvalidInputError, match=named):
        db.import_from("data", pa.table({"x": pa.array([row], kind)}))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (5, 6, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    (folder / "readme.txt").write_text("no picture")
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def bomb(path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(path)


@pytest.mark.parametrize(
    "harm", [cut, bomb, lambda path: path.write_bytes(b"<svg/>"), lambda path: path.write_bytes(b"")]
)
def test_a_picture_that_is_broken_in_the_middle_of_a_folder_is_named_and_nothing_is_inserted(
    db: TensorStorage, pictures: Path, harm: Callable[[Path], None]
) -> None:
    assert len(db.import_from("whole", pictures)) == 6
    harm(pictures / "cat/2.png")
    with pytest.raises(InvalidInputError, match=r"cat/2\.png"):
        db.import_from("data", pictures)
    assert db.list_datasets() == ["whole"]


def test_links_without_end_are_named_and_other_links_are_followed(
    db: TensorStorage, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "wolf").symlink_to(pictures / "dog")
    found = db.get_many("data", db.import_from("data", pictures))
    assert [record.metadata["path"] for record in found] == [
        f"{label}/{number}.png" for label in ("cat", "dog", "wolf") for number in range(3)
    ]
    (pictures / "dog" / "again").symlink_to(pictures)
    with pytest.raises(InvalidInputError, match="without end"):
        db.import_from("more", pictures)
    (pictures / "dog" / "again").unlink()
    (pictures / "dog" / "self.png").symlink_to(pictures / "dog" / "self.png")
    with pytest.raises(InvalidInputError, match=r"self\.png"):
        db.import_from("more", pictures)


def test_a_parquet_file_cannot_have_pictures_read_from_elsewhere(
    db: TensorStorage, pictures: Path, tmp_path: Path
) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    inside = {"bytes": (pictures / "cat/0.png").read_bytes(), "path": "x.png"}
    outside = {"bytes": None, "path": str(pictures / "cat/0.png")}
    pq.write_table(pa.table({"image": pa.array([inside], kind)}), tmp_path / "inside.parquet")
    pq.write_table(pa.table({"image": pa.array([inside, outside], kind)}), tmp_path / "outside.parquet")
    assert db.get_many("data", db.import_from("data", tmp_path / "inside.parquet"))[0].tensor.shape == (3, 5, 6)
    with pytest.raises(InvalidInputError, match=r"row 1 .* not in it"):
        db.import_from("data", tmp_path / "outside.parquet")
    assert db.count("data") == 1


@pytest.mark.parametrize("path", ["none.npy", "none.parquet", "none/*.parquet", "none", "none.zip"])
def test_paths_that_lead_nowhere_or_say_no_format_are_named(db: TensorStorage, tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidInputError, match="none"):
        db.import_from("data", tmp_path / path)
    with pytest.raises(InvalidInputError, match="csv"):
        db.import_from("data", tmp_path / path, format="csv")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors", "x.parquet", "x.arrow"])
def test_a_folder_or_a_pipe_in_place_of_a_file_is_refused(db: TensorStorage, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError):
        db.import_from("data", tmp_path / "folder", format=name.partition(".")[2])
