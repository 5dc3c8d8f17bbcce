"""compact gathers small records into pages: they read as before, take less, and keep what was said of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tensordb import CompressionConfig, TensorStorage
from tensordb.errors import DatasetNotFoundError, InvalidInputError, UnknownPresetError
from tensordb.model import Encoding

Facts = dict[str, tuple[bytes, str, object, object, object]]


def facts(db: TensorStorage, name: str = "d") -> Facts:
    """Return bytes, quantization, error, parameters and note of each record."""
    return {record.id: (_bytes(record.tensor), *_said(record.encoding)) for record in db.scan(name)}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _said(encoding: Encoding) -> tuple[str, object, object, object]:
    return encoding.quantization, encoding.error, dict(encoding.quantization_parameters), encoding.note


def pages(db: TensorStorage) -> list[tuple[int, int]]:
    """Return of each page how many records name it, and its references."""
    text = (
        "SELECT count(*), any_value(o.refs) FROM tensordb.records_1 r JOIN tensordb.objects o USING (object_id) "
        "WHERE r.page_row IS NOT NULL GROUP BY r.object_id ORDER BY 1"
    )
    return [tuple(row.values()) for row in db.sql(text).to_pylist()]


def small(count: int, size: int = 384, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [(torch.randn(size, generator=generator) * 0.05).to(dtype) for _ in range(count)]


@pytest.fixture(params=["folder", "memory"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "db" if request.param == "folder" else None) as db:
        db.create_dataset("d")
        yield db


def test_single_small_records_become_one_page_and_stay_bit_identical(db: TensorStorage) -> None:
    tensors = [*small(40), torch.tensor(3.5), torch.tensor(4.5), torch.empty(0), torch.empty(0, 3)]
    tensors += [torch.full((9,), float("nan")), torch.tensor([-0.0] * 9), *small(30, dtype=torch.bfloat16)]
    with db.transaction():
        for number, tensor in enumerate(tensors):
            db.insert("d", tensor, {"n": number}, record_id=f"r{number}")
    before = facts(db)
    assert db.maintenance.compact().payloads_moved >= len(tensors) - 1
    assert facts(db) == before
    assert sorted(pages(db)) == [(2, 2), (2, 2), (30, 30), (40, 40)]
    assert db.verify().ok
    assert db.maintenance.compact().payloads_moved == 0


def test_embeddings_of_one_and_a_half_kilobytes_are_stored_at_1_19_once_they_are_in_pages(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("d")
        with db.transaction():
            for tensor in small(500):
                db.insert("d", torch.nn.functional.normalize(tensor, dim=0))
        alone = db.get_compression_stats("d").ratio
        db.maintenance.compact()
        paged = db.get_compression_stats("d")
    assert paged.ratio >= 1.19
    assert paged.ratio > alone
    assert paged.objects == 1


@pytest.mark.parametrize(
    ("db", "preset"),
    list(zip(["folder", "memory"] * 3, ["maximum", "balanced", "q6", "none", "fast", "archive"], strict=True)),
    indirect=["db"],
)
def test_compacting_keeps_values_errors_and_notes_of_any_preset(db: TensorStorage, preset: str) -> None:
    db.set_compression_preset(preset)
    with db.transaction():
        for tensor in [*small(20), *small(20, dtype=torch.float16), *[torch.arange(30) + i for i in range(20)]]:
            db.insert("d", tensor)
    ids = db.insert_many("d", small(60, 100))
    before, compressed = facts(db), [record.encoding.compression for record in db.scan("d")]
    for each in {*ids[::2], *ids[41:]}:
        del before[each]
        db.delete_tensor("d", each)
    db.set_compression_preset("lossless")  # what is in force now changes nothing of what is there
    db.maintenance.compact(min_dead=0.3)
    assert facts(db) == before
    assert db.verify().ok
    if preset == "none":
        assert {record.encoding.compression for record in db.scan("d")} == {"none"} == set(compressed)


def test_dead_rows_of_pages_give_their_space_back(db: TensorStorage) -> None:
    ids = db.insert_many("d", torch.stack(small(1000)))
    db.set_compression_preset("maximum")
    lossy = db.insert_many("d", torch.stack(small(1000, 200)))
    for kept in (ids, lossy):
        quoted = ", ".join(repr(each) for each in kept[:950])
        db.delete_where("d", f"record_id IN ({quoted})")
    before, stored = facts(db), db.get_compression_stats("d").stored_nbytes
    db.maintenance.compact()
    assert facts(db) == before
    assert sum(rows for rows, _ in pages(db)) == 100
    assert db.get_compression_stats("d").stored_nbytes < stored / 8
    assert db.verify().ok
    assert db.maintenance.compact().payloads_moved == 0


def test_many_small_pages_are_put_together_in_insertion_order(db: TensorStorage) -> None:
    for start in range(0, 300, 10):
        db.insert_many("d", small(300)[start : start + 10])
    before = facts(db)
    assert len(pages(db)) == 30
    db.maintenance.compact()
    assert pages(db) == [(300, 300)]
    assert facts(db) == before
    assert list(before) == list(facts(db))


def test_what_others_share_stays_an_object_of_its_own_for_all_of_them(db: TensorStorage) -> None:
    state = {f"w{number}": tensor for number, tensor in enumerate(small(6, 3000))}
    for tensor in [*state.values(), *state.values(), *small(10, 3000)]:
        db.insert("d", tensor)
    db.checkpoints.save("r", state, step=1, rng=False)
    db.checkpoints.save("r", {name: tensor + 1e-4 for name, tensor in state.items()}, step=2, rng=False)
    db.create_dataset("e")
    for tensor in state.values():
        db.insert("e", tensor)
    before = facts(db), facts(db, "e")
    db.maintenance.compact(min_dead=0)
    db.maintenance.compact(preset="archive")
    assert (facts(db), facts(db, "e")) == before
    db.delete_dataset("e")
    db.delete_where("d", "true")
    db.maintenance.compact(min_dead=0)
    loaded = db.checkpoints.load("r", step=1)["model"]
    assert all(loaded[name].equal(tensor) for name, tensor in state.items())
    assert db.verify().ok


@pytest.mark.parametrize(
    ("db", "preset"),
    [("folder", "archive"), ("memory", "fast"), ("memory", "none"), ("folder", "balanced")],
    indirect=["db"],
)
def test_a_preset_is_taken_on_by_small_and_large_records_alike(db: TensorStorage, preset: str) -> None:
    alike = [torch.zeros(60_000), torch.empty(0), *small(2, 50), *small(2, 50)]
    for tensor in [*small(20), *small(3, 50_000), *alike]:
        db.insert("d", tensor)
    db.insert_many("d", small(50))
    report = db.maintenance.compact("d", preset=preset)
    assert (report.payloads_moved >= 73, report.records_left) == (True, 0)
    quantized = "fp16" if preset == "balanced" else "none"
    stored = [*small(50), *small(3, 50_000), *alike]
    expected = {_bytes(each.half().float() if quantized == "fp16" else each) for each in stored}
    assert {record.encoding.quantization for record in db.scan("d") if record.tensor.numel()} == {quantized}
    assert {_bytes(record.tensor) for record in db.scan("d")} == expected
    assert db.verify().ok
    if preset != "balanced":
        again = db.maintenance.compact("d", preset=preset)
        assert (again.payloads_moved, again.records_left) == (0, 0)


def test_a_lossy_preset_states_the_error_against_the_original(db: TensorStorage) -> None:
    originals = small(30)
    for tensor in originals:
        db.insert("d", tensor)
    db.maintenance.compact(preset="maximum")
    for record, original in zip(db.scan("d"), originals, strict=True):
        lost = float((record.tensor - original).abs().max())
        assert 0 < lost <= record.encoding.error.max_abs * (1 + 1e-6)


@pytest.mark.parametrize(
    ("db", "preset"),
    [("memory", "lossless"), ("folder", "maximum"), ("memory", "balanced"), ("memory", "archive")],
    indirect=["db"],
)
def test_what_is_quantized_is_never_quantized_again_and_counted(db: TensorStorage, preset: str) -> None:
    db.set_compression_preset("q6")
    for tensor in small(10, 100):
        db.insert("d", tensor)
    db.insert_many("d", small(20, 200))
    before = facts(db)
    report = db.maintenance.compact("d", preset=preset)
    assert facts(db) == before
    assert report.records_left == 30


def test_only_the_dataset_that_is_named_is_touched(db: TensorStorage) -> None:
    db.create_dataset("e")
    for tensor in small(5):
        db.insert("d", tensor)
        db.insert("e", tensor + 1)
    db.maintenance.compact("e", preset="fast")
    assert {record.encoding.compression for record in db.scan("e")} == {"planes+lz4"}
    assert "planes+lz4" not in {record.encoding.compression for record in db.scan("d")}
    assert pages(db) == []


def test_a_config_with_rules_decides_for_each_record(db: TensorStorage) -> None:
    from tensordb import Rule

    for number, tensor in enumerate(small(8)):
        db.insert("d", tensor, record_id=f"{'keep' if number % 2 else 'halve'}.{number}")
    db.maintenance.compact("d", config=CompressionConfig("auto", rules=[Rule(name="halve.*", use="balanced")]))
    found = {record.id: record.encoding.quantization for record in db.scan("d")}
    assert {key: value for key, value in found.items() if value != "none"} == {
        f"halve.{n}": "fp16" for n in (0, 2, 4, 6)
    }


def test_what_cannot_be_asked_for_is_refused_before_anything_is_done(db: TensorStorage) -> None:
    for tensor in small(3):
        db.insert("d", tensor)
    with pytest.raises(DatasetNotFoundError, match="nope"):
        db.maintenance.compact("nope")
    with pytest.raises(UnknownPresetError, match="nope"):
        db.maintenance.compact(preset="nope")
    with pytest.raises(InvalidInputError, match="one of them"):
        db.maintenance.compact(preset="fast", config=CompressionConfig())
    with pytest.raises(InvalidInputError, match="CompressionConfig"):
        db.maintenance.compact(config="fast")  # type: ignore[arg-type]
    for share in (True, -0.1, 1.5, "half"):
        with pytest.raises(InvalidInputError, match="share"):
            db.maintenance.compact(min_dead=share)  # type: ignore[arg-type]
    assert pages(db) == []
