"""The long form of test_salvage: bits and stretches of the catalog damaged by chance, and what salvaging gives then.

What is there afterwards is as it was, or it is a tensor whose name was lost; what is not is told. What a flipped bit in
the padding of a block, or in a header, costs is counted: that is nothing.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tensordb import TensorStorage
from tensordb.catalog import blocks
from tensordb.catalog.fields import quoted
from tensordb.salvage import DATASET, salvage

from .programs import made
from .scenarios import Contents, build, contents, state
from .sweeping import BLOCK, HEADERS

_LONGEST = 20_000
"""Bytes of a stretch that is damaged at once."""


def run(minutes: float, seed: int) -> dict[str, int]:
    """Damage the catalog until the time is over; return how often, and what salvaging gave."""
    end, chance, met, broken = time.monotonic() + 60 * minutes, random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as work:
        folder, target = Path(work) / "db", Path(work) / "new"
        _build_aged(folder)
        before = _everything(folder)
        sound = (folder / "catalog.duckdb").read_bytes()
        free = blocks.check(folder / "catalog.duckdb").free
        while not met or time.monotonic() < end:
            kind, begin, data = _damage(sound, free, chance)
            (folder / "catalog.duckdb").write_bytes(sound[:begin] + data + sound[begin + len(data) :])
            outcome, wrong = _outcome(folder, target, before)
            met[f"{kind}: {outcome}"] += 1
            if wrong or outcome == "only tensors":
                broken += bool(wrong)
                print(f"{kind} of {len(data)} bytes at {begin}: {outcome} {wrong}", flush=True)
            shutil.rmtree(target, ignore_errors=True)
    return {"databases salvaged": sum(met.values()), **dict(sorted(met.items())), "promises broken": broken}


def _build_aged(folder: Path) -> None:
    """Make a database that was changed in several sessions, with values that are missing, and with deleted ones."""
    build(folder)
    for session in range(3):
        with TensorStorage(folder) as db:
            for i in range(6):
                known = {} if i == session else {"loss": 1 / (3 + i + session), "hash": (i + 1) ** 23, "zero": 0}
                db.insert("d", made(200 + 10 * session + i, 50), {"i": 2**i, **known}, record_id=f"s{session}.{i}")
            db.delete_where("d", f"record_id = 's{session}.4'")
            db.update_tensor_metadata("d", f"s{session}.5", {"zero": 16}, merge=True)
            db.checkpoints.save("run", state(2 + session), step=2 + session, rng=False)


def _everything(folder: Path) -> Contents:
    """Return what a database holds, and what SQL tells of it."""
    with TensorStorage(folder) as db:
        found = contents(db)
        for name in db.list_datasets():
            for row in db.sql(f"SELECT * FROM {quoted(name)}").to_pylist():
                found[f"{name}#{row['record_id']}"] = repr(row)
        for row in db.sql("SELECT * EXCLUDE (tags, run) FROM history.checkpoints").to_pylist():
            found[f"checkpoint#{row['checkpoint_id']}"] = repr(row)
        return found


def _damage(sound: bytes, free: frozenset[int], chance: random.Random) -> tuple[str, int, bytes]:
    """Return a kind of damage to a part of the catalog that is in use, where it begins, and the damaged bytes."""
    used = [block for block in range((len(sound) - HEADERS) // BLOCK) if block not in free]
    at = HEADERS + chance.choice(used) * BLOCK + chance.randrange(BLOCK)
    if chance.random() < 0.5:  # most of a block is padding: in half of the cases not
        at = HEADERS + (at - HEADERS) // BLOCK * BLOCK + chance.randrange(6_000)
    if chance.random() < 0.1:
        at = chance.randrange(HEADERS)
    if at < HEADERS or chance.random() < 0.7:
        return "bit", at, bytes([sound[at] ^ 1 << chance.randrange(8)])
    return "stretch", at, chance.randbytes(min(chance.randrange(2, _LONGEST), BLOCK - (at - HEADERS) % BLOCK))


def _outcome(folder: Path, target: Path, before: Contents) -> tuple[str, str]:
    """Salvage; return how much is there, and what is not as promised."""
    try:
        report = salvage(folder, target)
        found = _everything(target)
        with TensorStorage(target) as db:
            verified = db.verify()
    except Exception as error:
        return "error", repr(error)
    tensors = {value[0] for key, value in found.items() if key.startswith(f"{DATASET}/")}
    known = {key: value for key, value in found.items() if not _is_new(key)}
    if not verified.ok:
        return "wrong", f"verify finds {verified.damaged_catalog or verified.damaged or verified.damaged_tensors}"
    if strange := [key for key in known if key not in before]:
        return "wrong", f"{strange[:3]} were not there"
    if strange := [key for key in known if _essence(key, known[key]) != _essence(key, before[key])]:
        return "wrong", f"{strange[:3]} differ"
    gone = before.keys() - known.keys()
    if gone and not report.not_salvaged:
        return "wrong", f"{sorted(gone)[:3]} are gone, which is not told"
    if not gone:
        return "whole" if known == before else "whole but tags or a count", ""
    return ("only tensors" if len(known) < 3 and tensors else "in part"), ""


def _is_new(key: str) -> bool:
    """Whether this is of what was made for what had lost its name."""
    return key.startswith((f"{DATASET}", f"dataset {DATASET}"))


def _essence(key: str, value: Any) -> Any:
    """Return what no loss elsewhere changes: not the number of a dataset's records, labels and tags."""
    if key.startswith("dataset "):
        return None
    if key.startswith("weight "):
        return value[0]
    return {name: each for name, each in value.items() if name != "tags"} if isinstance(value, dict) else value
