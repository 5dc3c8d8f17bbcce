"""Comparing two checkpoints: which tensors differ, how far, and what they share."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tensordb import CheckpointNotFoundError, IntegrityError, InvalidInputError, MissingDependencyError, TensorStorage
from tensordb.checkpoints import comparing
from tensordb.checkpoints.diff import CheckpointDiff, TensorDiff
from tensordb.tensors import _BY_NAME


def save(db: TensorStorage, run: str, step: int, model: Any, **more: Any) -> Any:
    return db.checkpoints.save(run, model, step=step, rng=False, **more)


def compared(db: TensorStorage, a: Any, b: Any) -> TensorDiff:
    """Compare two tensors of one name."""
    save(db, "a", 1, {"x": a})
    save(db, "b", 1, {"x": b})
    (row,) = db.checkpoints.diff("a", "b").rows
    return row


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_tensor_is_equal_changed_added_removed_or_of_another_spec(db: TensorStorage) -> None:
    same = numbers(0, 50)
    save(db, "r", 1, {"same": same, "moved": numbers(1, 9), "gone": same + 1, "wider": numbers(2, 4)})
    save(db, "r", 2, {"new": numbers(3, 2), "moved": numbers(4, 9), "same": same, "wider": numbers(2, 5)})
    found = db.checkpoints.diff(("r", 1), ("r", 2))
    assert [(row.name, row.change) for row in found.rows] == [
        ("model.new", "added"),
        ("model.moved", "changed"),
        ("model.same", "equal"),
        ("model.wider", "spec changed"),
        ("model.gone", "removed"),
    ]
    assert found.counts == {"spec changed": 1, "removed": 1, "added": 1, "changed": 1, "equal": 1}
    assert (found.a.step, found.b.step) == (1, 2)
    assert [row.name for row in found.worst_first] == [f"model.{n}" for n in ("wider", "gone", "new", "moved", "same")]
    added, _, equal, wider, gone = found.rows
    assert (added.spec_a, gone.spec_b, added.relative_l2, gone.relative_l2) == (None, None, None, None)
    assert (equal.relative_l2, equal.max_abs) == (0.0, 0.0)
    assert wider.spec_a is not None
    assert wider.spec_b is not None
    assert (wider.spec_a.shape, wider.spec_b.shape, wider.relative_l2) == ((4,), (5,), None)


def test_figures_are_those_of_float64(db: TensorStorage) -> None:
    a = numbers(0, 700, 900)
    b = a + 0.01 * numbers(1, 700, 900)
    row = compared(db, a, b)
    x, y = a.double(), b.double()
    assert row.relative_l2 == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-12)
    assert row.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), rel=1e-12)
    assert row.max_abs == float((x - y).abs().max())
    assert row.not_finite == 0


def test_every_dtype_is_compared(db: TensorStorage) -> None:
    a, b = ({}, {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf")
        for name, dtype in _BY_NAME.items():
            a[name] = torch.tensor([1.0, 0.0, 1.0, 1.0]).to(dtype)
            b[name] = torch.tensor([1.0, 1.0, 1.0, 1.0]).to(dtype)
        save(db, "a", 1, a)
        save(db, "b", 1, b)
        rows = db.checkpoints.diff("a", "b").rows
    assert [row.name for row in rows] == [f"model.{name}" for name in _BY_NAME]
    for row in rows:
        assert row.change == "changed", row
        if row.name == "model.float8_e8m0fnu":  # which has no zero
            continue
        assert row.max_abs == 1.0, row
        assert row.relative_l2 == pytest.approx(math.sqrt(1 / 3)), row
        assert row.cosine == pytest.approx(3 / math.sqrt(12)), row


def test_integers_beyond_float64_are_told_apart(db: TensorStorage) -> None:
    big = 1 << 62
    assert compared(db, torch.tensor([big, big]), torch.tensor([big, big + 1])).max_abs == 1.0
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    assert compared(db, torch.tensor([low]), torch.tensor([high])).max_abs == float(1 << 64)


@pytest.mark.parametrize("factor", [1e300, 1e-310, 1.0])
def test_floats_whose_squares_overflow_or_vanish_are_measured(db: TensorStorage, factor: float) -> None:
    a = torch.tensor([3.0, 4.0], dtype=torch.float64) * factor
    row = compared(db, a, a * torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert row.relative_l2 == pytest.approx(0.8)
    assert row.cosine == pytest.approx((9 + 32) / 5 / math.sqrt(9 + 64))


def test_what_is_not_finite_is_counted_and_left_out(db: TensorStorage) -> None:
    nan, inf = math.nan, math.inf
    row = compared(db, torch.tensor([3.0, 4.0, nan, inf, 1.0]), torch.tensor([3.0, 5.0, nan, -inf, inf]))
    assert (row.not_finite, row.max_abs, row.relative_l2) == (3, 1.0, 0.2)
    row = compared(db, torch.tensor([nan]), torch.tensor([inf]))
    assert (row.change, row.not_finite) == ("changed", 1)
    assert (row.relative_l2, row.cosine, row.max_abs) == (None, None, None)


def test_zero_tensors_have_no_angle_and_grow_without_bound(db: TensorStorage) -> None:
    row = compared(db, torch.zeros(3), torch.ones(3))
    assert (row.relative_l2, row.cosine, row.max_abs) == (math.inf, None, 1.0)
    row = compared(db, torch.zeros(3), -torch.zeros(3))
    assert (row.change, row.relative_l2, row.cosine) == ("changed", 0.0, None), "other bits, the same numbers"


def test_nan_of_equal_bits_is_equal(db: TensorStorage) -> None:
    assert compared(db, torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0])).change == "equal"


def test_tensors_of_few_or_no_elements_are_compared(db: TensorStorage) -> None:
    shapes = [(), (0,), (3, 0, 2), (1, 1)]
    save(db, "a", 1, {str(shape): torch.ones(shape) for shape in shapes})
    save(db, "b", 1, {str(shape): torch.ones(shape) + 1 for shape in shapes})
    assert {row.change for row in db.checkpoints.diff("a", "a").rows} == {"equal"}
    assert [row.change for row in db.checkpoints.diff("a", "b").rows] == ["changed", "equal", "equal", "changed"]


def test_another_dtype_of_the_same_shape_is_measured_too(db: TensorStorage) -> None:
    a = numbers(0, 100)
    row = compared(db, a, a.bfloat16())
    assert row.change == "spec changed"
    assert row.relative_l2 is not None
    assert 0 < row.relative_l2 < 2**-8


def test_equal_values_stored_by_different_presets_are_equal(db: TensorStorage) -> None:
    half = numbers(0, 64, 64).half().float()
    save(db, "a", 1, {"x": half}, preset="lossless")
    save(db, "b", 1, {"x": half}, preset="fp16_only")
    (row,) = db.checkpoints.diff("a", "b").rows
    assert (row.change, row.relative_l2) == ("equal", 0.0)


def test_a_tensor_larger_than_a_piece_gives_the_same_figures(
    db: TensorStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(40, 300), (2, 3, 2000), (12000,), (1, 1, 12000), (3, 4000)]
    state = {str(shape): numbers(0, *shape).double() for shape in shapes}
    save(db, "a", 1, state)
    save(db, "b", 1, {name: a + 0.1 * numbers(1, *a.shape) for name, a in state.items()})
    at_once = db.checkpoints.diff("a", "b").rows
    monkeypatch.setattr(comparing, "_PIECE_NBYTES", 4096)
    in_pieces = db.checkpoints.diff("a", "b").rows
    assert [row.name for row in in_pieces] == [f"model.{shape}" for shape in shapes]
    for pieces, whole in zip(in_pieces, at_once, strict=True):
        assert pieces.max_abs == whole.max_abs
        assert pieces.relative_l2 == pytest.approx(whole.relative_l2, rel=1e-12)
        assert pieces.cosine == pytest.approx(whole.cosine, rel=1e-12)


def test_without_values_nothing_is_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "runs.tdb"
    with TensorStorage(folder) as db:
        save(db, "r", 1, {"x": numbers(0, 5000), "y": numbers(2, 5000)})
        save(db, "r", 2, {"x": numbers(1, 5000), "y": numbers(2, 5000)})
    for segment in (folder / "segments").iterdir():
        segment.write_bytes(b"")
    with TensorStorage(folder, read_only=True) as db:
        x, y = db.checkpoints.diff(("r", 1), "r", values=False).rows
    assert (x.change, x.relative_l2, x.max_abs, x.not_finite) == ("changed", None, None, None)
    assert (y.change, y.shared_nbytes) == ("equal", y.stored_nbytes)


def test_equal_tensors_are_equal_without_reading_them(tmp_path: Path) -> None:
    folder = tmp_path / "runs.tdb"
    with TensorStorage(folder) as db:
        save(db, "r", 1, {"x": numbers(0, 5000)})
        db.checkpoints.fork("r", None, "other")
    for segment in (folder / "segments").iterdir():
        segment.write_bytes(b"")
    with TensorStorage(folder, read_only=True) as db:
        assert db.checkpoints.diff("r", "other").counts == {"equal": 1}


def test_damage_is_an_error_that_names_the_tensor_and_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "runs.tdb"
    with TensorStorage(folder) as db:
        save(db, "a", 1, {"x": numbers(0, 5000)})
        save(db, "b", 1, {"x": numbers(1, 5000)})
    for segment in (folder / "segments").iterdir():
        data = bytearray(segment.read_bytes())
        data[len(data) // 4] ^= 1
        segment.write_bytes(data)
    with (
        TensorStorage(folder, read_only=True) as db,
        pytest.raises(IntegrityError, match=r"'model\.x' of checkpoint step 1 of run"),
    ):
        db.checkpoints.diff("a", "b")


def test_shared_bytes_are_those_of_the_same_object_and_of_bases(db: TensorStorage) -> None:
    a = numbers(0, 200, 300)
    save(db, "r", 1, {"w": a, "same": a + 1})
    save(db, "r", 2, {"w": a * (1 + 1e-6), "same": a + 1})
    found = db.checkpoints.diff(("r", 1), ("r", 2))
    w, same = found.rows
    assert db.sql("SELECT deltas FROM history.tensors WHERE step = 2 AND name = 'model.w'").to_pylist() == [
        {"deltas": 1}
    ]
    (base,) = db.sql("SELECT stored_nbytes FROM history.tensors WHERE step = 1 AND name = 'model.w'").to_pylist()
    assert w.shared_nbytes == base["stored_nbytes"] > w.stored_nbytes
    assert same.shared_nbytes == same.stored_nbytes
    assert found.shared_nbytes == w.shared_nbytes + same.stored_nbytes
    assert found.stored_nbytes == found.shared_nbytes + w.stored_nbytes


def test_a_tensor_tied_in_one_checkpoint_only_meets_itself(db: TensorStorage) -> None:
    shared = numbers(0, 30)
    save(db, "tied", 1, {"embed": shared, "head": shared})
    save(db, "free", 1, {"embed": shared.clone(), "head": shared + 1})
    rows = {row.name: row.change for row in db.checkpoints.diff("tied", "free").rows}
    assert rows == {"model.embed": "equal", "model.head": "changed"}


def test_sparse_and_overlapping_tensors_are_compared_by_their_parts(db: TensorStorage) -> None:
    base = numbers(0, 30)
    for run, scale in (("a", 1.0), ("b", 2.0)):
        moved = base * scale
        sparse = torch.tensor([[0.0, scale], [3.0, 0.0]]).to_sparse()
        save(db, run, 1, {"low": moved[:20], "high": moved[10:], "sparse": sparse})
    rows = {row.name: row for row in db.checkpoints.diff("a", "b").rows}
    assert rows["model.sparse.indices"].change == "equal"
    assert rows["model.sparse.values"].change == "changed"
    (storage,) = [row for name, row in rows.items() if "low" in name]
    assert storage.relative_l2 == pytest.approx(1.0)


def test_checkpoints_are_named_by_run_id_value_step_and_tag(db: TensorStorage) -> None:
    first = save(db, "r", 1, {"x": torch.zeros(1)}, metrics={"loss": 1.0})
    second = save(db, "r", 2, {"x": torch.ones(1)}, metrics={"loss": 2.0})
    db.checkpoints.tag(second, "final")
    for a in (first, first.id, ("r", 1), ("r", "best")):
        for b in (second, second.id, "r", ("r", None), ("r", "latest"), ("r", "final")):
            found = db.checkpoints.diff(a, b)
            assert (found.a.id, found.b.id) == (first.id, second.id)


def test_keys_choose_what_is_compared(db: TensorStorage) -> None:
    save(db, "r", 1, {"enc.w": torch.zeros(1), "dec.w": torch.zeros(1)}, state={"x": torch.zeros(1)})
    assert [row.name for row in db.checkpoints.diff("r", "r", keys="model").rows] == ["model.enc.w", "model.dec.w"]
    assert [row.name for row in db.checkpoints.diff("r", "r", keys=["*enc*", "state"]).rows] == [
        "model.enc.w",
        "state.x",
    ]
    assert db.checkpoints.diff("r", "r", keys=[]).rows == ()
    assert "no tensors" in repr(db.checkpoints.diff("r", "r", keys=[]))


def test_what_names_no_checkpoint_is_refused(db: TensorStorage) -> None:
    save(db, "r", 1, {"x": torch.zeros(1)})
    wrong: list[Any] = [("r",), ("r", 1, 2), ("r", 1.5), ("r", -1), (7, 1), 7, None, b"r"]
    for bad in wrong:
        with pytest.raises(InvalidInputError):
            db.checkpoints.diff("r", bad)
        with pytest.raises(InvalidInputError):
            db.checkpoints.diff(bad, "r")


def test_a_checkpoint_that_is_not_there_is_named(db: TensorStorage) -> None:
    save(db, "r", 1, {"x": torch.zeros(1)})
    nowhere: list[Any] = ["nothing", ("r", 5), ("r", "no-tag"), ("s", 1)]
    for unknown, named in zip(nowhere, ("nothing", "step 5", "no-tag", "'s'"), strict=True):
        with pytest.raises(CheckpointNotFoundError, match=named):
            db.checkpoints.diff("r", unknown)


def both(db: TensorStorage) -> CheckpointDiff:
    save(db, "<b>r\x1b", 1, {"layer0.w": numbers(0, 20), "layer1.w": torch.zeros(20), "n\x07$<i>": numbers(1, 4)})
    save(db, "<b>r\x1b", 2, {"layer0.w": numbers(0, 20) * 1.25, "layer1.w": torch.ones(20), "n\x07$<i>": numbers(1, 4)})
    return db.checkpoints.diff(("<b>r\x1b", 1), "<b>r\x1b")


def test_the_text_is_aligned_with_the_worst_first_and_nothing_a_terminal_obeys(db: TensorStorage) -> None:
    lines = repr(both(db)).splitlines()
    assert lines[0] == r"CheckpointDiff: '<b>r\x1b' step 1 → '<b>r\x1b' step 2"
    assert lines[1].startswith("2 changed, 1 equal; ")
    assert [line.split()[:3] for line in lines[3:]] == [
        ["model.layer1.w", "changed", "inf"],
        ["model.layer0.w", "changed", "0.25"],
    ]
    assert len({len(line) for line in lines[2:]}) == 1
    assert "\x1b" not in repr(both(db))


def test_the_html_is_escaped(db: TensorStorage) -> None:
    text = both(db)._repr_html_()
    assert "<b>" not in text
    assert "<i>" not in text
    assert "model.layer1.w" in text


def test_a_thousand_tensors_are_shown_in_part(db: TensorStorage) -> None:
    save(db, "a", 1, {f"w{i}": torch.zeros(1) for i in range(1000)})
    save(db, "b", 1, {f"w{i}": torch.ones(1) for i in range(1000)})
    found = db.checkpoints.diff("a", "b")
    assert len(repr(found).splitlines()) < 40
    assert "970 more" in repr(found)
    assert found._repr_html_().count("<tr>") < 40
    assert len(found.rows) == 1000


def test_rows_go_to_arrow_and_pandas(db: TensorStorage) -> None:
    found = both(db)
    table = found.to_arrow()
    assert table.column("relative_l2").to_pylist() == [row.relative_l2 for row in found.rows]
    assert table.column("shape_a").to_pylist() == [[20], [20], [4]]
    assert table.column_names == list(found.rows[0].to_dict())
    frame = pytest.importorskip("pandas") and found.to_pandas()
    assert list(frame["change"]) == ["changed", "changed", "equal"]
    assert db.checkpoints.diff("<b>r\x1b", "<b>r\x1b", keys=[]).to_arrow().schema == table.schema


def test_values_of_a_comparison_are_frozen(db: TensorStorage) -> None:
    found = both(db)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows[0].change = "equal"  # type: ignore[misc]


def test_the_plot_shows_each_layer_in_order(db: TensorStorage) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    ax = both(db).plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["model.layer0", "model.layer1", "model"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.25, 0.25, 0.0])
    assert [bar.get_hatch() for bar in ax.patches] == [None, "//", None]
    ax.figure.canvas.draw()
    assert both(db).plot(ax) is ax
    pyplot.close(ax.figure)
    empty = db.checkpoints.diff("<b>r\x1b", "<b>r\x1b", keys=[]).plot()
    empty.figure.canvas.draw()
    pyplot.close(empty.figure)


@pytest.mark.parametrize(("package", "call"), [("matplotlib", "plot"), ("pandas", "to_pandas")])
def test_a_missing_package_is_named_with_how_to_get_it(
    db: TensorStorage, monkeypatch: pytest.MonkeyPatch, package: str, call: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"{package}.*pip install"):
        getattr(both(db), call)()
