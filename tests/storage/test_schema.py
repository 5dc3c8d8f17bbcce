"""create_dataset: names, schemas, and what they refuse."""

import datetime as dt
from pathlib import Path

import pytest
import torch

from tensordb import AlreadyExistsError, InvalidInputError, SchemaValidationError, TensorStorage, UnknownPresetError

ODD_NAMES = [
    "../x",
    "../../etc/passwd",
    "/tmp/x",
    "a/b",
    "a\\b",
    'a"b',
    "a'b",
    "a;b -- c",
    "x'; DROP TABLE tensordb.objects; --",
    "ü🙂",
    "日本",
    ".",
    "..",
    "~",
    "a\nb",
    " padded ",
    "x" * 2000,
    "records_1",
    "tensordb.objects",
    "%s {x}",
]


def test_a_name_is_only_a_name(db: TensorStorage, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for name in ODD_NAMES:
        db.create_dataset(name)
        record_id = db.insert(name, torch.zeros(2), {"a": 1})
        assert db.dataset_exists(name)
        assert db.count(name) == db.count(name, "metadata.a = 1") == 1
        assert db.get_tensor_by_id(name, record_id).dataset == name
    assert db.list_datasets() == ODD_NAMES
    created = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    assert all(name == "segments" or "." in name for name in created), created
    for name in ODD_NAMES:
        db.delete_dataset(name)
    assert db.list_datasets() == []


def test_names_that_cannot_be_are_refused(db: TensorStorage) -> None:
    for name in ("", "  ", "a\0b", "\ud800", None, 5, b"x", ["a"]):
        with pytest.raises(InvalidInputError):
            db.create_dataset(name)  # type: ignore[arg-type]
        if not isinstance(name, str) or "\ud800" not in name:
            assert not db.dataset_exists(name)  # type: ignore[arg-type]
    assert db.list_datasets() == []


def test_a_taken_name_is_refused_and_keeps_its_records(data: TensorStorage) -> None:
    data.insert("data", torch.zeros(1))
    for name in ("data", "DATA", "Data"):
        with pytest.raises(AlreadyExistsError, match="'data'"):
            data.create_dataset(name, {"dtype": "int8"})
    assert not data.dataset_exists("DATA")
    assert data.count("data") == 1
    assert data.list_datasets() == ["data"]


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "torch.float32"])
def test_a_dtype_in_every_form(db: TensorStorage, dtype: object) -> None:
    db.create_dataset("data", {"dtype": dtype})
    db.insert("data", torch.zeros(2))
    for wrong in (torch.zeros(2, dtype=torch.float64), torch.zeros(2).int()):
        with pytest.raises(SchemaValidationError, match=r"dtype.*float32"):
            db.insert("data", wrong)
        with pytest.raises(SchemaValidationError, match="dtype"):
            db.insert_many("data", wrong.reshape(2, 1))
    assert db.count("data") == 1


def test_a_shape_with_free_lengths(db: TensorStorage) -> None:
    db.create_dataset("images", {"shape": [None, 4, 4]})
    for count in (0, 1, 3):
        db.insert("images", torch.zeros(count, 4, 4))
    db.insert_many("images", torch.zeros(2, 3, 4, 4))
    for shape in ((4, 4), (1, 4, 5), (1, 1, 4, 4), ()):
        with pytest.raises(SchemaValidationError, match="shape"):
            db.insert("images", torch.zeros(shape))
    with pytest.raises(SchemaValidationError, match="shape"):
        db.insert_many("images", torch.zeros(2, 4, 4))
    db.create_dataset("scalars", {"shape": []})
    db.insert("scalars", torch.tensor(1.0))
    db.insert_many("scalars", torch.zeros(3))
    with pytest.raises(SchemaValidationError, match="shape"):
        db.insert("scalars", torch.zeros(1))
    assert db.count("images") == 5
    assert db.count("scalars") == 4


GOOD = {
    "int": 3,
    "float": 1,
    "str": "x",
    "bool": True,
    "datetime": dt.datetime(2024, 1, 1),
    "list": [1],
    "dict": {"a": 1},
}
BAD = {"int": 1.0, "float": "1", "str": 5, "bool": 1, "datetime": "2024-01-01", "list": {"a": 1}, "dict": [1]}


def test_metadata_fields_of_every_kind(db: TensorStorage) -> None:
    db.create_dataset("data", {"metadata": {f"a_{kind}": kind for kind in GOOD}})
    good = {f"a_{kind}": value for kind, value in GOOD.items()}
    db.insert("data", torch.zeros(1), {**good, "more": "is allowed"})
    for kind, value in BAD.items():
        for document in (
            {**good, f"a_{kind}": value},
            {**good, f"a_{kind}": None},
            {k: v for k, v in good.items() if k != f"a_{kind}"},
        ):
            with pytest.raises(SchemaValidationError, match=rf"metadata\.a_{kind}\b"):
                db.insert("data", torch.zeros(1), document)
            with pytest.raises(SchemaValidationError, match=rf"metadata\.a_{kind}\b"):
                db.insert_many("data", torch.zeros(2, 1), [good, document])
    with pytest.raises(SchemaValidationError, match="metadata"):
        db.insert("data", torch.zeros(1))
    with pytest.raises(SchemaValidationError, match="metadata"):
        db.insert_many("data", torch.zeros(2, 1))
    with pytest.raises(SchemaValidationError, match=r"metadata\.a_int"):
        db.insert("data", torch.zeros(1), {**good, "a_int": True})
    assert db.count("data") == 1


def test_optional_fields_and_kinds_by_other_names(db: TensorStorage) -> None:
    db.create_dataset("data", {"metadata": {"a": "int?", "b": float, "c": "string", "d": "boolean?"}})
    db.insert("data", torch.zeros(1), {"b": 1.5, "c": "x"})
    db.insert("data", torch.zeros(1), {"a": None, "b": 2, "c": "y", "d": False})
    with pytest.raises(SchemaValidationError, match=r"metadata\.a"):
        db.insert("data", torch.zeros(1), {"a": "1", "b": 1.5, "c": "x"})
    assert db.count("data", "metadata.a IS NULL AND metadata.b > 1") == 2


def test_a_schema_violation_is_also_a_value_error(db: TensorStorage) -> None:
    db.create_dataset("data", {"dtype": "int8"})
    with pytest.raises(ValueError, match="int8"):
        db.insert("data", torch.zeros(1))


def test_malformed_schemas_name_the_part_and_create_nothing(db: TensorStorage) -> None:
    for schema, named in (
        ({"shpe": [1]}, "shpe"),
        ({"shape": "3"}, "shape"),
        ({"shape": 3}, "shape"),
        ({"shape": [-1]}, "-1"),
        ({"shape": [1.5]}, "1.5"),
        ({"shape": [True]}, "True"),
        ({"dtype": "float33"}, "float33"),
        ({"dtype": 5}, "5"),
        ({"metadata": {"label": "integr"}}, "integr"),
        ({"metadata": {"label": bytes}}, "label"),
        ({"metadata": ["label"]}, "metadata"),
        ([1, 2], "schema"),
        ("float32", "schema"),
    ):
        with pytest.raises(InvalidInputError, match=named):
            db.create_dataset("data", schema)  # type: ignore[arg-type]
    assert db.list_datasets() == []


def test_schemas_hold_after_reopening(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("data", {"shape": [None, 2], "dtype": torch.bfloat16, "metadata": {"label": "int"}})
    with TensorStorage(tmp_path / "db") as db:
        db.insert("data", torch.zeros(1, 2, dtype=torch.bfloat16), {"label": 1})
        for tensor, metadata, named in (
            (torch.zeros(1, 3).bfloat16(), {"label": 1}, "shape"),
            (torch.zeros(1, 2), {"label": 1}, "dtype"),
            (torch.zeros(1, 2).bfloat16(), {"label": "1"}, "label"),
        ):
            with pytest.raises(SchemaValidationError, match=named):
                db.insert("data", tensor, metadata)


def test_an_unknown_preset_lists_those_that_exist_and_creates_nothing(db: TensorStorage) -> None:
    with pytest.raises(UnknownPresetError, match="balanced"):
        db.create_dataset("data", compression_preset="blanced")
    assert db.list_datasets() == []
