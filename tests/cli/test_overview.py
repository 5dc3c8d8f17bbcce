"""ls, info, stats and verify on a real database."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage

from .conftest import Run

HOSTILE = 'evil\x1b[31m"name'


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(each.relative_to(folder)): (hashlib.sha256(each.read_bytes()).hexdigest(), each.stat().st_mtime_ns)
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }


def test_ls_shows_each_dataset_with_its_sizes(run: Run, folder: Path) -> None:
    code, out, err = run("ls", folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["dataset", "records", "raw", "stored", "ratio"]
    assert lines[1].split()[:4] == ["weights", "5", "81.9", "kB"]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_ls_as_json_has_the_same_figures_as_the_library(run: Run, folder: Path) -> None:
    found = json.loads(run("ls", folder, "--json").out)
    assert [each["dataset"] for each in found] == ["weights", "empty", HOSTILE]
    with TensorStorage(folder, read_only=True) as db:
        stats = db.get_compression_stats("weights")
    assert found[0]["stored_nbytes"] == stats.stored_nbytes
    assert found[0]["ratio"] == stats.ratio > 1.1


def test_ls_of_a_database_without_datasets_says_so(run: Run, tmp_path: Path) -> None:
    TensorStorage(tmp_path / "new.tdb").close()
    assert run("ls", tmp_path / "new.tdb").out.startswith("no datasets")
    assert json.loads(run("ls", tmp_path / "new.tdb", "--json").out) == []


def test_names_with_control_characters_reach_the_terminal_escaped(run: Run, folder: Path) -> None:
    for arguments in (["ls", folder], ["info", folder, HOSTILE], ["head", folder, HOSTILE], ["head", folder, "\x1b"]):
        code, out, err = run(*arguments)
        assert "\x1b" not in out + err
        assert "\x07" not in out + err
        assert "\\x1b" in out + err or arguments[0] == "head"
        assert code == (2 if arguments[-1] == "\x1b" else 0)


def test_info_shows_the_fields_with_their_sql_types(run: Run, folder: Path) -> None:
    code, out, err = run("info", folder, "weights")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("metadata.")}
    assert rows["metadata.epoch"] == ["BIGINT", "5"]
    assert rows["metadata.loss"] == ["DOUBLE", "5"]
    assert rows["metadata.at"] == ["TIMESTAMP", "5"]
    assert rows["metadata.tags"] == ["VARCHAR[]", "5"]
    assert "[64, 64]" in out


def test_info_as_json_has_schema_config_fields_and_kinds_of_tensors(run: Run, folder: Path) -> None:
    found = json.loads(run("info", folder, "weights", "--json").out)
    assert found["schema"] == {"dtype": "float32", "metadata": {"epoch": "int"}}
    assert found["compression_config"] is None
    assert {"name": "epoch", "type": "BIGINT", "values": 5} in found["fields"]
    assert found["tensors"] == [{"dtype": "float32", "shape": [64, 64], "records": 5, "original_nbytes": 81920}]
    assert found["created_at"].endswith("+00:00")


def test_info_of_a_dataset_without_records_or_fields_works(run: Run, folder: Path) -> None:
    found = json.loads(run("info", folder, "empty", "--json").out)
    assert (found["records"], found["fields"], found["tensors"]) == (0, [], [])
    assert found["compression_config"]["quantization"] == "int8"
    assert run("info", folder, "empty").code == 0


def test_stats_break_the_totals_down(run: Run, folder: Path) -> None:
    code, out, _ = run("stats", folder)
    assert code == 0
    assert "planes+zstd" in out
    assert out.splitlines()[-1].split()[:2] == ["total", "6"]
    whole, one = (json.loads(run("stats", folder, *names, "--json").out) for names in ([], ["weights"]))
    assert (whole["records"], one["records"]) == (6, 5)
    assert sum(each["stored_nbytes"] for each in whole["shares"]) == whole["stored_nbytes"]


def test_verify_of_an_intact_database_is_0(run: Run, folder: Path) -> None:
    code, out, err = run("verify", folder)
    assert (code, err) == (0, "")
    assert out == "6 records in 6 objects read back: intact\n"
    assert json.loads(run("verify", folder, "weights", "--json").out) == {
        "ok": True,
        "records": 5,
        "checkpoints": 0,
        "objects": 5,
        "damaged": [],
        "damaged_tensors": [],
        "weights": 0,
        "damaged_weights": [],
        "damaged_catalog": [],
        "damaged_segments": [],
        "unreadable": [],
    }


def test_verify_names_the_damaged_record_and_is_1(run: Run, own_folder: Path) -> None:
    segment = max((own_folder / "segments").iterdir(), key=lambda each: each.stat().st_size)
    with TensorStorage(own_folder, read_only=True) as db:
        stored = db.get_tensor_by_id("weights", "w0").encoding.stored_nbytes
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size - stored // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    code, out, err = run("verify", own_folder)
    assert (code, err) == (1, "")
    assert out.splitlines()[0].startswith("damaged: weights w4: ")
    assert out.splitlines()[-1].endswith("objects read back: 1 damaged")
    code, out, _ = run("verify", own_folder, "--json")
    assert code == 1
    assert [each["record_id"] for each in json.loads(out)["damaged"]] == ["w4"]
    code, out, err = run("head", own_folder, "weights")
    assert (code, out) == (1, "")
    assert "w4" in err
    assert run("verify", own_folder, "empty").code == 0


def test_verify_names_a_damaged_weight_and_is_1(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "weights.tdb"
    with TensorStorage(folder) as db:
        key = db.weights.store(torch.randn(500, generator=torch.Generator().manual_seed(0)))
    assert run("verify", folder).out == "1 weights in 1 objects read back: intact\n"
    (segment,) = (folder / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[-200] ^= 1
    segment.write_bytes(data)
    code, out, err = run("verify", folder)
    assert (code, err) == (1, "")
    assert out.startswith(f"damaged: weight {key}: ")
    assert out.endswith("read back: 1 damaged\n")
    found = json.loads(run("verify", folder, "--json").out)
    assert [each["hash"] for each in found["damaged_weights"]] == [key]


def test_looking_changes_nothing(run: Run, own_folder: Path) -> None:
    before = contents(own_folder)
    for command in ("ls", "stats", "verify"):
        assert run(command, own_folder).code == 0
    for command in ("info", "head", "query"):
        assert run(command, own_folder, "weights").code == 0
    assert run("query", own_folder, "--sql", "DELETE FROM weights").code == 2
    assert contents(own_folder) == before


@pytest.mark.parametrize("line", ["ls", "info weights", "head weights", "query weights", "stats", "verify"])
def test_where_there_is_no_database_it_is_2_and_nothing_is_created(run: Run, tmp_path: Path, line: str) -> None:
    command, *rest = line.split()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    for name in ("folder", "file", "missing"):
        code, out, err = run(command, tmp_path / name, *rest)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("tensordb: there is no database in ")
    assert list((tmp_path / "folder").iterdir()) == []
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("command", ["info", "head", "query", "stats", "verify"])
def test_an_unknown_dataset_is_2_and_the_error_names_those_that_exist(run: Run, folder: Path, command: str) -> None:
    code, out, err = run(command, folder, "wieghts")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'wieghts'" in err
    assert "'weights'" in err
