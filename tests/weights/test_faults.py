"""Weights under kill -9, other processes, damage and read-only opening."""

import os
import signal
from pathlib import Path

import pytest
import torch
from faults.programs import finish, line, made, running, start, stray_segments
from storage.tensors import same

from tensordb import IntegrityError, ReadOnlyError, TensorStorage

from .drawing import drawn, nudged


def flip(file: Path, position: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        (byte,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))


KILLED = """
def tensors():
    for seed in range(6):
        yield made(seed, 100_000)
    db.weights._db.payloads.flush()
    say("written")
    time.sleep(1000)

from tensordb.engine import contents
contents._GROUP_NBYTES = 1
db = TensorStorage(folder)
db.weights.store(made(100, 1000), name="before")
db.weights.store_batch(tensors())
"""


def test_of_a_batch_whose_process_is_killed_nothing_is_seen_and_gc_reclaims_it(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with running(KILLED, folder) as process:
        assert line(process) == "written"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with TensorStorage(folder) as db:
        assert [each.name for each in db.weights.list_weights()] == ["before"]
        assert db.weights.get_storage_info().objects == 1
        assert db.maintenance.verify().ok
        for seed in range(6):
            found = db.weights.store(made(seed, 100_000))
            assert same(db.weights.load(found), made(seed, 100_000))
        db.maintenance.compact(min_dead=0)
        assert stray_segments(db) == []
        assert db.maintenance.verify().weights == 7


TOGETHER = """
db = TensorStorage(folder)
say("ready")
sys.stdin.readline()
hashes = [db.weights.store(made(seed, 20_000), name=sys.argv[2]) for seed in range(10)]
hashes += db.weights.store_batch([made(seed, 3000) for seed in range(50, 80)])
base = db.weights.store(made(1000, 5000))
hashes.append(db.weights.store_delta(made(1000, 5000) + 1e-5, base))
say(json.dumps(hashes))
db.close()
"""


def test_processes_that_store_the_same_at_once_all_succeed_with_one_object_each(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    TensorStorage(folder).close()
    programs = [start(TOGETHER, folder, name) for name in ("one", "two", "three")]
    try:
        for program in programs:
            assert line(program) == "ready"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("go\n")
            program.stdin.flush()
        said = {finish(program) for program in programs}
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert len(said) == 1
    with TensorStorage(folder) as db:
        info = db.weights.get_storage_info()
        assert (info.weights, info.deltas, info.objects, info.labels) == (41, 1, 42, 30)
        counts = db.sql("SELECT count(*) AS n, count(DISTINCT content_id) AS contents FROM tensordb.objects")
        assert counts.to_pylist() == [{"n": 42, "contents": 42}]
        assert db.maintenance.verify().ok
        for each in db.weights.list_weights(name="two"):
            assert {label.name for label in each.labels} == {"one", "two", "three"}
            db.weights.delete(each.hash)
        db.maintenance.compact(min_dead=0)
        assert db.maintenance.verify().ok
        assert db.weights.get_storage_info().objects == 32


def test_damage_is_found_by_loading_and_by_verify_which_name_the_weight(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as db:
        base = db.weights.store(drawn(100, 100), name="base")
        delta = db.weights.store_delta(nudged(drawn(100, 100)), base)
        sound = db.weights.store(drawn(100, 99), name="sound")
        report = db.maintenance.verify()
        assert (report.ok, report.weights, report.objects) == (True, 3, 3)
        ((segment, position),) = [
            (row["segment"], row["position"])
            for row in db.sql(f"SELECT * FROM tensordb.objects WHERE lower(hex(content_id)) = '{base}'").to_pylist()
        ]
    flip(folder / "segments" / f"{segment:016x}.seg", position + 9000)
    with TensorStorage(folder) as db:
        for found in (base, delta):
            with pytest.raises(IntegrityError, match=found):
                db.weights.load(found)
        with pytest.raises(IntegrityError, match=base):
            db.weights.load_batch([sound, base])
        assert same(db.weights.load(sound), drawn(100, 99))
        assert db.weights.get_metadata(base).name == "base"
        report = db.maintenance.verify()
        assert not report.ok
        assert [(each.hash, each.base_hash) for each in report.damaged_weights] == [(base, None), (delta, base)]
        assert "object" in report.damaged_weights[0].reason
        db.weights.delete_delta(delta)
        db.weights.delete(base)
        assert db.maintenance.verify().ok


def test_a_delta_from_a_damaged_base_is_stored_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as db:
        base = db.weights.store(drawn(100, 100))
        (row,) = db.sql("SELECT segment, position FROM tensordb.objects").to_pylist()
    flip(folder / "segments" / f"{row['segment']:016x}.seg", row["position"] + 2)
    with TensorStorage(folder) as db:
        found = db.weights.store_delta(nudged(drawn(100, 100)), base)
        assert same(db.weights.load_delta(found), nudged(drawn(100, 100)))
        with pytest.raises(IntegrityError, match=base):
            db.weights.store_delta(nudged(drawn(100, 100)), base, max_error=1e-3)


def test_what_others_delete_while_it_is_stored_again_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as db, TensorStorage(folder) as other:
        first = db.weights.store(drawn(5000))
        base = db.weights.store(drawn(5000, seed=1))
        taken = []

        class Deleting(list):
            """Yields a stored tensor, and deletes it by another connection before the last one is taken."""

            def __iter__(self):
                yield drawn(5000)
                yield drawn(70_000_000 // 4, seed=2)
                if not taken:
                    taken.append(other.weights.delete(first))
                yield drawn(10)

        from tensordb.engine import contents

        before, contents._GROUP_NBYTES = contents._GROUP_NBYTES, 1 << 20
        try:
            hashes = db.weights.store_batch(Deleting([1]), preset="none")
        finally:
            contents._GROUP_NBYTES = before
        assert hashes[0] == first
        assert taken == [None]
        assert same(db.weights.load(first), drawn(5000))
        assert other.weights.exists(base)
        assert db.maintenance.verify().ok


def test_a_database_opened_for_reading_gives_weights_and_takes_none(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with TensorStorage(folder) as db:
        found = db.weights.store(drawn(10), name="a")
    with TensorStorage(folder, read_only=True) as db:
        assert same(db.weights.load(found), drawn(10))
        assert len(db.weights.list_weights(where="name = 'a'")) == 1
        for ask in (
            lambda: db.weights.store(torch.ones(2)),
            lambda: db.weights.store_batch([]),
            lambda: db.weights.store_delta(torch.ones(10), found),
            lambda: db.weights.delete(found),
        ):
            with pytest.raises(ReadOnlyError):
                ask()
