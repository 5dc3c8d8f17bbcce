"""Less on disk: equal tensors once, differences from checkpoints before; deleting never takes what others need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tensordb import TensorStorage
from tensordb.checkpoints import saving
from tensordb.engine import contents


def drift(weight: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return weight + 1e-6 * torch.randn(weight.shape, generator=generator)


def nudged(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """Return weights in bfloat16 of which a few percent moved to a neighbour."""
    generator = torch.Generator().manual_seed(seed)
    return (weight.float() * (1 + 1e-3 * torch.randn(weight.shape, generator=generator))).bfloat16()


def deltas(db: TensorStorage, run: str) -> list[int]:
    """Return how many deltas the chain of the tensor "w" has up to each checkpoint, 0 where it is stored by itself."""
    rows = db.sql("SELECT deltas FROM history.tensors WHERE run = ? AND name = 'model.w' ORDER BY checkpoint_id", [run])
    return [row["deltas"] for row in rows.to_pylist()]


def payload_nbytes(db: TensorStorage) -> int:
    """Return the bytes of all objects, each counted once."""
    return int(db.sql("SELECT coalesce(sum(stored_nbytes), 0) AS n FROM tensordb.objects").to_pylist()[0]["n"])


def test_equal_tensors_are_stored_once_over_all_runs(db: TensorStorage) -> None:
    frozen, head = torch.randn(20_000), torch.randn(100)
    first = db.checkpoints.save("a", {"frozen": frozen, "copy": frozen.clone(), "head": head}, rng=False)
    before = payload_nbytes(db)
    again = db.checkpoints.save("a", {"frozen": frozen, "copy": frozen.clone(), "head": head}, rng=False)
    other = db.checkpoints.save("b", {"frozen": frozen, "head": head + 1}, rng=False)
    assert first.stored_nbytes < 1.1 * 80_000
    assert again.added_nbytes < 1000
    assert other.added_nbytes < 2000
    assert payload_nbytes(db) - before < 2000
    loaded = db.checkpoints.load("b")["model"]
    assert torch.equal(loaded["frozen"], frozen)
    db.checkpoints.delete_run("a")
    assert torch.equal(db.checkpoints.load("b")["model"]["frozen"], frozen)
    db.checkpoints.delete_run("b")
    assert payload_nbytes(db) == 0


def test_a_tensor_that_changed_little_is_a_difference_read_with_one_base(db: TensorStorage) -> None:
    weight, expected = torch.randn(50_000).bfloat16(), []
    for step in range(12):
        weight = nudged(weight, step)
        expected.append(weight)
        db.checkpoints.save("run", {"w": weight}, step=step, rng=False)
    assert deltas(db, "run").count(0) <= 3
    bases = db.sql("SELECT count(*) AS n FROM tensordb.deltas a JOIN tensordb.deltas b ON a.base_id = b.object_id")
    assert bases.to_pylist() == [{"n": 0}]
    for step, tensor in enumerate(expected):
        assert torch.equal(db.checkpoints.load("run", step=step)["model"]["w"], tensor)
    assert db.verify().ok


def test_a_new_chain_begins_when_the_tensor_has_moved_too_far(db: TensorStorage) -> None:
    weight = torch.randn(50_000)
    for step in range(12):
        weight = weight + 3.0**step * 1e-7 * torch.randn(50_000)
        db.checkpoints.save("run", {"w": weight}, step=step, rng=False)
        assert torch.equal(db.checkpoints.load("run")["model"]["w"], weight)
    lengths = deltas(db, "run")
    assert max(lengths) >= 1
    assert 0 in lengths[1:]


def test_a_chain_is_bounded_in_length(db: TensorStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_DELTAS", 2)
    weight = torch.randn(20_000).bfloat16()
    for step in range(5):
        db.checkpoints.save("run", {"w": nudged(weight, step)}, step=step, rng=False)
    assert deltas(db, "run") == [0, 1, 2, 0, 1]


def test_deleting_a_base_keeps_its_children_readable_and_frees_it_with_the_last(db: TensorStorage) -> None:
    weight, expected = torch.randn(30_000).bfloat16(), []
    for step in range(4):
        weight = nudged(weight, step)
        expected.append(weight)
        db.checkpoints.save("run", {"w": weight}, step=step, rng=False)
    assert deltas(db, "run")[-1] > 0
    for step in (0, 2, 1):
        db.checkpoints.delete("run", step=step)
        assert torch.equal(db.checkpoints.load("run", step=3)["model"]["w"], expected[3])
        assert db.verify().ok
    db.maintenance.compact()
    assert torch.equal(db.checkpoints.load("run", step=3)["model"]["w"], expected[3])
    db.checkpoints.delete("run", step=3)
    assert payload_nbytes(db) == 0


@pytest.mark.parametrize("preset", ["none", "fast"])
def test_who_names_a_codec_gets_no_differences(db: TensorStorage, preset: str) -> None:
    weight = torch.randn(30_000)
    for step in range(3):
        db.checkpoints.save("run", {"w": drift(weight, step)}, step=step, preset=preset)
    assert deltas(db, "run") == [0, 0, 0]


def test_a_tensor_of_another_shape_or_dtype_has_no_base(db: TensorStorage) -> None:
    weight = torch.randn(30_000)
    for state in (weight, weight.reshape(300, 100), weight.double(), weight[:-1]):
        db.checkpoints.save("run", {"w": state}, rng=False)
        assert torch.equal(db.checkpoints.load("run")["model"]["w"], state)


def test_lossy_codes_may_be_differences_and_decode_to_what_was_stored(db: TensorStorage) -> None:
    weight = torch.randn(64, 1024)
    alone = {}
    for step in range(3):
        weight = drift(weight, step)
        db.checkpoints.save("run", {"w": weight}, step=step, preset="maximum", rng=False)
        db.checkpoints.save(f"alone{step}", {"w": weight}, preset="maximum", rng=False)
        alone[step] = db.checkpoints.load(f"alone{step}")["model"]["w"]
    for step, tensor in alone.items():
        assert torch.equal(db.checkpoints.load("run", step=step)["model"]["w"], tensor)


def test_what_datasets_hold_is_shared_and_outlives_either(db: TensorStorage) -> None:
    weight = torch.randn(100_000)
    db.create_dataset("d")
    db.insert("d", weight, record_id="w")
    saved = db.checkpoints.save("run", {"w": weight}, rng=False)
    assert saved.added_nbytes < 1000
    db.delete_dataset("d")
    assert torch.equal(db.checkpoints.load("run")["model"]["w"], weight)
    db.create_dataset("d")
    db.insert("d", weight, record_id="w")
    db.checkpoints.delete_run("run")
    assert torch.equal(db.get_tensor_by_id("d", "w").tensor, weight)


def test_a_base_deleted_by_others_while_a_checkpoint_is_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(30_000).bfloat16()
    changed = nudged(weight, 1)
    with TensorStorage(tmp_path) as db, TensorStorage(tmp_path) as other:
        db.checkpoints.save("run", {"w": weight, "same": torch.ones(5000)}, step=0, rng=False)
        commit = saving.commit
        raced = []

        def late(*arguments: object) -> object:
            if not raced:
                raced.append(other.checkpoints.delete_run("run"))
            return commit(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(saving, "commit", late)
        db.checkpoints.save("run", {"w": changed, "same": torch.ones(5000)}, step=1, rng=False)
        assert raced == [1]
        loaded = db.checkpoints.load("run")["model"]
        assert torch.equal(loaded["w"], changed)
        assert torch.equal(loaded["same"], torch.ones(5000))
        assert db.verify().ok


def test_a_damaged_base_is_named_by_every_tensor_that_needs_it_and_is_no_base_for_new_ones(tmp_path: Path) -> None:
    weight = torch.randn(30_000).bfloat16()
    states = [nudged(weight, step) for step in range(3)]
    with TensorStorage(tmp_path) as db:
        for step in (0, 1):
            db.checkpoints.save("run", {"w": states[step]}, step=step, rng=False)
        assert deltas(db, "run") == [0, 1]
        place = db.sql(
            "SELECT segment, position, stored_nbytes AS n FROM tensordb.objects ORDER BY stored_nbytes DESC"
        ).to_pylist()[0]
    (path,) = (tmp_path / "segments").glob(f"{place['segment']:016x}.seg")
    data = bytearray(path.read_bytes())
    data[place["position"] + place["n"] // 2] ^= 1
    path.write_bytes(data)
    with TensorStorage(tmp_path) as db:
        report = db.verify()
        assert [(each.step, each.name) for each in report.damaged_tensors] == [(0, "model.w"), (1, "model.w")]
        assert not report.ok
        db.checkpoints.save("run", {"w": states[2]}, step=2, rng=False)
        assert torch.equal(db.checkpoints.load("run")["model"]["w"], states[2])


def test_a_fork_shares_every_byte_and_lives_by_itself(db: TensorStorage) -> None:
    model = nn.Linear(200, 200)
    db.checkpoints.save("run", model, step=1)
    before = payload_nbytes(db)
    forked = db.checkpoints.fork("run", 1, "copy")
    assert (forked.run, forked.step, forked.added_nbytes) == ("copy", 1, 0)
    assert payload_nbytes(db) == before
    db.checkpoints.delete_run("run")
    assert torch.equal(db.checkpoints.load("copy")["model"]["weight"], model.weight)
