"""Mixed precision: what a config's rules say is what each record's encoding shows."""

import pickle
from pathlib import Path

import pytest
import torch

from tensordb import CompressionConfig, InvalidInputError, Rule, TensorStorage

from .tensors import same

MIXED = CompressionConfig(
    "auto",
    rules=[
        Rule(name=("*.bias", "*norm.*"), use="lossless"),
        Rule(name="embeddings.*", use="int8_only"),
        Rule(dtype=("float32", "bfloat16"), ndim=(2, 4), min_nbytes=1024, use="balanced"),
    ],
)


class Layer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = torch.nn.Linear(width, width)
        self.feed = torch.nn.Linear(width, 2 * width)
        self.norm = torch.nn.LayerNorm(width)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = torch.nn.Embedding(300, 32)
        self.layer = torch.nn.ModuleList([Layer(32) for _ in range(3)])
        self.norm = torch.nn.BatchNorm1d(32)
        self.head = torch.nn.Linear(32, 4)


def expected(name: str) -> str:
    if name.endswith(".bias") or "norm." in name:
        return "none"
    return "int8" if name.startswith("embeddings.") else "none" if name == "head.weight" else "fp16"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(Model().state_dict())


def check(db: TensorStorage, name: str, state: dict[str, torch.Tensor]) -> None:
    records = db.get_many(name, list(state))
    assert {record.id: record.encoding.quantization for record in records} == {key: expected(key) for key in state}
    for record in records:
        if expected(record.id) == "none":
            assert same(record.tensor, state[record.id])
        else:
            assert (record.tensor - state[record.id]).norm() / state[record.id].norm() < 0.02
    assert db.verify(name).ok


def test_the_state_of_a_model_is_stored_as_the_rules_say(data: TensorStorage, state: dict[str, torch.Tensor]) -> None:
    data.set_compression_config(MIXED)
    assert {expected(name) for name in state} == {"none", "int8", "fp16"}
    data.insert_many("data", list(state.values()), record_ids=list(state))
    check(data, "data", state)
    data.create_dataset("one by one")
    for name, tensor in state.items():
        data.insert("one by one", tensor, record_id=name)
    check(data, "one by one", state)
    data.create_dataset("generator")
    data.insert_many("generator", iter(state.values()), record_ids=list(state))
    check(data, "generator", state)


def test_the_rules_of_a_dataset_hold_after_reopening(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("weights", compression_config=MIXED)
    with TensorStorage(tmp_path / "db", compression_preset="fp16_only") as db:
        db.insert_many("weights", list(state.values()), record_ids=list(state))
        check(db, "weights", state)
    with TensorStorage(tmp_path / "db") as db:
        check(db, "weights", state)


def test_a_pickled_storage_keeps_its_rules(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with TensorStorage(tmp_path / "db", compression_config=MIXED) as db:
        db.create_dataset("weights")
        with pickle.loads(pickle.dumps(db)) as again:
            again.insert_many("weights", list(state.values()), record_ids=list(state))
        check(db, "weights", state)


@pytest.mark.parametrize("stacked", [True, False])
def test_tensors_of_one_spec_and_several_rules_are_paged_apart_and_keep_their_order(
    data: TensorStorage, stacked: bool
) -> None:
    data.set_compression_config(
        CompressionConfig("none", rules=[Rule(name="*0", use="fp16_only"), Rule(name="*[13]", use="int8_only")])
    )
    rows = torch.randn(5000, 64)
    ids = data.insert_many("data", rows if stacked else [*rows], record_ids=[f"r{n}" for n in range(5000)])
    records = data.get_many("data", ids)
    for number, record in enumerate(records):
        wanted = {0: "fp16", 1: "int8", 3: "int8"}.get(number % 10, "none")
        assert record.encoding.quantization == wanted
        assert (record.tensor - rows[number]).abs().max() < 0.05
        assert wanted != "none" or same(record.tensor, rows[number])
    assert data.get_compression_stats("data").objects == 3
    assert [record.id for record in data.query("data")] == ids


def test_rules_share_a_page_where_they_use_the_same(data: TensorStorage) -> None:
    config = CompressionConfig("none", rules=[Rule(name="a*", use="fp16_only"), Rule(name="b*", use="fp16_only")])
    data.set_compression_config(CompressionConfig.from_dict(config.to_dict()))
    data.insert_many("data", torch.randn(20, 64), record_ids=[f"{'ab'[n % 2]}{n}" for n in range(20)])
    assert data.get_compression_stats("data").objects == 1


def test_every_row_of_a_stack_of_large_tensors_has_its_own_rule(data: TensorStorage) -> None:
    data.set_compression_config(CompressionConfig("none", rules=[Rule(name="b", use="fp16_only")]))
    data.insert_many("data", torch.randn(3, 200, 200), record_ids=["a", "b", "c"])
    assert [each.encoding.quantization for each in data.query("data")] == ["none", "fp16", "none"]


def test_without_ids_of_one_s_own_no_name_matches_but_other_conditions_do(data: TensorStorage) -> None:
    data.set_compression_config(
        CompressionConfig("none", rules=[Rule(name="*", use="int8_only"), Rule(ndim=1, use="fp16_only")])
    )
    ids = [
        data.insert("data", torch.randn(64)),
        data.insert("data", torch.randn(8, 8)),
        *data.insert_many("data", torch.randn(2, 64)),
        *data.insert_many("data", [torch.randn(64), torch.randn(8, 8)]),
        data.insert("data", torch.randn(64), record_id="named"),
    ]
    found = [record.encoding.quantization for record in data.get_many("data", ids)]
    assert found == ["fp16", "none", "fp16", "fp16", "fp16", "none", "int8"]


def test_a_rule_sees_the_record_and_not_its_page(data: TensorStorage) -> None:
    data.set_compression_config(
        CompressionConfig("none", rules=[Rule(ndim=1, max_nbytes=256, dtype=torch.float32, use="fp16_only")])
    )
    data.insert_many("data", torch.randn(100, 64))
    data.insert_many("data", torch.randn(100, 65))
    data.insert_many("data", torch.randn(100, 8, 8))
    data.insert_many("data", torch.randn(100, 32, dtype=torch.float64))
    found = [record.encoding.quantization for record in data.query("data")]
    assert found == ["fp16"] * 100 + ["none"] * 300


def test_rules_set_later_leave_what_is_stored_as_it_is(data: TensorStorage) -> None:
    tensor = torch.randn(40, 40)
    before = data.insert("data", tensor, record_id="a")
    data.set_compression_config(MIXED)
    data.insert("data", tensor, record_id="b")
    assert same(data.get_tensor_by_id("data", before).tensor, tensor)
    assert [record.encoding.quantization for record in data.query("data")] == ["none", "fp16"]


def test_too_few_ids_are_the_same_error_with_rules(data: TensorStorage) -> None:
    data.set_compression_config(MIXED)
    with pytest.raises(InvalidInputError, match="2 record ids were given for 3"):
        data.insert_many("data", iter(torch.randn(3, 5)), record_ids=["a", "b"])
    with pytest.raises(InvalidInputError, match="2 record ids were given for 3"):
        data.insert_many("data", torch.randn(3, 5), record_ids=["a", "b"])
    assert data.count("data") == 0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.complex64, torch.bool, torch.bfloat16])
def test_stacks_of_every_kind_of_dtype_are_parted_by_rules(data: TensorStorage, dtype: torch.dtype) -> None:
    data.set_compression_config(CompressionConfig("none", rules=[Rule(name="a*", use="lossless")]))
    stack = torch.randint(0, 2, (20, 12)).to(dtype)
    ids = data.insert_many("data", stack, record_ids=[f"{'ab'[n % 3 > 0]}{n}" for n in range(20)])
    for record, row in zip(data.get_many("data", ids), stack, strict=True):
        assert same(record.tensor, row)
    assert data.get_compression_stats("data").objects == 2
