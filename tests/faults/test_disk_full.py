"""A full disk: a clear error, nothing acknowledged is lost, and the same storage goes on once there is space."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensordb import TensorStorage
from tensordb.errors import StorageFullError

from .programs import made, run_each

LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def limit(nbytes):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if nbytes is None else nbytes, hard))

def check(db, kept):
    found = {record.id: record for record in db.scan("d")}
    assert set(found) == set(kept), (len(found), len(kept))
    assert all(found[key].tensor.equal(made(*kept[key])) for key in kept)
    assert db.verify().ok
"""
LARGE = (
    LIMIT
    + """
db, kept = TensorStorage(folder), {}
db.create_dataset("d")
for seed in range(5):
    kept[db.insert("d", made(seed, 40_000))] = (seed, 40_000)
limit(1_000_000)
failures = 0
for seed in range(5, 30):
    try:
        kept[db.insert("d", made(seed, 40_000))] = (seed, 40_000)
    except StorageFullError as error:
        assert "free space" in str(error)
        failures += 1
        try:
            db.insert_many("d", [made(i, 50_000) for i in range(9)])
        except StorageFullError:
            pass
        else:
            raise AssertionError("nine of them fit where one did not")
        check(db, kept)
    if failures == 4:
        break
assert failures == 4
limit(None)
kept[db.insert("d", made(99, 40_000))] = (99, 40_000)
ids = db.insert_many("d", [made(i, 50_000) for i in range(9)])
kept.update((key, (i, 50_000)) for i, key in enumerate(ids))
check(db, kept)
db.maintenance.gc()
check(db, kept)
db.close()
with TensorStorage(folder) as db:
    check(db, kept)
"""
)
SMALL = (
    LIMIT
    + """
db, kept = TensorStorage(folder), {}
db.create_dataset("d")
wal = os.path.join(folder, "catalog.duckdb.wal")
for seed in range(20):
    kept[db.insert("d", made(seed, 200))] = (seed, 200)
limit(os.path.getsize(wal) + ROOM)
failures = 0
for seed in range(20, 60):
    try:
        with db.transaction():
            key = db.insert("d", made(seed, 200))
            db.insert("d", made(seed + 1000, 200), record_id=f"second of {seed}")
        kept[key] = (seed, 200)
        kept[f"second of {seed}"] = (seed + 1000, 200)
    except StorageFullError as error:
        failures += 1
        check(db, kept)
    if failures == 3:
        break
assert failures == 3
limit(None)
for seed in range(60, 80):
    kept[db.insert("d", made(seed, 200))] = (seed, 200)
check(db, kept)
db.close()
with TensorStorage(folder) as db:
    check(db, kept)
    db.maintenance.compact()
    check(db, kept)
"""
)


def test_a_commit_that_cannot_be_written_is_undone_and_work_goes_on_afterwards(tmp_path: Path) -> None:
    run_each([SMALL.replace("ROOM", str(room)) for room in (0, 700)], tmp_path)


CLOSING = (
    LIMIT
    + """
with TensorStorage(folder) as db:
    db.create_dataset("d")
    kept = {db.insert("d", made(seed, 1500)): (seed, 1500) for seed in range(200)}
    limit(4096)  # enough for nothing: the checkpoint at closing fails too
    for act in (lambda: db.insert("d", made(1, 10)), lambda: db.maintenance.compact(), lambda: db.create_dataset("e")):
        try:
            act()
        except StorageFullError:
            continue
        raise AssertionError("it fitted")
    check(db, kept)
limit(None)
with TensorStorage(folder) as db:
    check(db, kept)
"""
)


PAGING = (
    LIMIT
    + """
with TensorStorage(folder) as db:
    db.create_dataset("d")
    with db.transaction():
        kept = {db.insert("d", made(seed, 1500)): (seed, 1500) for seed in range(40)}
    metadata = [{"gone": seed % 10 == 0} for seed in range(600)]
    ids = db.insert_many("d", [made(seed, 2000) for seed in range(600)], metadata)
    kept.update((key, (seed, 2000)) for seed, key in enumerate(ids) if seed % 10)
    db.delete_where("d", "metadata.gone")
    catalog = os.path.join(folder, "catalog.duckdb")
    db.create_dataset("e")
    for room in (4096, 300_000):
        limit(room if room == 4096 else os.path.getsize(catalog) + room)  # for nothing, or too little for the pages
        try:
            db.maintenance.compact(min_dead=0, preset=PRESET)
        except StorageFullError as error:
            assert "free space" in str(error)
        else:
            raise AssertionError("it fitted")
        limit(None)
        check(db, kept)
        db.maintenance.compact("e")  # has the catalog at its full size from here on
    db.maintenance.compact(min_dead=0, preset=PRESET)
    check(db, kept)
with TensorStorage(folder) as db:
    check(db, kept)
    assert db.get_compression_stats("d").objects <= 3
"""
)


def test_a_disk_that_is_full_while_records_go_into_pages_loses_none_of_them(tmp_path: Path) -> None:
    run_each([PAGING.replace("PRESET", preset) for preset in ("None", "'fast'")], tmp_path)


def test_segments_that_cannot_grow_give_an_error_and_closing_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    run_each([LARGE, CLOSING], tmp_path)


SALVAGING = (
    LIMIT
    + """
import shutil
from pathlib import Path
from tensordb.salvage import salvage

with TensorStorage(folder) as db:
    db.create_dataset("d")
    kept = db.insert_many("d", torch.arange(40_000.0).reshape(-1, 2), [{"i": i} for i in range(20_000)])
with TensorStorage(folder) as db:
    kept += db.insert_many("d", torch.arange(60_000.0).reshape(-1, 2), [{"i": i} for i in range(30_000)])
    shutil.copytree(folder, folder + " damaged")
source, target = Path(folder + " damaged"), Path(folder + " new")
catalog, log = source / "catalog.duckdb", source / "catalog.duckdb.wal"
with catalog.open("r+b") as file:
    file.seek(12_288 + 2 * (1 << 18) + 1_000)
    file.write(b"damage")
larger = max(catalog.stat().st_size, log.stat().st_size)
for room in (4096, larger, larger + 100_000):  # for nothing, for the copy, for some of the catalog that is written anew
    limit(room)
    try:
        salvage(source, target)
    except StorageFullError as error:
        assert "free" in str(error)
    else:
        raise AssertionError("it fitted")
    limit(None)
    assert not target.exists()
salvage(source, target)
with TensorStorage(target) as db:
    assert {record.id for record in db.scan("d")} == set(kept)
    assert db.verify().ok
"""
)


def test_a_disk_that_is_full_while_a_database_is_salvaged_costs_nothing_that_can_be_read(tmp_path: Path) -> None:
    run_each([SALVAGING], tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux" or os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root on Linux")
    made_it = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if made_it.returncode:
        pytest.skip(f"mounting a small tmpfs is refused here: {made_it.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all space of the disk but so many bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_frsize - leave
    with ballast.open("wb") as stream:
        stream.write(bytes(size))
    return ballast


@pytest.mark.parametrize(("size", "leave"), [(100, 0), (100, 100_000), (60_000, 4096), (60_000, 1_500_000)])
def test_a_full_disk_is_an_error_loses_nothing_and_passes(small_disk: Path, size: int, leave: int) -> None:
    kept: set[int] = set()

    def put(db: TensorStorage, seed: int) -> bool:
        db.insert("d", made(seed, size), {"seed": seed})
        kept.add(seed)
        return True

    with TensorStorage(small_disk / "db") as db:
        db.create_dataset("d")
        for seed in range(10):
            put(db, seed)
        ballast = fill(small_disk, leave)
        seeds_left = iter(range(10, 100_000))
        with pytest.raises(StorageFullError):
            all(put(db, seed) for seed in seeds_left)
        assert seeds(db, size) == kept
        with pytest.raises(StorageFullError):
            db.insert_many("d", (made(i, 100_000) for i in range(60)))
        assert seeds(db, size) == kept
        ballast.unlink()
        for seed in range(200_000, 200_010):
            put(db, seed)
        assert seeds(db, size) == kept
    with TensorStorage(small_disk / "db") as db:
        assert seeds(db, size) == kept


def test_a_large_tensor_that_no_longer_fits_leaves_nothing_behind(small_disk: Path) -> None:
    size = 1_300_000  # written while it is encoded
    with TensorStorage(small_disk / "db") as db:
        db.create_dataset("d")
        db.insert("d", made(0, size), {"seed": 0})
        ballast = fill(small_disk, 2_500_000)
        free = os.statvfs(small_disk).f_bavail
        for seed in (1, 2, 3):
            with pytest.raises(StorageFullError, match="free space"):
                db.insert("d", made(seed, size), {"seed": seed})
            assert os.statvfs(small_disk).f_bavail > free * 0.9
        assert seeds(db, size) == {0}
        ballast.unlink()
        db.insert("d", made(4, size), {"seed": 4})
        assert seeds(db, size) == {0, 4}
    with TensorStorage(small_disk / "db") as db:
        assert seeds(db, size) == {0, 4}


def seeds(db: TensorStorage, size: int) -> set[int]:
    """Return the seed of every record, after checking that each is right."""
    found = set()
    for record in db.scan("d"):
        found.add(record.metadata["seed"])
        assert record.tensor.equal(made(record.metadata["seed"], size))
    assert db.count("d") == len(found)
    assert db.verify().ok
    return found


def test_a_new_database_on_a_full_disk_is_an_error_and_can_be_made_later(small_disk: Path) -> None:
    ballast = fill(small_disk, 0)
    with pytest.raises(StorageFullError):
        TensorStorage(small_disk / "db")
    ballast.unlink()
    with TensorStorage(small_disk / "db") as db:
        db.create_dataset("d")
        assert db.count("d") == 0


def test_a_full_disk_can_be_read_and_a_closed_database_opened_on_it(small_disk: Path) -> None:
    with TensorStorage(small_disk / "db") as db:
        db.create_dataset("d")
        for seed in range(20):
            db.insert("d", made(seed, 300), {"seed": seed})
        fill(small_disk, 0)
        assert seeds(db, 300) == set(range(20))
    for read_only in (True, False):
        with TensorStorage(small_disk / "db", read_only=read_only) as db:
            assert seeds(db, 300) == set(range(20))


CHECKPOINTS = (
    LIMIT
    + """
def check(db, kept):
    assert {(each.run, each.step) for each in db.checkpoints.list()} == set(kept)
    for run, step in kept:
        tree = db.checkpoints.load(run, step=step)["model"]
        assert tree["w"].equal(weights(step)) and tree["own"].equal(made(step, LENGTH)), (run, step)
    assert db.verify().ok

def weights(step):
    weight = made(0, 20_000).bfloat16()
    weight[step::50] *= 2
    return weight

def save(db, step, **how):
    state = {"w": weights(step), "own": made(step, LENGTH)}
    return db.checkpoints.save("run", state, step=step, rng=False, **how)

db, kept = TensorStorage(folder), []
for step in range(3):
    save(db, step)
    kept.append(("run", step))
wal = os.path.join(folder, "catalog.duckdb.wal")
limit(LIMIT_NBYTES)
failures = 0
for step in range(3, 40):
    try:
        if step % 2:
            save(db, step)
        else:
            save(db, step, async_=True).wait()
        kept.append(("run", step))
    except StorageFullError as error:
        assert "free" in str(error), error
        failures += 1
        check(db, kept)
    if failures == 3:
        break
assert failures == 3, failures
limit(None)
for step in range(40, 43):
    save(db, step)
    kept.append(("run", step))
check(db, kept)
db.maintenance.gc()
report = db.checkpoints.prune("run", keep_last=2)
kept = kept[-2:]
db.close()
with TensorStorage(folder) as db:
    check(db, kept)
"""
)


def test_a_checkpoint_that_does_not_fit_is_an_error_and_those_before_it_stay(tmp_path: Path) -> None:
    rooms = [(40_000, "700_000"), (20, "os.path.getsize(wal) + 5000")]  # the segment is full, and the catalog is
    codes = [CHECKPOINTS.replace("LENGTH", str(size)).replace("LIMIT_NBYTES", room) for size, room in rooms]
    run_each(codes, tmp_path)
