"""`tensordb checkpoints` on a real database with two runs and hostile names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tensordb import TensorStorage

from .conftest import Run, start
from .test_overview import contents

HOSTILE = "evil\x1b[31m\"'@run☃\n" + "long" * 100
ALL = ["ls", "show", "diff", "tag", "untag", "fork", "rm", "prune", "export", "verify"]


def build_runs(folder: Path) -> Path:
    """Two runs, of 6 checkpoints and of 1: the loss is best at step 2, step 3 is tagged."""
    generator = torch.Generator().manual_seed(0)
    with TensorStorage(folder) as db:
        weight = torch.randn(40, 50, generator=generator)
        for step in range(6):
            model = {"layer.weight": weight + step * 1e-3, "layer.bias": torch.zeros(40)}
            metrics = {"loss": abs(step - 2) + 0.5, "accuracy": step / 10}
            metadata = {"lr": 0.1, "note": "two\nlines\x07"}
            db.checkpoints.save(
                "base@line", model, state={"seen": step}, step=step, metrics=metrics, metadata=metadata, rng=False
            )
        db.checkpoints.tag("base@line", "paper", step=3)
        db.checkpoints.save(HOSTILE, {"w\x1b[0m": torch.ones(3)}, epoch=1.5, rng=False)
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that tests only look at."""
    return build_runs(tmp_path_factory.mktemp("cli") / "runs.tdb")


@pytest.fixture
def own_runs(tmp_path: Path) -> Path:
    """A database that a test may change."""
    return build_runs(tmp_path / "runs.tdb")


def shown(run: Run, verb: str, *arguments: object) -> Any:
    """Return what a command prints as JSON."""
    code, out, err = run("checkpoints", verb, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def steps(run: Run, folder: Path, name: str = "base@line") -> list[int | None]:
    return [each["step"] for each in shown(run, "ls", folder, name)]


def test_ls_lists_checkpoints_with_their_metrics_and_tags(run: Run, runs: Path) -> None:
    code, out, err = run("checkpoints", "ls", runs, "base@line")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 7
    assert lines[0].split()[:2] == ["run", "step"]
    assert lines[4].split()[:2] == ["base@line", "3"]
    assert "loss=1.5" in lines[4]
    assert "paper" in lines[4]


def test_ls_as_json_is_exact(run: Run, runs: Path) -> None:
    found = shown(run, "ls", runs)
    with TensorStorage(runs, read_only=True) as db:
        there = db.checkpoints.list()
    assert [each["id"] for each in found] == [each.id for each in there]
    assert [each["run"] for each in found] == ["base@line"] * 6 + [HOSTILE]
    assert [each["added_nbytes"] for each in found] == [each.added_nbytes for each in there]
    assert found[2]["metrics"] == {"loss": 0.5, "accuracy": 0.2}
    assert found[3]["tags"] == ["paper"]
    assert (found[6]["step"], found[6]["epoch"]) == (None, 1.5)


def test_ls_shows_the_newest_when_asked_for_few(run: Run, runs: Path) -> None:
    assert [each["step"] for each in shown(run, "ls", runs, "base@line", "-n", 2)] == [4, 5]
    assert run("checkpoints", "ls", runs, "-n", 0).code == 2


def test_ls_of_a_database_without_checkpoints_says_so(run: Run, folder: Path) -> None:
    assert run("checkpoints", "ls", folder).out.startswith("no checkpoints")
    assert shown(run, "ls", folder) == []


@pytest.mark.parametrize(
    ("text", "options", "step"),
    [
        ("base@line", "", 5),
        ("base@line@latest", "", 5),
        ("base@line@4", "", 4),
        ("base@line@paper", "", 3),
        ("base@line@best", "--metric loss", 2),
        ("base@line@best", "--metric accuracy --mode max", 5),
    ],
)
def test_a_checkpoint_is_named_by_run_step_tag_or_metric(
    run: Run, runs: Path, text: str, options: str, step: int
) -> None:
    assert shown(run, "show", runs, text, *options.split())["step"] == step


def test_a_checkpoint_is_named_by_its_id(run: Run, runs: Path) -> None:
    last = shown(run, "ls", runs)[-1]
    assert shown(run, "show", runs, last["id"])["run"] == HOSTILE


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nothing", "'nothing'"),
        ("nothing@3", "'nothing'"),
        ("base@line@77", "step 77"),
        ("base@line@draft", "'draft'"),
        ("base@line@best", "--metric"),
        ("base@line@" + "9" * 5000, "999"),
        ("@3", "run"),
        ("", "run"),
    ],
)
def test_what_names_no_checkpoint_is_2_and_the_error_says_why(run: Run, runs: Path, text: str, named: str) -> None:
    code, out, err = run("checkpoints", "show", runs, text)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_show_describes_the_tensors(run: Run, runs: Path) -> None:
    code, out, err = run("checkpoints", "show", runs, "base@line@3")
    assert (code, err) == (0, "")
    assert "tags        paper" in out
    assert "metrics     loss=1.5 accuracy=0.3" in out
    assert "\\x07" in out
    assert "[40, 50]" in out
    found = shown(run, "show", runs, "base@line@3")
    assert [each["name"] for each in found["tensors"]] == ["model.layer.weight", "model.layer.bias"]
    assert [each["nbytes"] for each in found["tensors"]] == [8000, 160]
    assert found["tensors"][1]["norm"] == 0.0


def test_diff_shows_the_worst_first(run: Run, runs: Path) -> None:
    code, out, err = run("checkpoints", "diff", runs, "base@line@0", "base@line@5")
    assert (code, err) == (0, "")
    assert "1 changed, 1 equal" in out
    assert "model.layer.weight" in out
    assert "model.layer.bias" not in out
    assert "model.layer.bias" in run("checkpoints", "diff", runs, "base@line@0", "base@line@5", "--all").out
    found = shown(run, "diff", runs, "base@line@0", "base@line@5")
    with TensorStorage(runs, read_only=True) as db:
        there = db.checkpoints.diff(("base@line", 0), "base@line")
    assert found["tensors"] == [row.to_dict() for row in there.rows]
    assert found["shared_nbytes"] == there.shared_nbytes


def test_diff_takes_patterns_and_may_leave_values_out(run: Run, runs: Path) -> None:
    found = shown(run, "diff", runs, "base@line@0", "base@line", "--keys", "*.bias", "--keys", "state")
    assert [each["name"] for each in found["tensors"]] == ["model.layer.bias"]
    found = shown(run, "diff", runs, "base@line@0", HOSTILE, "--no-values")
    assert found["counts"] == {"removed": 2, "added": 1}
    assert [each["relative_l2"] for each in found["tensors"]] == [None] * 3


def test_tags_are_given_moved_and_taken_away(run: Run, own_runs: Path) -> None:
    assert run("checkpoints", "tag", own_runs, "base@line@1", "good").code == 0
    assert shown(run, "show", own_runs, "base@line@good")["step"] == 1
    code, _, err = run("checkpoints", "tag", own_runs, "base@line@2", "good")
    assert code == 2
    assert "good" in err
    assert shown(run, "tag", own_runs, "base@line@2", "good", "--force")["step"] == 2
    assert run("checkpoints", "untag", own_runs, "base@line", "good").code == 0
    assert run("checkpoints", "untag", own_runs, "base@line", "good").code == 2


def test_a_fork_begins_with_the_checkpoint(run: Run, own_runs: Path) -> None:
    found = shown(run, "fork", own_runs, "base@line@3", "tuned")
    assert (found["run"], found["step"], found["added_nbytes"]) == ("tuned", 3, 0)
    assert shown(run, "diff", own_runs, "tuned", "base@line@3")["counts"] == {"equal": 2}
    assert run("checkpoints", "fork", own_runs, "base@line@3", "tuned").code == 2


def test_rm_deletes_one_checkpoint_and_a_run_only_with_all(run: Run, own_runs: Path) -> None:
    assert shown(run, "rm", own_runs, "base@line@1")["step"] == 1
    assert steps(run, own_runs) == [0, 2, 3, 4, 5]
    code, _, err = run("checkpoints", "rm", own_runs, "base@line")
    assert code == 2
    assert "--all" in err
    assert "base@line@latest" in err
    assert steps(run, own_runs) == [0, 2, 3, 4, 5]
    assert run("checkpoints", "rm", own_runs, "base@line@latest").code == 0
    assert run("checkpoints", "rm", own_runs, "base@line@2", "--all").code == 2
    assert shown(run, "rm", own_runs, "base@line", "--all") == {"run": "base@line", "checkpoints": 4}
    assert [each["run"] for each in shown(run, "ls", own_runs)] == [HOSTILE]


def test_prune_says_what_would_go_before_it_goes(run: Run, own_runs: Path) -> None:
    options = ["base@line", "--keep-last", 1, "--keep-best", 1, "--metric", "loss"]
    before = contents(own_runs)
    planned = shown(run, "prune", own_runs, *options, "--dry-run")
    assert contents(own_runs) == before
    assert "would be deleted" in run("checkpoints", "prune", own_runs, *options, "--dry-run").out
    assert [each["step"] for each in planned["removed"]] == [0, 1, 4]
    assert [each["step"] for each in planned["kept"]] == [2, 3, 5]
    done = shown(run, "prune", own_runs, *options)
    assert done == {**planned, "dry_run": False}
    assert steps(run, own_runs) == [2, 3, 5]


def test_prune_keeps_by_age_and_by_step(run: Run, own_runs: Path) -> None:
    assert shown(run, "prune", own_runs, "base@line", "--keep-within", "2w", "--dry-run")["removed"] == []
    assert len(shown(run, "prune", own_runs, "base@line", "--keep-within", "0s", "--dry-run")["removed"]) == 4
    kept = shown(run, "prune", own_runs, "base@line", "--keep-every", 2, "--dry-run")["kept"]
    assert [each["step"] for each in kept] == [0, 2, 3, 4, 5]
    code, _, err = run("checkpoints", "prune", own_runs, "base@line")
    assert code == 2
    assert "keep" in err


def test_verify_reads_all_runs_or_one(run: Run, runs: Path) -> None:
    assert run("checkpoints", "verify", runs).out == "7 checkpoints in 8 objects read back: intact\n"
    assert shown(run, "verify", runs)["checkpoints"] == 7
    found = shown(run, "verify", runs, HOSTILE)
    assert (found["checkpoints"], found["objects"], found["ok"]) == (1, 1, True)
    assert run("checkpoints", "verify", runs, "nothing").code == 2


def test_verify_names_the_damaged_tensor_and_is_1(run: Run, own_runs: Path) -> None:
    for segment in (own_runs / "segments").iterdir():
        data = bytearray(segment.read_bytes())
        data[len(data) // 4] ^= 1
        segment.write_bytes(data)
    code, out, err = run("checkpoints", "verify", own_runs)
    assert (code, err) == (1, "")
    assert out.startswith("damaged: checkpoint ")
    assert "model.layer.weight" in out
    assert run("checkpoints", "verify", own_runs, HOSTILE).code == 0


def test_ls_of_the_database_mentions_the_runs(run: Run, own_runs: Path) -> None:
    lines = run("ls", own_runs).out.splitlines()
    assert lines[0].split() == ["run", "checkpoints", "latest", "step", "raw", "added"]
    assert lines[1].split()[:3] == ["base@line", "6", "5"]
    with TensorStorage(own_runs) as db:
        db.create_dataset("data")
    lines = run("ls", own_runs).out.splitlines()
    assert lines[1].startswith("data ")
    assert lines[4].startswith("base@line ")
    assert [each["dataset"] for each in json.loads(run("ls", own_runs, "--json").out)] == ["data"]


def test_hostile_names_reach_the_terminal_escaped(run: Run, own_runs: Path) -> None:
    for arguments in (
        ["ls", own_runs],
        ["show", own_runs, HOSTILE],
        ["diff", own_runs, HOSTILE, "base@line"],
        ["verify", own_runs],
        ["tag", own_runs, HOSTILE, "tag\x1b[0m"],
        ["show", own_runs, "not\x1b[31m"],
        ["untag", own_runs, HOSTILE, "tag\x1b[0m"],
        ["fork", own_runs, HOSTILE, "new\x1b\n"],
        ["prune", own_runs, HOSTILE, "--keep-last", 1],
        ["rm", own_runs, HOSTILE],
        ["rm", own_runs, HOSTILE, "--all"],
    ):
        _, out, err = run("checkpoints", *arguments)
        assert "\x1b" not in out + err
        assert "\x07" not in out + err
        assert out + err
    assert "\x1b" not in run("ls", own_runs).out


def test_looking_at_checkpoints_changes_nothing(run: Run, own_runs: Path) -> None:
    before = contents(own_runs)
    for line in (
        "ls",
        "show base@line",
        "diff base@line base@line@1",
        "verify",
        "prune base@line --keep-last 1 --dry-run",
    ):
        verb, *rest = line.split()
        assert run("checkpoints", verb, own_runs, *rest).code == 0
    assert contents(own_runs) == before


@pytest.mark.parametrize("verb", ALL)
def test_where_there_is_no_database_it_is_2_and_nothing_is_created(run: Run, tmp_path: Path, verb: str) -> None:
    more = {"ls": "", "show": "r", "diff": "r s", "verify": "", "prune": "r --keep-last 1", "rm": "r"}.get(verb, "r t")
    (tmp_path / "folder").mkdir()
    for name in ("folder", "missing"):
        code, out, err = run("checkpoints", verb, tmp_path / name, *more.split())
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("tensordb: there is no database in ")
    assert list((tmp_path / "folder").iterdir()) == []
    assert not (tmp_path / "missing").exists()


def test_export_and_import_go_by_way_of_safetensors(run: Run, own_runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    target = tmp_path / "model.safetensors"
    (written,) = shown(run, "export", own_runs, "base@line@3", target)
    assert written == {"file": str(target), "nbytes": target.stat().st_size}
    with TensorStorage(own_runs, read_only=True) as db:
        model = db.checkpoints.load("base@line", step=3)["model"]
    assert all(torch.equal(tensor, model[name]) for name, tensor in load_file(target).items())
    assert run("checkpoints", "export", own_runs, "base@line@3", target).code == 2
    assert run("checkpoints", "export", own_runs, "base@line@3", target, "--overwrite").code == 0
    code, out, err = run("checkpoints", "import", tmp_path / "new.tdb", target, "again", "--step", 7)
    assert (code, err) == (0, "")
    assert out.startswith("saved step 7 of again (cc")
    with TensorStorage(tmp_path / "new.tdb") as db:
        again = db.checkpoints.load("again")["model"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.items())


def test_import_reads_files_of_torch(run: Run, own_runs: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.arange(5.0)}, tmp_path / "old.pt")
    found = shown(run, "import", own_runs, tmp_path / "old.pt", "old")
    assert (found["run"], found["step"], found["tensors"]) == ("old", None, 1)
    code, out, err = run("checkpoints", "import", own_runs, tmp_path / "nothing.pt", "old")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "nothing.pt" in err
    (tmp_path / "bad.pt").write_bytes(b"no tensors")
    code, _, err = run("checkpoints", "import", own_runs, tmp_path / "bad.pt", "old")
    assert code == 2
    assert "bad.pt" in err


def test_import_that_fails_leaves_no_new_database(run: Run, tmp_path: Path) -> None:
    assert run("checkpoints", "import", tmp_path / "new.tdb", tmp_path / "nothing.pt", "r").code == 2
    assert not (tmp_path / "new.tdb").exists()


def test_a_write_to_a_database_that_another_process_holds_is_3(own_runs: Path) -> None:
    with TensorStorage(own_runs) as db, db.transaction():
        process = start("checkpoints", "tag", own_runs, "base@line", "t", "--busy-timeout", 0.2)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    assert "busy" in err


def test_the_package_is_a_program_too(runs: Path) -> None:
    command = [sys.executable, "-m", "tensordb", "checkpoints", "ls", str(runs), "base@lime"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'base@line'?" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prune {} base@line", "give --keep-last, --keep-best, --keep-every or --keep-within"),
        ("prune {} base@line --keep-last 0", "--keep-last is 0"),
        ("prune {} base@line --keep-last 1 --metric loss", "--metric 'loss' is for --keep-best"),
        ("tag {} base@line@2 paper", "--force moves it"),
        ("ls {} base@lime", "did you mean 'base@line'?"),
    ],
)
def test_errors_speak_of_options_and_not_of_arguments(run: Run, runs: Path, line: str, said: str) -> None:
    code, out, err = run("checkpoints", *line.format(runs).split())
    assert (code, out) == (2, "")
    assert said in err


def test_an_import_without_a_step_is_said_in_words(run: Run, own_runs: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    _, out, _ = run("checkpoints", "import", own_runs, tmp_path / "w.pt", "fresh")
    assert out.startswith("saved a checkpoint of fresh (")
