"""Models come out of a database as the files that went in, and as files that others read."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save, save_file, save_model
from torch import nn

from tensordb import (
    AlreadyExistsError,
    CheckpointNotFoundError,
    IntegrityError,
    InvalidInputError,
    TensorDBError,
    TensorStorage,
)
from tensordb.exchange.publishing import check_name
from tensordb.integrations.safetensors import export_safetensors, import_safetensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
    torch.float8_e5m2, torch.float8_e5m2fnuz, torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8,
]  # fmt: skip


@pytest.fixture
def db(tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "data.tdb") as opened:
        yield opened


def any_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor with every kind of bit pattern: NaN payloads, infinities, denormals, negative zero."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8).view(dtype).reshape(shape)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    named = {f"layer.{index}.wëight": any_bits(dtype, 7, 5) for index, dtype in enumerate(DTYPES)}
    return named | {
        "bool": torch.tensor([[True, False, True]]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(-0.0),
        "a.b": torch.ones(2),
        "a.b.c": torch.zeros(2),
        "große": any_bits(torch.float32, 300, 400),
    }


def raw_file(fields: Any, data: bytes = b"", *, spaces: int = 0) -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    text += b" " * spaces
    return struct.pack("<Q", len(text)) + text + data


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def model_folder(folder: Path) -> Path:
    """A folder as Hugging Face's: shards, index, configuration, and folders within it."""
    (folder / "vae" / "deep").mkdir(parents=True)
    (folder / "nothing").mkdir()
    one = {"embed.weight": torch.randn(90, 64)}
    two = {"head.weight": torch.randn(64, 90), "head.bias": torch.zeros(9)}
    save_file(one, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file(two, folder / "model-00002-of-00002.safetensors", {"format": "pt"})
    places = dict.fromkeys(one, "model-00001-of-00002.safetensors") | dict.fromkeys(
        two, "model-00002-of-00002.safetensors"
    )
    index = json.dumps({"metadata": {"total_size": 324}, "weight_map": places}, indent=2)
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text('{"hidden_size": 4}')
    (folder / "tokenizer.json").write_bytes(b"\xff\x00 not even text" * 1000)
    (folder / ".gitattributes").write_bytes(b"")
    save_file({"head.bias": torch.ones(3)}, folder / "vae" / "deep" / "decoder.safetensors")
    return folder


def test_a_file_of_every_dtype_comes_out_byte_for_byte(db: TensorStorage, tmp_path: Path) -> None:
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors(), source, {"format": "pt", "über": "\n\x01 text"})
    import_safetensors(db, source, "run", step=3, metadata={"from": "hub"})
    assert export_safetensors(db, "run", target, step=3) == [target]
    assert target.read_bytes() == source.read_bytes()
    model = db.checkpoints.load("run")["model"]
    assert all(same(model[name], tensor) for name, tensor in tensors().items())
    assert db.checkpoints.get("run").metadata == {"from": "hub"}


@pytest.mark.parametrize(
    "data",
    [
        raw_file({}),
        raw_file({}, spaces=8),
        raw_file({"__metadata__": {"b": "1", "a": "2"}}),
        raw_file({"x": {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]}}, b"\x12\x34\x56"),
        raw_file({"x": {"shape": [4], "dtype": "F6_E2M3", "data_offsets": [0, 3]}}, b"\xff\xfe\xfd", spaces=3),
        raw_file({"x": {"dtype": "F8_E8M0", "shape": [3], "data_offsets": [0, 3]}}, b"\x00\x7f\xff"),
        raw_file({"x": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}, b"\x00\x02\xff"),
        raw_file(
            {
                "z": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
                "none": {"dtype": "I64", "shape": [0], "data_offsets": [2, 2]},
                "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
            },
            b"\x01\x02\x00\x00\xc0\x7f",
            spaces=5,
        ),
    ],
    ids=["nothing", "padded", "only-metadata", "fp4", "fp6", "e8m0", "bools-of-other-bytes", "unaligned-unsorted"],
)
def test_unusual_files_come_out_byte_for_byte(db: TensorStorage, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "in.safetensors").write_bytes(data)
    import_safetensors(db, tmp_path / "in.safetensors", "run")
    export_safetensors(db, "run", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == data


def test_a_folder_comes_out_byte_for_byte(db: TensorStorage, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    import_safetensors(db, source, "run")
    written = export_safetensors(db, "run", tmp_path / "deep" / "copy")
    assert contents(tmp_path / "deep" / "copy") == contents(source)
    assert len(written) == 7
    assert db.checkpoints.load("run")["model"].keys() == {"embed.weight", "head.weight", "head.bias"}
    assert db.checkpoints.load("run")["model"]["head.bias"].tolist() == [0.0] * 9


def test_a_folder_is_stored_once_however_often_it_is_imported(db: TensorStorage, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    first = import_safetensors(db, source, "run")
    assert import_safetensors(db, source, "other").added_nbytes < first.added_nbytes / 4


def test_a_link_within_the_folder_is_stored_as_what_it_points_to(db: TensorStorage, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    (source / "again.json").symlink_to("config.json")
    import_safetensors(db, source, "run")
    export_safetensors(db, "run", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)
    assert not (tmp_path / "copy" / "again.json").is_symlink()


@pytest.mark.parametrize("kind", ["file", "folder", "broken"])
def test_links_out_of_the_folder_are_not_followed(db: TensorStorage, tmp_path: Path, kind: str) -> None:
    source = model_folder(tmp_path / "model")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("key")
    target = {"file": "secret/key", "folder": "secret", "broken": "nowhere"}[kind]
    (source / "extra").symlink_to(tmp_path / target)
    with pytest.raises(InvalidInputError, match="extra is a link"):
        import_safetensors(db, source, "run")
    assert db.checkpoints.runs() == []


def test_a_pipe_in_the_folder_is_refused_at_once(db: TensorStorage, tmp_path: Path) -> None:
    os.mkfifo(model_folder(tmp_path / "model") / "pipe.safetensors")
    with pytest.raises(InvalidInputError, match=r"pipe\.safetensors is no regular file"):
        import_safetensors(db, tmp_path / "model", "run")
    with pytest.raises(InvalidInputError, match="no regular file"):
        import_safetensors(db, tmp_path / "model" / "pipe.safetensors", "run")


@pytest.mark.parametrize(
    "index",
    [b"", b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": "../../secret.safetensors"}}', b"[" * 100_000],
)
def test_a_damaged_index_is_refused_by_its_name(db: TensorStorage, tmp_path: Path, index: bytes) -> None:
    source = model_folder(tmp_path / "model")
    save_file({"a": torch.ones(1)}, tmp_path.parent / "secret.safetensors")
    (source / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(InvalidInputError, match=r"model\.safetensors\.index\.json"):
        import_safetensors(db, source, "run")
    (tmp_path.parent / "secret.safetensors").unlink()


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"version https://git-lfs.github.com/spec/v1\n",
        struct.pack("<Q", 1 << 63),
        struct.pack("<Q", 100) + b"{}",
        raw_file(b"{"),
        raw_file(b"[]"),
        raw_file(b"\xff{}"),
        raw_file(b'{"a":' * 100_000),
        raw_file(b'{"x":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}', bytes(4)),
        raw_file(b'{"x": 1, "x": 2}'),
        raw_file(rb'{"\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        raw_file({"x": 3}),
        raw_file({"__metadata__": {"a": 1}}),
        raw_file({"__metadata__": []}),
        raw_file({"x": F32 | {"dtype": "F33"}}, bytes(4)),
        raw_file({"x": F32 | {"dtype": ["F32"]}}, bytes(4)),
        raw_file({"x": F32 | {"shape": [2]}}, bytes(4)),
        raw_file({"x": F32 | {"shape": [-1]}}, bytes(4)),
        raw_file({"x": F32 | {"shape": [True]}}, bytes(4)),
        raw_file({"x": F32 | {"shape": [1.0]}}, bytes(4)),
        raw_file({"x": F32 | {"shape": [1] * 1000}}, bytes(4)),
        raw_file({"x": F32 | {"shape": [1 << 61, 1 << 61]}}, bytes(4)),
        raw_file({"x": F32 | {"data_offsets": [4, 8]}}, bytes(8)),
        raw_file({"x": F32 | {"data_offsets": [4, 0]}}, bytes(4)),
        raw_file({"x": F32, "y": F32}, bytes(4)),
        raw_file({"x": F32}, bytes(3)),
        raw_file({"x": F32}, bytes(5)),
        raw_file({"x": {"dtype": "F4", "shape": [1], "data_offsets": [0, 0]}}),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files_are_refused_by_their_name(db: TensorStorage, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"bad\.safetensors is not a whole safetensors file"):
        import_safetensors(db, tmp_path / "bad.safetensors", "run")
    assert db.checkpoints.runs() == []


def test_every_cut_of_a_file_is_refused(db: TensorStorage, tmp_path: Path) -> None:
    whole = save({"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int8)})
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(InvalidInputError, match=r"cut\.safetensors"):
            import_safetensors(db, tmp_path / "cut.safetensors", "run")


def test_what_is_no_model_is_refused(db: TensorStorage, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        import_safetensors(db, tmp_path / "missing.safetensors", "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="no file that ends in"):
        import_safetensors(db, tmp_path / "empty", "run")
    with pytest.raises(CheckpointNotFoundError):
        export_safetensors(db, "run", tmp_path / "out.safetensors")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 16, bias=False)
        self.embed = nn.Embedding(16, 8)
        self.embed.weight = self.head.weight
        self.norm = nn.BatchNorm1d(8)
        self.turned = nn.Parameter(torch.randn(3, 2, dtype=torch.bfloat16).t())


def test_a_saved_module_is_the_file_that_save_model_writes(db: TensorStorage, tmp_path: Path) -> None:
    model = Tied()
    db.checkpoints.save("run", model)
    (path,) = export_safetensors(db, "run", tmp_path / "ours.safetensors")
    save_model(model, str(tmp_path / "theirs.safetensors"), {"format": "pt"})
    theirs = load_file(tmp_path / "theirs.safetensors")
    assert list(load_file(path)) == list(theirs)
    with safe_open(path, "pt") as ours, safe_open(tmp_path / "theirs.safetensors", "pt") as expected:
        assert ours.metadata() == expected.metadata()
    other = Tied()
    assert load_model(other, path) == (set(), [])
    assert all(same(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert path.stat().st_size == (tmp_path / "theirs.safetensors").stat().st_size


class Overlapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("part", torch.arange(10.0)[2:5])
        self.register_buffer("all", torch.arange(10.0))
        self.part = self.all[2:5]


def test_memory_that_tensors_share_in_part_is_written_once(db: TensorStorage, tmp_path: Path) -> None:
    model = Overlapping()
    db.checkpoints.save("run", model)
    (path,) = export_safetensors(db, "run", tmp_path / "out.safetensors")
    assert load_file(path).keys() == {"all"}
    other = Overlapping()
    other.all.zero_()
    load_model(other, path)
    assert torch.equal(other.part, model.part)


def test_tensors_that_share_memory_none_of_them_covers_are_each_written(db: TensorStorage, tmp_path: Path) -> None:
    memory = torch.arange(10.0)
    db.checkpoints.save("run", {"head": memory[:6], "tail": memory[4:], "": memory[5:6]})
    (path,) = export_safetensors(db, "run", tmp_path / "out.safetensors")
    loaded = load_file(path)
    assert loaded["head"].tolist() == memory[:6].tolist()
    assert loaded["tail"].tolist() == memory[4:].tolist()
    assert loaded[""].tolist() == [5.0]


def test_a_large_model_is_written_in_shards_with_an_index(db: TensorStorage, tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))
    db.checkpoints.save("run", model)
    written = export_safetensors(db, "run", tmp_path / "hub", max_shard_size="2.2KB")
    assert [path.name for path in written] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads(written[-1].read_text())
    assert index["metadata"] == {"total_size": 5 * (16 * 16 + 16) * 4}
    state = model.state_dict()
    assert index["weight_map"].keys() == state.keys()
    for name, file in index["weight_map"].items():
        assert same(load_file(tmp_path / "hub" / file)[name], state[name])
    assert all(path.stat().st_size < 3000 for path in written)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "", "five", "5PB", "0KB", [5]])
def test_a_shard_size_that_is_none_is_refused(db: TensorStorage, tmp_path: Path, size: Any) -> None:
    db.checkpoints.save("run", nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="max_shard_size"):
        export_safetensors(db, "run", tmp_path / "out.safetensors", max_shard_size=size)


def test_the_optimizer_goes_to_a_file_of_its_own(db: TensorStorage, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    db.checkpoints.save("run", model, optimizer=optimizer)
    written = export_safetensors(db, "run", tmp_path / "m.safetensors", optimizer=True)
    assert [path.name for path in written] == ["m.safetensors", "m.optimizer.safetensors"]
    state = load_file(written[1])
    assert same(state["state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    with safe_open(written[1], "pt") as file:
        assert json.loads(file.metadata()["param_groups.0.lr"]) == 0.1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"a": torch.ones(2, dtype=torch.complex128)}, "'a' is complex128"),
        ({"a": torch.eye(2).to_sparse()}, "sparse"),
        ({"a": 3}, r"model\.a is a int"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "two values called 'a.b'"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused_by_its_name(
    db: TensorStorage, tmp_path: Path, model: Any, message: str
) -> None:
    db.checkpoints.save("run", model)
    with pytest.raises(InvalidInputError, match=message):
        export_safetensors(db, "run", tmp_path / "new" / "out.safetensors")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_without_a_model_is_refused(db: TensorStorage, tmp_path: Path) -> None:
    db.checkpoints.save("run", state={"a": 1})
    with pytest.raises(InvalidInputError, match="has no model"):
        export_safetensors(db, "run", tmp_path / "out.safetensors")


def test_a_file_that_is_there_is_replaced_only_when_asked(db: TensorStorage, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_text("precious")
    db.checkpoints.save("run", nn.Linear(2, 2))
    with pytest.raises(AlreadyExistsError, match="overwrite=True"):
        export_safetensors(db, "run", target)
    assert target.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2
    export_safetensors(db, "run", target, overwrite=True)
    assert load_file(target).keys() == {"weight", "bias"}
    assert len(list(tmp_path.iterdir())) == 2


def test_an_imported_folder_replaces_files_only_when_asked(db: TensorStorage, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model")
    import_safetensors(db, source, "run")
    target = tmp_path / "copy"
    target.mkdir()
    (target / "config.json").write_text("precious")
    (target / "mine.txt").write_text("mine")
    with pytest.raises(AlreadyExistsError, match=r"config\.json"):
        export_safetensors(db, "run", target)
    assert contents(target) == {"config.json": b"precious", "mine.txt": b"mine"}
    export_safetensors(db, "run", target, overwrite=True)
    assert contents(target) == contents(source) | {"mine.txt": b"mine"}


def test_a_damaged_database_leaves_no_file(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "data.tdb", compression_preset="none") as db:
        db.checkpoints.save("run", {"a": torch.randn(1 << 20), "b": torch.randn(1 << 20)})
        segment = max((tmp_path / "data.tdb" / "segments").iterdir(), key=lambda path: path.stat().st_size)
        with segment.open("r+b") as file:
            file.seek(6 << 20)
            file.write(b"damage")
    with TensorStorage(tmp_path / "data.tdb") as db, pytest.raises(IntegrityError):
        export_safetensors(db, "run", tmp_path / "out" / "out.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/../../b", "/etc/passwd", "a//b", "a/", "./a", "a\0b"])
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(IntegrityError):
        check_name(name)


def test_a_forged_checkpoint_writes_nothing_out_of_the_folder(db: TensorStorage, tmp_path: Path) -> None:
    record = {"version": 1, "folder": True, "headers": {}, "files": {"../evil": torch.zeros(3, dtype=torch.uint8)}}
    db.checkpoints.save("run", state={"safetensors": record})
    with pytest.raises(TensorDBError):
        export_safetensors(db, "run", tmp_path / "copy")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "copy").exists()
