"""Every tier of the cache, by one id and by many: never stale, one's own, and counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tensordb import CacheConfig, IntegrityError, Record, TensorNotFoundError, TensorStorage
from tensordb.engine import TensorCache
from tests.faults.programs import in_another_process
from tests.storage.tensors import DTYPES, same, sample
from tests.storage.test_cache import hits

TIERS = {
    "decoded": CacheConfig(promote_after=1),
    "encoded": CacheConfig(decoded_bytes=0, promote_after=1),
    "mapped": CacheConfig(decoded_bytes=0, encoded_bytes=0),
}
POSITION = {"mapped": 1, "encoded": 2, "decoded": 3}
"""Of a tier's hits among `hits`."""


def one_by_one(db: TensorStorage, keys: Sequence[str]) -> list[Record]:
    """Read records each by itself."""
    return [db.get_tensor_by_id("data", key) for key in keys]


def together(db: TensorStorage, keys: Sequence[str]) -> list[Record]:
    """Read records in one call."""
    return db.get_many("data", keys)


WAYS: list[Callable[[TensorStorage, Sequence[str]], list[Record]]] = [one_by_one, together]


def warm(db: TensorStorage, tier: str, keys: Sequence[str]) -> None:
    """Read records until the tier answers for all of them."""
    for _ in range(12):
        one_by_one(db, keys)
    before = hits(db)
    one_by_one(db, keys)
    assert hits(db)[POSITION[tier]] == before[POSITION[tier]] + len(keys)


@pytest.mark.parametrize("elements", [50, 6000])
def test_what_another_process_did_is_seen_at_the_next_read_whatever_tier_answered(
    tmp_path: Path, elements: int
) -> None:
    keys = ["updated", "deleted", "replaced", "kept"]
    with ExitStack() as stack:
        dbs = {
            (tier, way): stack.enter_context(TensorStorage(tmp_path, cache=TIERS[tier]))
            for tier in TIERS
            for way in WAYS
        }
        first = next(iter(dbs.values()))
        first.create_dataset("data")
        for number, key in enumerate(keys):
            first.insert("data", torch.randn(elements) + number, {"turn": 0}, record_id=key)
        before = {key: first.get_tensor_by_id("data", key).tensor for key in keys}
        for (tier, _), db in dbs.items():
            warm(db, tier, keys)
        in_another_process(
            tmp_path,
            "db.update_tensor_metadata('data', 'updated', {'turn': 1})\ndb.delete_tensor('data', 'deleted')\n"
            "db.delete_tensor('data', 'replaced')\n"
            "db.insert('data', torch.zeros(7), {'turn': 1}, record_id='replaced')",
        )
        for (_, way), db in dbs.items():
            updated, replaced, kept = way(db, ["updated", "replaced", "kept"])
            assert (updated.metadata, replaced.metadata, kept.metadata) == ({"turn": 1}, {"turn": 1}, {"turn": 0})
            assert same(updated.tensor, before["updated"])
            assert same(kept.tensor, before["kept"])
            assert same(replaced.tensor, torch.zeros(7))
            with pytest.raises(TensorNotFoundError, match="deleted"):
                way(db, ["kept", "deleted"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tier", TIERS)
def test_what_this_process_did_is_seen_at_the_next_read(
    tmp_path: Path, tier: str, way: Callable[[TensorStorage, Sequence[str]], list[Record]]
) -> None:
    with TensorStorage(tmp_path, cache=TIERS[tier]) as db, TensorStorage(tmp_path) as other:
        db.create_dataset("data")
        keys = db.insert_many("data", torch.randn(3, 40), [{"turn": 0}] * 3)
        for turn, writer in enumerate((db, other, db, other), 1):
            warm(db, tier, keys)
            writer.update_tensor_metadata("data", keys[1], {"turn": turn})
            assert [each.metadata["turn"] for each in way(db, keys)] == [0, turn, 0]
        warm(db, tier, keys)
        other.delete_tensor("data", keys[0])
        with pytest.raises(TensorNotFoundError):
            way(db, keys)
        assert len(way(db, keys[1:])) == 2


def test_many_records_are_returned_as_they_were_at_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two is known, and both change together after that was looked up, and before the other is."""
    with TensorStorage(tmp_path, cache=TIERS["decoded"]) as db, TensorStorage(tmp_path) as other:
        db.create_dataset("data")
        keys = [db.insert("data", torch.ones(9), {"turn": 0}) for _ in range(2)]
        warm(db, "decoded", keys[:1])
        find_many = TensorCache.find_many

        def late(self: TensorCache, dataset: str, record_ids: Sequence[str]) -> Any:
            found = find_many(self, dataset, record_ids)
            assert len(found[1]) == 1
            with other.transaction():
                for key in keys:
                    other.update_tensor_metadata("data", key, {"turn": 1})
            return found

        with monkeypatch.context() as patched:
            patched.setattr(TensorCache, "find_many", late)
            found = db.get_many("data", keys)
        assert [each.metadata["turn"] for each in found] == [1, 1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("preset", ["lossless", "none"])
def test_what_a_caller_does_to_a_record_changes_no_other(
    tmp_path: Path, tier: str, way: Callable[[TensorStorage, Sequence[str]], list[Record]], preset: str
) -> None:
    with TensorStorage(tmp_path, cache=TIERS[tier], compression_preset=preset) as db:
        db.create_dataset("data")
        tensors = [*sample(torch.float32, 3, 40), sample(torch.float32, 5000)]
        documents: list[dict[str, Any]] = [{"flat": 1}, {"deep": {"list": [1]}}, {}, {"flat": None}]
        keys = db.insert_many("data", tensors[:3], documents[:3])
        keys.append(db.insert("data", tensors[3], documents[3]))
        warm(db, tier, keys)
        for _ in range(3):
            records = way(db, [*keys, *keys])
            assert [each.metadata for each in records] == [*documents, *documents]
            for record, tensor in zip(records, [*tensors, *tensors], strict=True):
                assert same(record.tensor, tensor)
                record.tensor.fill_(7)
                record.metadata["flat"] = 2
                record.metadata.get("deep", {"list": []})["list"].append(2)


def test_many_move_up_as_one_does_and_every_read_is_counted_once(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, cache=CacheConfig(promote_after=2)) as db:
        db.create_dataset("data")
        for dtype in DTYPES:
            db.cache.clear()
            many_move_up(db, sample(dtype, 3, 6, 5))


def many_move_up(db: TensorStorage, values: torch.Tensor) -> None:
    keys = [db.insert("data", each, {"n": n}) for n, each in enumerate(values)]
    for expected in ((3, 0, 0, 0), (3, 3, 0, 0), (3, 3, 3, 0), (3, 3, 6, 0), (3, 3, 6, 3), (3, 3, 6, 6)):
        records = db.get_many("data", keys)
        assert all(same(each.tensor, value) for each, value in zip(records, values, strict=True))
        assert hits(db) == expected
    assert db.cache.stats().lookups == 3
    twice = db.get_many("data", [keys[0], keys[2], keys[0]])
    assert [each.metadata["n"] for each in twice] == [0, 2, 0]
    assert hits(db) == (3, 3, 6, 9)
    assert twice[0].tensor.data_ptr() != twice[2].tensor.data_ptr()
    assert db.get_many("data", []) == []
    fresh = db.insert("data", values[0])
    assert len(db.get_many("data", [keys[1], fresh])) == 2
    assert hits(db)[3] == 10
    assert db.cache.stats().lookups == 4


def test_records_of_pages_read_together_stay_within_the_bytes_there_are(tmp_path: Path) -> None:
    config = CacheConfig(decoded_bytes=30_000, encoded_bytes=60_000, promote_after=1)
    with TensorStorage(tmp_path, cache=config) as db:
        db.create_dataset("data")
        values = sample(torch.float32, 300, 50)
        keys = db.insert_many("data", values)
        for start in range(0, 300, 30):
            for _ in range(3):
                found = db.get_many("data", keys[start : start + 30])
                assert same(torch.stack([each.tensor for each in found]), values[start : start + 30])
            stats = db.cache.stats()
            assert stats.decoded_bytes <= 30_000
            assert stats.encoded_bytes <= 60_000
        assert sum(hits(db)) == 900


def test_in_a_transaction_many_are_what_it_wrote_and_nothing_of_that_is_kept(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, cache=TIERS["decoded"]) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(20), {"a": 1})
        warm(db, "decoded", [key])
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            db.update_tensor_metadata("data", key, {"a": 2})
            added = db.insert("data", torch.zeros(20))
            assert [each.metadata for each in db.get_many("data", [key, added])] == [{"a": 2}, {}]
            raise ZeroDivisionError
        assert db.get_many("data", [key])[0].metadata == {"a": 1}
        with pytest.raises(TensorNotFoundError):
            db.get_many("data", [added])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_from_a_file_is_verified_every_time(
    tmp_path: Path, way: Callable[[TensorStorage, Sequence[str]], list[Record]]
) -> None:
    with ExitStack() as stack:
        dbs = {tier: stack.enter_context(TensorStorage(tmp_path, cache=TIERS[tier])) for tier in TIERS}
        first = dbs["decoded"]
        first.create_dataset("data")
        key = first.insert("data", tensor := torch.randn(4000))
        for tier, db in dbs.items():
            warm(db, tier, [key])
        (segment,) = (each for each in (tmp_path / "segments").iterdir() if each.stat().st_size > 4000)
        content = bytearray(segment.read_bytes())
        middle = content.rindex(next(b for b in reversed(content) if b)) - 2_000
        content[middle] ^= 1
        segment.write_bytes(content)
        for _ in range(2):
            with pytest.raises(IntegrityError, match=key):
                way(dbs["mapped"], [key])
            for tier in ("encoded", "decoded"):
                assert same(way(dbs[tier], [key])[0].tensor, tensor)


def test_wrong_arguments_are_the_same_errors_with_a_cache(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, cache=TIERS["decoded"]) as db, TensorStorage(tmp_path) as plain:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(3))
        warm(db, "decoded", [key])
        for name, keys in (
            ("data", ["x", key, "y"]), ("none", [key]), (7, [key]), (["data"], [key]), ("data", [7]), ("data", key),
            ("data", [key, None]), ("none", []),
        ):  # fmt: skip
            messages = [error_of(each.get_many, name, keys) for each in (db, plain)]
            assert messages[0] == messages[1]
        for wrong in ({"out": 5}, {"copy": "no"}, {"copy": False, "device": "cpu"}, {"index": "x"}):
            messages = [error_of(each.get_tensor_by_id, "data", key, **wrong) for each in (db, plain)]
            assert messages[0] == messages[1]


def error_of(call: Callable[..., object], *arguments: object, **options: object) -> tuple[type[Exception], str]:
    """Call what is to fail, and return how it did."""
    try:
        result = call(*arguments, **options)
    except ValueError as error:
        return type(error), str(error)
    pytest.fail(f"{arguments} gave {result}")
