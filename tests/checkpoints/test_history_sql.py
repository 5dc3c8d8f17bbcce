"""The history of runs as SQL: one query for each question, on real checkpoints; and how it shows itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tensordb import CheckpointNotFoundError, InvalidInputError, TensorStorage

RUNS = "<b>base", "wide"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorStorage]:
    """Two runs of real training steps, the second forked from the first at step 2."""
    folder = tmp_path_factory.mktemp("history") / "runs.tdb"
    with TensorStorage(folder) as opened:
        train(opened, RUNS[0], range(4), 0.1)
        opened.checkpoints.tag(RUNS[0], "paper", step=2)
        opened.checkpoints.fork(RUNS[0], 2, RUNS[1])
        train(opened, RUNS[1], range(3, 6), 0.01)
    with TensorStorage(folder, read_only=True) as opened:
        yield opened


def train(db: TensorStorage, run: str, steps: range, lr: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for step in steps:
        optimizer.zero_grad()
        model(torch.ones(8, 30)).square().sum().backward()
        optimizer.step()
        metrics = {"loss": (step - 1) ** 2, "accuracy": float("nan") if step == 3 else step / 10}
        metadata = {"lr": lr, "tags": ["a", None], "note": run}
        db.checkpoints.save(run, model, optimizer=optimizer, step=step, metrics=metrics, metadata=metadata, rng=False)


def rows(db: TensorStorage, query: str, *params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = db.sql(query, list(params) or None).to_pylist()
    return found


def test_the_best_step_of_each_run_is_one_query(db: TensorStorage) -> None:
    found = rows(
        db,
        "SELECT run, arg_min(step, metrics['loss']) AS step, min(metrics['loss']) AS loss "
        "FROM history.checkpoints GROUP BY run ORDER BY run",
    )
    assert found == [{"run": RUNS[0], "step": 1, "loss": 0.0}, {"run": RUNS[1], "step": 2, "loss": 1.0}]
    for each in found:
        assert db.checkpoints.best("loss", each["run"]).step == each["step"]


def test_nan_is_no_best_value_when_it_is_left_out(db: TensorStorage) -> None:
    (found,) = rows(
        db,
        "SELECT arg_max(step, metrics['accuracy']) AS step FROM history.checkpoints "
        "WHERE run = ? AND NOT isnan(metrics['accuracy'])",
        RUNS[0],
    )
    assert found["step"] == db.checkpoints.best("accuracy", RUNS[0], mode="max").step == 2


def test_a_metric_that_no_checkpoint_has_is_null(db: TensorStorage) -> None:
    assert rows(db, "SELECT count(metrics['bleu']) AS n FROM history.checkpoints") == [{"n": 0}]


def test_the_size_of_a_run_over_time_is_one_query(db: TensorStorage) -> None:
    found = rows(
        db,
        "SELECT step, created_at, sum(added_nbytes) OVER (ORDER BY created_at) AS total "
        "FROM history.checkpoints WHERE run = ? ORDER BY step",
        RUNS[0],
    )
    sizes = [each.added_nbytes for each in db.checkpoints.list(RUNS[0])]
    assert [int(each["total"]) for each in found] == [sum(sizes[: n + 1]) for n in range(4)]


def test_the_norms_of_a_tensor_over_steps_are_one_query(db: TensorStorage) -> None:
    found = rows(
        db,
        "SELECT step, norm FROM history.tensors WHERE run = ? AND name = 'model.weight' ORDER BY step",
        RUNS[0],
    )
    for each in found:
        weight = db.checkpoints.load(RUNS[0], step=each["step"], keys="model.weight")["model"]["weight"]
        assert each["norm"] == pytest.approx(float(weight.double().norm()))
    assert len(found) == 4


def test_metadata_is_json_by_name(db: TensorStorage) -> None:
    found = rows(
        db,
        "SELECT DISTINCT run, (metadata->>'lr')::DOUBLE AS lr, metadata->'tags'->>0 AS tag FROM history.checkpoints "
        "WHERE metadata->>'note' = run ORDER BY run",
    )
    assert found == [{"run": RUNS[0], "lr": 0.1, "tag": "a"}, {"run": RUNS[1], "lr": 0.01, "tag": "a"}]


def test_views_have_the_columns_that_are_documented(db: TensorStorage) -> None:
    documented = " ".join((TensorStorage.sql.__doc__ or "").replace("`", " ").replace(",", " ").split())
    for view in ("runs", "checkpoints", "tensors"):
        names = db.sql(f"SELECT * FROM history.{view} LIMIT 0").column_names
        start = documented.index(f"history.{view} has")
        section = documented[start : documented.find(" history.", start + 10)].split()
        assert [name for name in names if name not in section] == []


def test_checkpoints_in_sql_are_those_of_the_library(db: TensorStorage) -> None:
    found = rows(db, "SELECT * FROM history.checkpoints ORDER BY created_at")
    listed = db.checkpoints.list()
    assert [each["checkpoint_id"] for each in found] == [each.id for each in listed]
    assert [each["parent_id"] for each in found] == [each.parent_id for each in listed]
    assert [tuple(each["tags"]) for each in found] == [each.tags for each in listed]
    assert [each["added_nbytes"] for each in found] == [each.added_nbytes for each in listed]


def test_the_tensors_of_a_checkpoint_are_found_by_its_id_in_order(db: TensorStorage) -> None:
    last = db.checkpoints.get(RUNS[1])
    found = rows(db, "SELECT role, name, shape FROM history.tensors WHERE checkpoint_id = ? ORDER BY position", last.id)
    assert [each["name"] for each in found[:2]] == ["model.weight", "model.bias"]
    assert {each["role"] for each in found} == {"model", "optimizer"}
    assert len(found) == last.tensors


def test_equal_tensors_of_different_runs_have_one_content_id(db: TensorStorage) -> None:
    (found,) = rows(
        db,
        "SELECT count(*) AS n, count(DISTINCT content_id) AS contents FROM history.tensors "
        "WHERE name = 'model.weight' AND step = 2",
    )
    assert found == {"n": 2, "contents": 1}


def test_runs_have_their_totals(db: TensorStorage) -> None:
    found = rows(db, "SELECT * FROM history.runs ORDER BY run")
    assert [(each["run"], each["checkpoints"], each["latest_step"]) for each in found] == [
        (RUNS[0], 4, 3),
        (RUNS[1], 4, 5),
    ]
    listed = db.checkpoints.list(RUNS[0])
    assert found[0]["nbytes"] == sum(each.nbytes for each in listed)
    assert found[0]["latest_at"] == listed[-1].created_at.replace(tzinfo=None)


def test_views_are_joined_by_the_checkpoint_id(db: TensorStorage) -> None:
    assert rows(db, "SELECT count(*) AS n FROM history.tensors t JOIN history.checkpoints c USING (checkpoint_id)") == [
        {"n": sum(each.tensors for each in db.checkpoints.list())}
    ]


def test_a_notebook_shows_runs_and_lists_as_escaped_tables(db: TensorStorage) -> None:
    for shown in (db.checkpoints._repr_html_(), db.checkpoints.list()._repr_html_(), db.checkpoints.log(RUNS[1])[0]):
        text = shown if isinstance(shown, str) else shown._repr_html_()
        assert text.startswith("<table>")
        assert "<b>" not in text
    assert "&lt;b&gt;base" in db.checkpoints._repr_html_()
    assert db.checkpoints.list()._repr_html_().count("<tr>") == 9


def test_a_notebook_shows_part_of_a_long_list(db: TensorStorage) -> None:
    many = db.checkpoints.list()
    many.extend(many[:1] * 1000)
    assert many._repr_html_().count("<tr>") < 200
    assert "more" in many._repr_html_()


def test_an_empty_history_is_empty_everywhere() -> None:
    with TensorStorage(None) as db:
        for view in ("runs", "checkpoints", "tensors"):
            assert rows(db, f"SELECT * FROM history.{view}") == []
        assert db.checkpoints._repr_html_().count("<tr>") == 1
        assert db.checkpoints.list()._repr_html_().count("<tr>") == 1


def test_a_run_that_is_named_like_an_id_does_not_stand_in_for_the_checkpoint() -> None:
    with TensorStorage(None) as db:
        first = db.checkpoints.save("r", {"w": torch.zeros(1)}, step=1)
        db.checkpoints.save(first.id, {"w": torch.ones(1)}, step=2)
        assert db.checkpoints.get(first) == first
        assert db.checkpoints.get(first.id).step == 2
        with pytest.raises(InvalidInputError, match="is a checkpoint already"):
            db.checkpoints.get(first, step=2)
        db.checkpoints.delete(first)
        with pytest.raises(CheckpointNotFoundError):
            db.checkpoints.get(first)
