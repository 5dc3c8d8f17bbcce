"""The cache: what is read again comes from memory, and is never what a record no longer is."""

import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tensordb import CacheConfig, CacheStats, IntegrityError, InvalidInputError, TensorNotFoundError, TensorStorage
from tests.faults.programs import in_another_process
from tests.storage.tensors import DTYPES, same, sample

SOON = CacheConfig(decoded_bytes=1 << 20, encoded_bytes=1 << 20, promote_after=1)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where a database is made."""
    return tmp_path / "data.tdb" if request.param == "disk" else None


def read(db: TensorStorage, key: str, times: int = 1) -> torch.Tensor:
    """Read a record so many times, and return its tensor."""
    tensors = [db.get_tensor_by_id("data", key).tensor for _ in range(times)]
    assert all(same(each, tensors[0]) for each in tensors)
    return tensors[-1]


def hits(db: TensorStorage) -> tuple[int, int, int, int]:
    """Return misses, and the hits of each tier from the last one to the first."""
    stats = db.cache.stats()
    return stats.misses, stats.mapped_hits, stats.encoded_hits, stats.decoded_hits


def test_a_record_moves_up_with_every_so_many_reads_and_is_the_same_everywhere(place: Path | None) -> None:
    with TensorStorage(place, cache=CacheConfig(promote_after=2)) as db:
        db.create_dataset("data")
        pages = [sample(dtype, 40, 6, 5) for dtype in DTYPES]
        with db.transaction():
            keys = [
                key
                for page in pages
                for key in (db.insert("data", page[3], {"n": [1]}), db.insert_many("data", page)[7])
            ]
        for key, tensor in zip(keys, [page[row] for page in pages for row in (3, 7)], strict=True):
            db.cache.clear()
            for expected in ((1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 2, 0), (1, 1, 2, 1), (1, 1, 2, 2)):
                record = db.get_tensor_by_id("data", key)
                assert same(record.tensor, tensor)
                assert hits(db) == expected
            fresh = db.get_many("data", [key])[0]
            assert (record.id, record.metadata, record.encoding) == (fresh.id, fresh.metadata, fresh.encoding)
            assert (record.created_at, record.dataset) == (fresh.created_at, fresh.dataset)
            assert repr(record) == repr(fresh)
            assert db.cache.stats().lookups == 1


def test_what_was_read_is_ones_own(place: Path | None) -> None:
    with TensorStorage(place, cache=SOON) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(50), {"flat": 1, "deep": {"list": [1]}})
        for _ in range(6):
            record = db.get_tensor_by_id("data", key)
            assert record.tensor.sum() == 50
            assert record.metadata == {"flat": 1, "deep": {"list": [1]}}
            record.tensor.fill_(7)
            record.metadata["deep"]["list"].append(2)
            record.metadata["flat"] = 2
        given = torch.zeros(50)
        assert db.get_tensor_by_id("data", key, out=given).tensor is given
        given.fill_(9)
        on_cpu = db.get_tensor_by_id("data", key, device="cpu").tensor
        on_cpu.fill_(9)
        assert read(db, key).sum() == 50
        with pytest.raises(InvalidInputError, match="out="):
            db.get_tensor_by_id("data", key, out=torch.zeros(3))


def test_parts_and_views_of_what_is_cached(place: Path | None) -> None:
    with TensorStorage(place, cache=SOON, compression_preset="none") as db:
        db.create_dataset("data")
        values = torch.arange(60.0).reshape(12, 5)
        key = db.insert("data", values)
        for _ in range(4):
            read(db, key)
            assert torch.equal(
                db.get_tensor_by_id("data", key, index=(slice(None, None, -2), 1)).tensor, values[:, 1].flip(0)[::2]
            )
            assert torch.equal(db.get_tensor_by_id("data", key, index=3).tensor, values[3])
            assert torch.equal(db.get_tensor_by_id("data", key, copy=False).tensor, values)
        with pytest.raises(IndexError):
            db.get_tensor_by_id("data", key, index=12)


def test_both_tiers_stay_within_their_bytes_and_the_first_hands_down_to_the_second(place: Path | None) -> None:
    config = CacheConfig(decoded_bytes=20_000, encoded_bytes=40_000, promote_after=1)
    with TensorStorage(place, cache=config) as db:
        db.create_dataset("data")
        keys = [db.insert("data", sample(torch.float32, 200, seed=seed)) for seed in range(60)]
        for key in [*keys, *keys]:
            read(db, key, 3)
            stats = db.cache.stats()
            assert stats.decoded_bytes <= 20_000
            assert stats.encoded_bytes <= 40_000
        assert stats.decoded_evictions > 40
        assert stats.demotions > 20
        assert stats.encoded_evictions > 40
        # The last ones are still there, the first ones are not.
        db_hits = hits(db)
        read(db, keys[-1])
        assert hits(db)[3] == db_hits[3] + 1
        large = db.insert("data", torch.randn(50_000))
        read(db, large, 5)
        assert db.cache.stats().decoded_bytes <= 20_000
        assert hits(db)[3] == db_hits[3] + 1


@pytest.mark.parametrize("off", ["decoded_bytes", "encoded_bytes"])
def test_a_tier_of_no_bytes_is_left_out(place: Path | None, off: str) -> None:
    with TensorStorage(place, cache=CacheConfig(**{off: 0, "promote_after": 1})) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.randn(100))
        read(db, key, 10)
        misses, mapped, encoded, decoded = hits(db)
        assert misses + mapped + encoded + decoded == 10
        assert (encoded, decoded) == ((9, 0) if off == "decoded_bytes" else (0, 9))
        assert getattr(db.cache.stats(), off) == 0


CHANGES: dict[str, Callable[[TensorStorage, str], object]] = {
    "update": lambda db, key: db.update_tensor_metadata("data", key, {"new": 1}),
    "delete": lambda db, key: db.delete_tensor("data", key),
    "delete_where": lambda db, key: db.delete_where("data", "record_id = ?", params=[key]),
    "delete_dataset": lambda db, key: db.delete_dataset("data"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_stale_after_a_change(place: Path | None, change: str) -> None:
    with TensorStorage(place, cache=SOON) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(50), {"old": 1}, record_id="mine")
        read(db, key, 5)
        CHANGES[change](db, key)
        if change == "update":
            assert db.get_tensor_by_id("data", key).metadata == {"new": 1}
            return
        with pytest.raises((TensorNotFoundError, ValueError)):
            db.get_tensor_by_id("data", key)
        if change == "delete_dataset":
            db.create_dataset("data")
        db.insert("data", torch.zeros(70), record_id="mine")
        assert read(db, key).shape == (70,)


@pytest.mark.parametrize("change", ["update", "delete", "transaction"])
def test_nothing_is_stale_after_a_change_by_another_process_between_two_reads(tmp_path: Path, change: str) -> None:
    with TensorStorage(tmp_path, cache=SOON) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(50), {"old": 1}, record_id="mine")
        other = db.insert("data", torch.ones(3), record_id="other")
        read(db, key, 5)
        before = db.cache.stats().lookups
        if change == "update":
            in_another_process(tmp_path, "db.update_tensor_metadata('data', 'mine', {'new': 1})")
            assert db.get_tensor_by_id("data", key).metadata == {"new": 1}
            assert db.cache.stats().decoded_hits > 3, "its tensor is the same, and needs no decoding"
        else:
            block = "with db.transaction():\n    " if change == "transaction" else ""
            again = "db.insert('data', torch.zeros(70), record_id='mine')"
            in_another_process(tmp_path, f"{block}db.delete_tensor('data', 'mine'); {again}")
            assert read(db, key).shape == (70,)
            in_another_process(tmp_path, "db.delete_tensor('data', 'mine')")
            with pytest.raises(TensorNotFoundError):
                read(db, key)
        assert db.cache.stats().lookups > before
        assert read(db, other).sum() == 3


def test_inserts_of_others_cost_a_cached_record_nothing(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, cache=SOON) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(50))
        read(db, key, 5)
        before = db.cache.stats()
        in_another_process(tmp_path, "db.insert('data', torch.ones(3))\ndb.insert_many('data', torch.ones(3, 3))")
        db.insert("data", torch.zeros(4))
        read(db, key, 5)
        after = db.cache.stats()
        assert after.lookups == before.lookups
        assert after.decoded_hits == before.decoded_hits + 5


def test_two_storages_of_a_process_see_each_other(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, cache=SOON) as db, TensorStorage(tmp_path, cache=SOON) as second:
        db.create_dataset("data")
        for turn in range(5):
            key = db.insert("data", torch.full((20,), float(turn)), record_id="mine")
            for each in (db, second):
                assert read(each, key, 4)[0] == turn
            (second if turn % 2 else db).delete_tensor("data", key)
            for each in (db, second):
                with pytest.raises(TensorNotFoundError):
                    read(each, key)


def test_a_transaction_reads_what_it_wrote_and_leaves_nothing_behind(place: Path | None) -> None:
    with TensorStorage(place, cache=SOON) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(20), {"a": 1})
        read(db, key, 5)
        added = ""
        try:
            with db.transaction():
                db.update_tensor_metadata("data", key, {"a": 2})
                added = db.insert("data", torch.zeros(20))
                for _ in range(4):
                    assert db.get_tensor_by_id("data", key).metadata == {"a": 2}
                    assert read(db, added).sum() == 0
                db.delete_tensor("data", key)
                with pytest.raises(TensorNotFoundError):
                    read(db, key)
                raise RuntimeError("undo")
        except RuntimeError:
            pass
        assert db.get_tensor_by_id("data", key).metadata == {"a": 1}
        with pytest.raises(TensorNotFoundError):
            read(db, added)


def test_threads_that_read_while_others_write_see_each_state_and_no_other(place: Path | None) -> None:
    with TensorStorage(place, cache=CacheConfig(decoded_bytes=8_000, encoded_bytes=8_000, promote_after=1)) as db:
        db.create_dataset("data")
        keys = [db.insert("data", torch.full((60,), float(n)), {"turn": 0}) for n in range(12)]
        done = [0] * len(keys)
        stop = threading.Event()

        def look(seed: int) -> None:
            turn = seed
            while not stop.is_set():
                turn = (turn * 5 + 3) % len(keys)
                least = done[turn]
                record = db.get_tensor_by_id("data", keys[turn])
                assert record.metadata["turn"] >= least
                assert (record.tensor == turn).all()

        with ThreadPoolExecutor(4) as pool:
            looking = [pool.submit(look, seed) for seed in range(4)]
            try:
                for step in range(1, 40):
                    which = step % len(keys)
                    db.update_tensor_metadata("data", keys[which], {"turn": step})
                    done[which] = step
            finally:
                stop.set()
            for each in looking:
                each.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_with_what_is_cached_and_notices_changes(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, cache=SOON) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(20))
        read(db, key, 5)
        lookups = db.cache.stats().lookups
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                assert read(db, key, 3).sum() == 20
                assert db.cache.stats().lookups == lookups
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                with pytest.raises(TensorNotFoundError):
                    read(db, key)
                status = 0
            finally:
                os._exit(status)
        os.read(ready[0], 1)
        db.delete_tensor("data", key)
        os.write(go[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for each in (*ready, *go):
            os.close(each)


def test_readers_of_a_folder_that_only_they_cannot_write_notice_changes_too(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(20))
        with TensorStorage(tmp_path, read_only=True, cache=SOON) as reader:
            read(reader, key, 5)
            assert reader.cache.stats().lookups == 1
            db.delete_tensor("data", key)
            with pytest.raises(TensorNotFoundError):
                read(reader, key)


def test_checksums_are_verified_when_a_payload_comes_in_and_not_again(tmp_path: Path) -> None:
    with TensorStorage(tmp_path) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.randn(20_000))
    (segment,) = (tmp_path / "segments").iterdir()

    def damage() -> None:
        content = bytearray(segment.read_bytes())
        middle = content.rindex(next(b for b in reversed(content) if b)) - 5_000
        content[middle] ^= 1
        segment.write_bytes(content)

    with TensorStorage(tmp_path, cache=SOON) as db:
        expected = read(db, key)
        encoded = CacheConfig(decoded_bytes=0, promote_after=1)
        with TensorStorage(tmp_path, cache=encoded) as second:
            read(db, key, 4)
            read(second, key, 4)
            damage()
            assert same(read(db, key), expected)
            assert same(read(second, key), expected)
            for each in (db, second):
                each.cache.clear()
                for _ in range(3):
                    with pytest.raises(IntegrityError, match=key):
                        read(each, key)
                assert each.cache.stats().decoded_hits == each.cache.stats().encoded_hits == 0
        assert not db.verify().ok


def test_without_a_cache_nothing_is_held_and_nothing_counted(place: Path | None) -> None:
    with TensorStorage(place) as db:
        db.create_dataset("data")
        key = db.insert("data", torch.ones(3))
        read(db, key, 5)
        assert db.cache.stats() == CacheStats()
        db.cache.clear()
        assert db.cache.config is None


def test_clear_drops_everything_and_a_closed_storage_has_nothing(place: Path | None) -> None:
    db = TensorStorage(place, cache=SOON)
    db.create_dataset("data")
    key = db.insert("data", torch.ones(3))
    read(db, key, 5)
    assert db.cache.stats().decoded_bytes > 0
    db.cache.clear()
    assert db.cache.stats() == CacheStats()
    read(db, key, 5)
    db.close()
    with pytest.raises(Exception, match="closed"):
        read(db, key)


def test_a_pickled_storage_has_the_same_cache(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, cache=SOON) as db, pickle.loads(pickle.dumps(db)) as again:
        assert again.cache.config == SOON


@pytest.mark.parametrize(
    "wrong", [{"decoded_bytes": -1}, {"encoded_bytes": 1.5}, {"promote_after": 0}, {"decoded_bytes": True}]
)
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        CacheConfig(**wrong)
    with pytest.raises(InvalidInputError, match="CacheConfig"):
        TensorStorage(None, cache=1 << 20)  # type: ignore[arg-type]


def test_wrong_names_and_ids_are_the_same_errors_as_ever(place: Path | None) -> None:
    with TensorStorage(place, cache=SOON) as db:
        db.create_dataset("data")
        for name, key in (("data", 7), ("data", ["x"]), (["data"], "x"), (None, "x")):
            with pytest.raises(InvalidInputError):
                db.get_tensor_by_id(name, key)  # type: ignore[arg-type]
        for name, key in (("nothing", "x"), ("data", "x"), ("data", "")):
            with pytest.raises(ValueError, match=r"data|nothing"):
                db.get_tensor_by_id(name, key)
