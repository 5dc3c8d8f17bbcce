"""Names from hell through every command, every page of a notebook and every file format: text, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage
from tensordb.cli import main

WORST = [
    "\"; DROP SCHEMA tensordb CASCADE; -- ' `id`",
    "../../../../etc/passwd",
    "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;",
    "ünïcödé 日本語 \U0001f4a9 \u202eevil\u202c \u200b",
    "line\nbreak\r\ttab\x1b[31m\x07\x7f",
    "--json",
    "__proto__",
]
HUGE = "x" * 1_000_000
CONTROL = set("\x1b\x07\x7f\r\u202e\u202c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which every name stands everywhere a name can: records, metadata, runs, tags, tensors, weights."""
    folder = tmp_path_factory.mktemp("names") / "db"
    with TensorStorage(folder) as db:
        for number, name in enumerate([*WORST, HUGE]):
            values = torch.full((3,), float(number))
            db.create_dataset(name)
            db.insert(name, values, {name: name, "nested": {"list": [name]}}, record_id=name)
            db.weights.store(values, name=name, layer_type=name, metadata={name: name})
            if name != HUGE:
                db.checkpoints.save(name, {name: values}, step=0, metrics={name: 1.0}, metadata={name: name}, rng=False)
                db.checkpoints.tag(name, f"tag {name}", step=0)
    return folder


@pytest.fixture
def db(folder: Path) -> Iterator[TensorStorage]:
    with TensorStorage(folder, read_only=True) as db:
        yield db


def told(*arguments: object) -> str:
    """Return what a command prints; it has to succeed, and to print no character that moves anything on a screen."""
    out, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaints):
        code = main([str(each) for each in arguments])
    assert code == 0, (arguments[:2], complaints.getvalue()[:500])
    assert not set(out.getvalue() + complaints.getvalue()) & CONTROL, arguments[:2]
    if "--json" in arguments[:3]:
        json.loads(out.getvalue())
    return out.getvalue()


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize("command", ["ls", "stats", "verify", "repair", "checkpoints ls", "checkpoints verify"])
def test_commands_about_the_whole_database_print_plain_text(folder: Path, command: str, form: list[str]) -> None:
    assert told(*command.split(), *form, folder)


@pytest.mark.parametrize("command", ["head", "info", "query", "stats", "checkpoints ls", "checkpoints show"])
def test_commands_about_one_name_take_it_as_a_name(folder: Path, command: str) -> None:
    # Names take turns with the forms; commands of an odd length begin with the other one, so that each name meets both.
    for number, name in enumerate(WORST, len(command)):
        assert told(*command.split(), *(["--json"] if number % 2 else []), folder, "--", name)
    if not command.startswith("checkpoints"):
        assert told(*command.split(), folder, "--", HUGE)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "safetensors"])
def test_files_carry_every_name_and_lie_where_they_were_asked_to(folder: Path, tmp_path: Path, suffix: str) -> None:
    for number, name in enumerate(WORST):
        file = tmp_path / f"out{number}.{suffix}"
        told("export", folder, "--", name, file)
        told("import", tmp_path / "copy", "--", name, file)
    with TensorStorage(tmp_path / "copy", read_only=True) as copy:
        assert copy.list_datasets() == WORST
        for number, name in enumerate(WORST):
            (record,) = copy.get_dataset_with_metadata(name)
            assert record.tensor.tolist() == [number] * 3
            assert record.metadata[name] == name
    assert {each.name for each in tmp_path.iterdir()} == {"copy", *(f"out{i}.{suffix}" for i in range(len(WORST)))}


def test_whatever_a_notebook_shows_is_escaped(db: TensorStorage) -> None:
    shown = [db, db.checkpoints.list(), db.checkpoints.diff((WORST[0], 0), (WORST[2], 0)), db.verify()]
    shown += [db.weights.list_weights()[2], db.get_compression_stats()]
    for name in WORST:
        shown += [db.get_tensor_by_id(name, name), db.get_records_paginated(name), db.dataset(name)]
        shown += [db.search(name, torch.zeros(3), 1, metric="l2"), db.checkpoints.get(name)]
    for each in shown:
        markup = getattr(each, "_repr_html_", lambda: None)() or ""
        assert "<script" not in markup, type(each)
        assert "<img src=x" not in markup, type(each)
        assert not set(repr(each)) & CONTROL, type(each)


def test_fields_are_asked_for_by_any_name(db: TensorStorage) -> None:
    for name in WORST:
        quoted = '"' + name.replace('"', '""') + '"'
        assert db.count(name, f"metadata.{quoted} = $value", params={"value": name}) == 1
        assert (
            db.search(name, torch.zeros(3), 1, metric="l2", where=f"metadata.{quoted} = ?", params=[name])[0].id == name
        )
