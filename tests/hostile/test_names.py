"""Names and metadata from hell come back as they went in, are never a path, SQL or markup, or are refused by type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage
from tensordb.cli import main
from tensordb.errors import InvalidInputError, TensorDBError

NAMES = [
    "'; DROP TABLE tensordb.datasets; --",
    '"; DROP SCHEMA tensordb CASCADE; --',
    "a\"b'c`d\\e",
    "../../../../etc/passwd",
    "/etc/passwd",
    "C:\\con\\nul",
    "..",
    ".",
    "~",
    "$HOME `id` $(id) %s {0} {{x}}",
    "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;",
    "__proto__",
    "constructor",
    "__class__",
    "records_1",
    "tensordb.info",
    "main",
    "metadata",
    "select",
    "NULL",
    "ünïcödé 日本語 \U0001f4a9 \u202eevil\u202c \u200b",
    "é",
    "e\u0301",
    "line\nbreak\r\ttab\x1b[31m\x07\x7f",
    "-",
    "--json",
    "?",
    "$1",
    " leading and trailing ",
    "x" * 1_000_000,
]
REFUSED = ["", " ", "\0", "a\0b", "\ud800"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which every name stands everywhere a name can."""
    folder = tmp_path_factory.mktemp("names") / "db"
    with TensorStorage(folder) as db:
        for number, name in enumerate(NAMES):
            db.create_dataset(name)
            db.insert(name, torch.full((3,), float(number)), {name: name, "n": number}, record_id=name)
    return folder


@pytest.fixture
def db(folder: Path) -> Iterator[TensorStorage]:
    with TensorStorage(folder, read_only=True) as db:
        yield db


def test_every_name_is_only_a_name_and_comes_back_as_it_was(db: TensorStorage, folder: Path) -> None:
    assert db.list_datasets() == NAMES
    for number, name in enumerate(NAMES):
        record = db.get_tensor_by_id(name, name)
        assert (record.id, record.metadata) == (name, {name: name, "n": number})
        assert record.tensor.tolist() == [number] * 3
        quoted = '"' + name.replace('"', '""') + '"'
        assert db.sql(f"SELECT record_id FROM {quoted}").column(0).to_pylist() == [name]
        assert db.query(name, f"metadata.{quoted} = ?", params=[name])[0].id == name
    assert db.verify().ok
    allowed = {"catalog.duckdb", "catalog.duckdb.wal", "gate", "lock", "segments"}
    assert {each.name for each in folder.iterdir()} <= allowed


def test_html_shows_names_escaped(db: TensorStorage) -> None:
    shown = db._repr_html_()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown
    record = db.get_tensor_by_id(NAMES[10], NAMES[10])
    for each in (record, db.get_records_paginated(NAMES[10])):
        if (markup := getattr(each, "_repr_html_", None)) is not None:
            assert "<script" not in markup()


@pytest.mark.parametrize("name", [name for name in NAMES if len(name) < 1000], ids=lambda name: ascii(name)[:30])
def test_the_command_line_shows_every_name_as_printable_text(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for as_json in ([], ["--json"]):
        assert main(["head", *as_json, str(folder), "--", name]) == 0, capsys.readouterr()
        shown = capsys.readouterr().out
        assert not set(shown) & set("\x1b\x07\x7f\r\u202e")
        if as_json:
            assert json.loads(shown)[0]["record_id"] == name


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_what_cannot_be_a_name_is_refused_everywhere(tmp_path: Path, name: str) -> None:
    with TensorStorage(None) as db:
        with pytest.raises(InvalidInputError):
            db.create_dataset(name)
        db.create_dataset("d")
        for use in (
            lambda: db.checkpoints.save(name, {"w": torch.ones(2)}, step=0),
            lambda: db.get_tensor_by_id(name, "x"),
            lambda: db.get_dataset(name),
        ):
            with pytest.raises(TensorDBError):
                use()
        assert db.list_datasets() == ["d"]
        assert db.checkpoints.list() == []


def test_runs_tags_tensors_and_weights_take_any_name() -> None:
    runs = []
    with TensorStorage(None) as db:
        for number, name in enumerate(NAMES[:-1]):
            state = {name: torch.full((2,), float(number))}
            try:
                db.checkpoints.save(name, state, step=0, metrics={name: 1.0}, metadata={name: name}, rng=False)
            except InvalidInputError:
                assert db.checkpoints.runs() == runs, "it is refused as a whole"
                continue
            runs.append(name)
            assert db.checkpoints.runs() == runs
            assert db.checkpoints.load(name)["model"][name].tolist() == [number] * 2
            key = db.weights.store(torch.full((3,), float(number)), name=name, layer_type=name, metadata={name: name})
            (found,) = db.weights.list_weights(name=name)
            assert (found.hash, found.name) == (key, name)
            assert db.weights.load(key).tolist() == [number] * 3
        assert len(runs) > 20
        assert db.verify().ok


def test_deep_wide_and_huge_metadata_comes_back_or_is_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(1000):
        deep = {"a": deep}
    wide = {f"key {i}": i for i in range(500)}
    with TensorStorage(None) as db:
        db.create_dataset("d")
        with pytest.raises(InvalidInputError, match="nested"):
            db.insert("d", torch.ones(1), deep)
        key = db.insert("d", torch.ones(1), {**wide, "text": "x" * 1_000_000, "big": 1 << 4000})
        found = db.get_tensor_by_id("d", key).metadata
        assert found["key 499"] == 499
        assert (len(found["text"]), found["big"]) == (1_000_000, 1 << 4000)
        endless: dict[str, object] = {}
        endless["me"] = endless
        with pytest.raises(InvalidInputError):
            db.insert("d", torch.ones(1), endless)
        assert db.count("d") == 1
