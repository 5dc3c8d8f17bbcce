"""torch.distributed.checkpoint in one process: what is saved, refused, shared, and never pickled."""

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import LoadPlan, SavePlanner

from tensordb import (
    CheckpointNotFoundError,
    CompressionConfig,
    ConflictError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    ReadOnlyError,
    Rule,
    StoreError,
    TensorStorage,
)
from tensordb.checkpoints.requests import Facts
from tensordb.checkpoints.roles import KeyConfigs
from tensordb.checkpoints.sharded import Wanted
from tensordb.checkpoints.tree import Leaf, flatten
from tensordb.integrations.dcp import TensorDBReader, TensorDBWriter
from tensordb.integrations.dcp_manifest import metadata_of, state_of
from tensordb.tensors import dtype_from_name

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(params=["folder", "memory"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "db" if request.param == "folder" else None) as storage:
        yield storage


def save(storage: Any, state: dict[str, Any], run: str = "run", **settings: Any) -> TensorDBWriter:
    planner = settings.pop("planner", None)
    writer = TensorDBWriter(storage, run, **settings)
    dcp.save(state, storage_writer=writer, planner=planner)
    return writer


def load(storage: Any, state: dict[str, Any], run: str = "run", **settings: Any) -> dict[str, Any]:
    planner = settings.pop("planner", None)
    dcp.load(state, storage_reader=TensorDBReader(storage, run, **settings), planner=planner)
    return state


def blank(value: Any) -> Any:
    """Return a state of the same structure without its values."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: blank(each) for key, each in value.items()}
    return None


DTYPES = ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "int8", "uint8", "int64", "bool", "complex64")


def many() -> dict[str, Any]:
    torch.manual_seed(0)
    of_dtypes = {name: (torch.randn(5, 7) * 20).abs().to(dtype_from_name(name)) for name in DTYPES}
    odd = {
        "scalar": torch.tensor(-0.0),
        "empty": torch.empty(0, 4),
        "transposed": torch.randn(6, 5).t(),
        "strided": torch.arange(40.0)[::3],
        "special": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45]),
        "large": torch.randn(700, 600),
    }
    values = {
        "count": 3,
        "rate": 0.1,
        "name": "né",
        "none": None,
        "betas": (0.9, 0.999),
        "list": [1, "two", None],
        "array": np.arange(6.0).reshape(2, 3),
        "dtype": torch.bfloat16,
        "set": {1, 2},
        "nested": (1, {"deep": torch.ones(2)}),
    }
    return {"model": of_dtypes, "odd": odd, "values": values, "mixed": [torch.ones(3), {"a": torch.zeros(2)}]}


def bits(tensor: torch.Tensor) -> Any:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def test_every_kind_of_state_comes_back_bit_equal_and_of_its_type(db: TensorStorage) -> None:
    state = many()
    save(db, state)
    found = load(db, blank(state) | {"mixed": [torch.zeros(3), {"a": torch.ones(2)}]})
    whole = db.checkpoints.load("run")
    for part in ("model", "odd"):
        for name, tensor in state[part].items():
            assert bits(found[part][name]) == bits(tensor) == bits(whole[part][name])
    for loaded in (found, whole):
        values = loaded["values"]
        assert type(values["betas"]) is tuple
        assert values["array"].dtype == np.float64
        assert (values.pop("array") == state["values"]["array"]).all()
        assert torch.equal(values["nested"][1]["deep"], torch.ones(2))
        assert {key: values[key] for key in values if key != "nested"} == {
            key: each for key, each in state["values"].items() if key not in ("array", "nested")
        }
        assert torch.equal(loaded["mixed"][0], torch.ones(3))
        assert torch.equal(loaded["mixed"][1]["a"], torch.zeros(2))
    assert db.verify().ok


def test_a_training_goes_on_where_it_was(db: TensorStorage) -> None:
    def made(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        net = torch.nn.Linear(9, 4)
        optimizer = torch.optim.AdamW(net.parameters())
        net(torch.ones(2, 9)).sum().backward()
        optimizer.step()
        return net, optimizer

    net, optimizer = made(1)
    save(db, {"model": net, "optim": optimizer})
    other, _ = made(2)
    db.checkpoints.load("run", into={"model": other})
    assert torch.equal(other.weight, net.weight)
    third, third_optimizer = made(3)
    load(db, {"model": third, "optim": third_optimizer})
    assert torch.equal(third.weight, net.weight)
    assert torch.equal(
        third_optimizer.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


def test_nothing_is_pickled_or_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("pickled")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    save(tmp_path, {"w": torch.ones(3), "epoch": 4, "list": [1, 2]})
    assert load(tmp_path, {"w": torch.zeros(3), "epoch": 0, "list": None})["epoch"] == 4
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"ctorch" not in stored
    assert b"data.pkl" not in stored


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"callback": print}, "bad.callback is a builtin_function_or_method"),
        ({"inner": [1, {2: object()}]}, "bad.inner.1.2 is a object"),
        ({"model": torch.nn.Linear(1, 1)}, "bad.model is a torch.nn.modules.linear.Linear"),
        ({"w": torch.ones(2, device="meta")}, "bad.w: a meta tensor"),
        ({"w": torch.eye(2).to_sparse()}, "bad.w: a tensor of layout torch.sparse_coo"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_path_and_nothing_is_saved(
    db: TensorStorage, bad: Any, message: str
) -> None:
    with pytest.raises(dcp.CheckpointException) as raised:
        save(db, {"w": torch.ones(3), "bad": bad})
    assert message in str(raised.value)
    assert db.checkpoints.runs() == []
    save(db, {"w": torch.ones(3)})
    assert [each.tensors for each in db.checkpoints.list("run")] == [1]


def test_equal_tensors_are_stored_once_and_changes_as_differences(db: TensorStorage) -> None:
    weight = torch.randn(200, 300).bfloat16()
    first = save(db, {"model": {"w": weight}, "step": 1}, step=1).checkpoint
    second = save(db, {"model": {"w": weight.clone()}, "step": 2}, step=2).checkpoint
    assert first is not None
    assert second is not None
    assert second.added_nbytes < 1000 < first.added_nbytes
    assert db.sql("SELECT count(DISTINCT object_id) AS n FROM tensordb.checkpoint_tensors").to_pylist() == [{"n": 1}]
    nudged = (weight.view(torch.int16) ^ (torch.rand(200, 300) < 0.01)).view(torch.bfloat16)
    save(db, {"model": {"w": nudged}, "step": 3}, step=3)
    assert torch.equal(db.checkpoints.load("run")["model"]["w"], nudged)
    assert torch.equal(db.checkpoints.load("run", step=1)["model"]["w"], weight)


def test_a_writer_makes_many_checkpoints_whose_ids_are_steps_or_runs(db: TensorStorage) -> None:
    writer = TensorDBWriter(db, "run", step=1, epoch=0.5, metrics={"loss": 2.0}, metadata={"host": "a"})
    for number in ("1", "22"):
        dcp.save({"n": torch.tensor(int(number))}, storage_writer=writer, checkpoint_id=number)
    dcp.save({"n": torch.tensor(5)}, storage_writer=writer, checkpoint_id="another run")
    assert [(each.run, each.step) for each in db.checkpoints.list()] == [("run", 1), ("run", 22), ("another run", 22)]
    found = db.checkpoints.get("run", step=1)
    assert (found.epoch, found.metrics, found.metadata) == (0.5, {"loss": 2.0}, {"host": "a"})
    reader = TensorDBReader(db, "run")
    for name, expected in (("1", 1), ("another run", 5), (found.id, 1), ("22", 22)):
        state = {"n": torch.tensor(0)}
        if name == "22":
            reader = TensorDBReader(db, "run")
        dcp.load(state, storage_reader=reader, checkpoint_id=name)
        assert state["n"] == expected
    db.checkpoints.tag("run", "good", step=1)
    assert load(db, {"n": torch.tensor(0)}, which="good")["n"] == 1


def test_presets_are_given_by_key_and_rules_match_names_of_wholes(db: TensorStorage) -> None:
    config = CompressionConfig(rules=(Rule(use="lossless", name="keep.*"),), quantization="int8")
    state = {"model": {"keep.w": torch.randn(64, 64), "w": torch.randn(64, 64)}, "optim": {"w": torch.randn(64, 64)}}
    save(db, state, preset={"model": config})
    rows = db.sql("SELECT name, quantization FROM history.tensors ORDER BY name").to_pylist()
    assert [(row["name"], row["quantization"]) for row in rows] == [
        ("model.keep.w", "none"),
        ("model.w", "int8"),
        ("optim.w", "none"),
    ]
    configs = KeyConfigs.of({"model": config}, CompressionConfig())
    assert configs.of_tensor("model.keep.w.shard(64,0)") == (config, "keep.w")


@pytest.mark.parametrize(
    "settings",
    [
        {"run": ""},
        {"run": 3},
        {"step": -1},
        {"metrics": {"loss": "low"}},
        {"preset": "no such"},
        {"preset": 7},
        {"preset": {3: "lossless"}},
    ],
)
def test_arguments_are_checked_before_anything_is_opened(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        TensorDBWriter(tmp_path / "db", **({"run": "run"} | settings))
    assert not (tmp_path / "db").exists()


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.checkpoints.save("plain", {"w": torch.ones(2)})
        save(db, {"w": torch.ones(2), "n": 1})
        for run, message in (("plain", "load it with db.checkpoints.load"), ("nowhere", "no run and no checkpoint")):
            with pytest.raises(dcp.CheckpointException) as raised:
                load(db, {"w": torch.ones(2)}, run)
            assert message in str(raised.value)
    with TensorStorage(tmp_path, read_only=True) as db:
        assert load(db, {"w": torch.zeros(2), "n": 0}) == {"w": pytest.approx([1, 1]), "n": 1}
        with pytest.raises(dcp.CheckpointException) as raised:
            save(db, {"w": torch.ones(2)})
        assert ReadOnlyError.__name__ in str(raised.value)


def test_planners_that_know_values_only_pickled_are_refused(db: TensorStorage) -> None:
    class Saving(SavePlanner):
        def __init__(self) -> None:
            self.planner = DefaultSavePlanner()

        def __getattribute__(self, name: str) -> Any:
            own = name in ("planner", "__class__", "__dict__")
            return object.__getattribute__(self, name) if own else getattr(self.planner, name)

        set_up_planner = create_local_plan = create_global_plan = finish_plan = resolve_data = None

    class Loading(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: Any) -> None:
            raise AssertionError("unpickles")

    with pytest.raises(dcp.CheckpointException) as raised:
        save(db, {"n": 1}, planner=Saving())
    assert "derive it from DefaultSavePlanner" in str(raised.value)
    save(db, {"n": 1})
    with pytest.raises(dcp.CheckpointException) as raised:
        load(db, {"n": 0}, planner=Loading())
    assert "derive it from DefaultLoadPlanner" in str(raised.value)


def test_a_state_that_the_planner_does_not_flatten_stays_as_it_is(db: TensorStorage) -> None:
    state = {"w": torch.ones(3), "nested": {"numbers": {1: 2}, "tensor": torch.zeros(2)}}
    save(db, state, planner=DefaultSavePlanner(False, False))
    found = load(db, {"w": torch.zeros(3), "nested": None}, planner=DefaultLoadPlanner(False, False))
    assert found["nested"]["numbers"] == {1: 2} == db.checkpoints.load("run")["nested"]["numbers"]
    assert torch.equal(found["nested"]["tensor"], torch.zeros(2))


def test_a_part_of_a_checkpoint_loads_with_partial_states(db: TensorStorage) -> None:
    save(db, {"model": {"a": torch.ones(3), "b": torch.ones(4)}, "n": 1})
    assert torch.equal(load(db, {"model": {"a": torch.zeros(3)}})["model"]["a"], torch.ones(3))
    with pytest.raises(dcp.CheckpointException, match=r"Missing key|model\.c"):
        load(db, {"model": {"c": torch.zeros(3)}})


class SlowWriter(TensorDBWriter):
    """Waits before it commits."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.written, self.go = threading.Event(), threading.Event()

    def finish(self, metadata: Any, results: Any) -> None:
        self.written.set()
        assert self.go.wait(60)
        super().finish(metadata, results)


def test_an_asynchronous_save_is_seen_whole_or_not_at_all_and_keeps_what_it_was_given(db: TensorStorage) -> None:
    weight = torch.ones(50, 50)
    writer = SlowWriter(db, "run")
    future = dcp.async_save({"w": weight, "n": 1}, storage_writer=writer)
    assert writer.written.wait(60)
    weight.zero_()
    assert db.checkpoints.list() == []
    db.maintenance.gc()
    writer.go.set()
    future.result()
    assert torch.equal(db.checkpoints.load("run")["w"], torch.ones(50, 50))
    assert db.verify().ok


def test_what_a_rank_wrote_survives_gc_until_the_commit_and_is_missed_if_the_rank_was_killed(tmp_path: Path) -> None:
    facts = Facts.of("run", None, None, None, None)
    with TensorStorage(tmp_path) as db:
        for killed in (True, False):
            values = torch.rand(1000)
            rank = TensorStorage(tmp_path)
            configs = db.checkpoints.sharded.configs(None)
            written = rank.checkpoints.sharded.write("run", [Leaf("w", values)], configs)
            if killed:
                rank.close()  # lets its segments go, as the system does for a process that is killed
            stand_in = torch.empty(1)
            commit = (facts, {"w": stand_in}, {stand_in.data_ptr(): written[0]}, lambda leaf_of: {}, configs)
            removed = db.maintenance.gc().segments_removed
            if killed:
                assert removed
                with pytest.raises(ConflictError, match="save it again"):
                    db.checkpoints.sharded.commit(*commit)
            else:
                assert not removed
                db.checkpoints.sharded.commit(*commit)
                rank.close()
                assert torch.equal(db.checkpoints.load("run")["w"], values)
        assert len(db.checkpoints.list("run")) == 1
        save(db, {"w": values})
        assert torch.equal(db.checkpoints.load("run")["w"], values)
        assert db.verify().ok


def test_a_checkpoint_deleted_while_it_is_loaded_is_not_found(db: TensorStorage) -> None:
    save(db, {"w": torch.ones(3)})
    sharded = db.checkpoints.sharded
    found = sharded.find("run", step=None, which="latest")
    db.checkpoints.delete("run")
    with pytest.raises(CheckpointNotFoundError, match="deleted while"):
        sharded.read(found, [Wanted(0, (slice(0, 3),), torch.zeros(3))])


def test_a_box_of_a_tensor_is_read_by_itself_into_any_target(tmp_path: Path) -> None:
    whole = torch.randn(4000, 300)
    with TensorStorage(tmp_path) as db:
        save(db, {"w": whole})
        sharded = db.checkpoints.sharded
        found = sharded.find("run", step=None, which="latest")
        target = torch.zeros(200, 10, dtype=torch.float64).t()
        sharded.read(found, [Wanted(0, (slice(3990, 4000), slice(100, 300)), target)])
        assert torch.equal(target, whole[3990:, 100:].double())
        segment = max((tmp_path / "segments").iterdir(), key=lambda path: path.stat().st_size)
        damaged = bytearray(segment.read_bytes())
        damaged[len(damaged) // 4] ^= 1  # in a chunk that the box does not touch
        segment.chmod(0o644)
        segment.write_bytes(damaged)
        target.zero_()
        sharded.read(found, [Wanted(0, (slice(3990, 4000), slice(100, 300)), target)])
        assert torch.equal(target, whole[3990:, 100:].double())
        with pytest.raises(IntegrityError, match="tensor 'w'"):
            sharded.read(found, [Wanted(0, (slice(0, 4000), slice(0, 300)), torch.zeros(4000, 300))])


def test_ranks_that_found_different_checkpoints_load_nothing(db: TensorStorage) -> None:
    readers = []
    for step in (1, 2):
        save(db, {"w": torch.ones(3)}, step=step)
        readers.append(TensorDBReader(db, "run"))
        readers[-1].read_metadata()
    plans = [reader.prepare_local_plan(LoadPlan([])) for reader in readers]
    with pytest.raises(ConflictError, match="give its step"):
        readers[0].prepare_global_plan(plans)
    assert readers[0].prepare_global_plan(plans[:1]) == plans[:1]


def test_writers_and_readers_are_sent_to_other_processes(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, compression_preset="fast") as db:
        writer = pickle.loads(pickle.dumps(TensorDBWriter(db, "run", step=3)))
        dcp.save({"w": torch.randn(9999)}, storage_writer=writer)
        assert db.sql("SELECT compression FROM history.tensors").to_pylist() == [{"compression": "planes+lz4"}]
        reader = pickle.loads(pickle.dumps(TensorDBReader(tmp_path, "run")))
        dcp.load({"w": torch.zeros(9999)}, storage_reader=reader)


def test_what_a_failed_save_wrote_is_reclaimed_once_its_writer_is_closed(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        writer = FailingWriter(db, "run")
        with pytest.raises(dcp.CheckpointException):
            dcp.save({"w": torch.rand(1000)}, storage_writer=writer)
        assert db.maintenance.gc().segments_removed == 0
        writer.close()
        assert db.maintenance.gc().segments_removed == 1
        assert db.checkpoints.runs() == []


class FailingWriter(TensorDBWriter):
    """Fails before it commits."""

    def finish(self, metadata: Any, results: Any) -> None:
        raise StoreError("no")


def test_forged_manifests_raise_errors_of_ours() -> None:
    for manifest in ({}, [1], {"kind": "torch.distributed.checkpoint", "version": 2}):
        with pytest.raises(FormatError, match=r"db\.checkpoints\.load"):
            metadata_of(flatten(manifest).document)
    head = {"kind": "torch.distributed.checkpoint", "version": 1, "planner_data": None}
    for items in (3, {"w": 3}, {"w": ("float32", False, (2,), [((0,), "x", 0)])}, {"w": ("no", False, (2,), [])}):
        with pytest.raises((IntegrityError, InvalidInputError)):
            metadata_of(flatten(head | {"items": items}).document)


MANIFEST = {"kind": "torch.distributed.checkpoint", "version": 1, "planner_data": None, "items": {}}


@pytest.mark.parametrize(
    "items",
    [
        {"w": ("float32", False, (-1,), [])},
        {"w": ("float32", False, (1 << 70,), [])},
        {"w": ("float32", False, (2,), [((0, 0), (2,), 0)])},
        {"w": ("float32", False, (2,), [((0,), (2,), -1)])},
        {"w": ("float32", False, (2,), [((0,), (2,), "0")])},
        {3: None},
    ],
)
def test_a_manifest_whose_sizes_are_none_is_refused(items: dict[Any, Any]) -> None:
    with pytest.raises(IntegrityError, match="manifest"):
        metadata_of(flatten(MANIFEST | {"items": items}).document)
    with pytest.raises(IntegrityError, match="planner_data"):
        metadata_of(flatten({key: value for key, value in MANIFEST.items() if key != "planner_data"}).document)


@pytest.mark.parametrize("path", [("list", 10**12), ("list", -1), ("a", *range(5000)), ("a", (1, 2)), ("a", None)])
def test_places_that_a_manifest_makes_up_take_no_memory(path: tuple[Any, ...]) -> None:
    planned = MANIFEST | {"items": {"x": None}, "planner_data": {"x": path}}
    state = state_of(metadata_of(flatten(planned).document), lambda name, item: name)
    assert state in ({"x": "x"}, {"list": {path[1]: "x"}})


def test_importing_tensordb_does_not_load_distributed_checkpoints() -> None:
    program = "import sys, tensordb; assert 'torch.distributed.checkpoint' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
