"""Recording a program that does a bit of everything, and opening what a power cut at any moment would leave of it."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensordb import TensorStorage

from . import scenarios
from .power import Disk, Event, State, kinds, left_by_cut, record, restore
from .programs import PREAMBLE, made

PROGRAM = "\n".join(
    [
        "from __future__ import annotations",
        PREAMBLE,
        "import hashlib",
        *(inspect.getsource(each) for each in (scenarios.state, scenarios.contents, scenarios.digest)),
        """
from tensordb import files
for number, left_out in enumerate(sys.argv[3:]):
    if not (child := os.fork()):
        break
    assert os.waitpid(child, 0)[1] == 0
else:
    sys.exit()
folder = os.path.join(folder, str(number), "deep")
if left_out:
    setattr(files, left_out, lambda *_: None)
path = os.path.join(folder, "er", "db")
held = [{}]

def reopen():
    global db
    db.close()
    db = TensorStorage(path)

def together():
    with db.transaction():
        weight = db.weights.store(made(5, 9_000), name="w")
        db.weights.store_delta(made(5, 9_000) + 1e-3, weight, name="w2")
        db.update_tensor_metadata("d", "fourth", {"text": "new"})
        db.delete_tensor("d", "third")

db = TensorStorage(path)
for act in (
    lambda: db.create_dataset("d"),
    lambda: db.insert("d", made(1, 30), record_id="small"),
    lambda: db.insert("d", made(2, 7_000), record_id="large"),
    lambda: db.insert_many("d", [made(9, 90_000)] + [made(i, 400) for i in range(5)], record_ids=list("abcdef")),
    lambda: db.checkpoints.save("run", state(0), step=0, rng=False),
    lambda: db.checkpoints.save("run", state(1), step=1, rng=False),
    lambda: db.delete_tensor("d", "large"),
    lambda: db.maintenance.compact(min_dead=0),
    reopen,
    lambda: db.insert("d", made(3, 7_000), record_id="third"),
    lambda: db.checkpoints.prune("run", keep_last=1),
    lambda: db.maintenance.gc(),
    lambda: db.insert("d", made(4, 40), record_id="fourth"),
    together,
    lambda: db.create_index("d", "text"),
    lambda: db.maintenance.compact("d", preset="fast"),
    lambda: db.checkpoints.save("run", state(2), step=2, rng=False, async_=True).wait(),
    lambda: db.checkpoints.fork("run", 1, "other"),
    lambda: db.checkpoints.delete_run("run"),
    lambda: db.delete_dataset("d"),
):
    act()
    # One that leaves something out does the same things, and tells once what it holds, to be compared.
    held.append(contents(db) if not left_out or len(held) == int(sys.argv[2]) else None)
    os.write(2, b"acknowledged %d %s " % (len(held) - 1, folder.encode()))
db.close()
with open(folder + ".json", "w") as file:
    json.dump(held, file)
""",
    ]
)


_COMPARED = 17
"""Number of the thing after which most is there."""


@dataclass(frozen=True)
class Recording:
    """What a program did to its folder, and what its database held after each thing that it acknowledged."""

    folder: Path
    events: Sequence[Event]
    held: Sequence[scenarios.Contents]


@dataclass(frozen=True)
class Cut:
    """A kind of state that a cut may leave after `events` events, of which the program acknowledged number `done`."""

    events: int
    done: int
    kind: str


def recorded(work: Path, *left_out: str) -> list[Recording]:
    """Record the program as it is, and once more without each of these functions of `tensordb.files`."""
    folders = [work / str(number) / "deep" for number in range(len(left_out) + 1)]
    for folder in folders:
        folder.parent.mkdir()
    every = record(PROGRAM, folders, work / "log", work, _COMPARED, "", *left_out)
    held, *others = (json.loads(folder.with_suffix(".json").read_text()) for folder in folders)
    assert all(other[_COMPARED] == held[_COMPARED] for other in others)
    for folder in folders:
        shutil.rmtree(folder)
    return [Recording(folder, events, held) for folder, events in zip(folders, every, strict=True)]


def cuts(recording: Recording, seed: int = 0) -> Iterator[Cut]:
    """Yield every kind of state that a cut at any moment may leave; the seed draws those by chance."""
    disk, done = Disk(recording.folder), 0
    for number, event in enumerate(recording.events, 1):
        disk.apply(event)
        done = event.offset if event.call == "done" else done
        if event.call not in ("seek", "open"):
            yield from (Cut(number, done, kind) for kind in kinds(disk, seed))


def state_of(cut: Cut, recording: Recording) -> State:
    """Return the files that the cut leaves."""
    disk = Disk(recording.folder)
    for event in recording.events[: cut.events]:
        disk.apply(event)
    return left_by_cut(disk, cut.kind)


def wrong_with(cut: Cut, recording: Recording, work: Path) -> str | None:
    """Open what a cut left; return what is wrong with it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    restore(state_of(cut, recording), str(recording.folder), work)
    known: list[Any] = list(recording.held[cut.done : cut.done + 2])
    try:
        with TensorStorage(work / "er" / "db") as db:
            found = json.loads(json.dumps(scenarios.contents(db)))
            if found not in known:
                missing = [key for key in known[0] if found.get(key) != known[0][key]]
                return f"it holds {len(found)} things, neither as acknowledged nor as begun; other: {missing[:5]}"
            db.maintenance.gc()
            db.create_dataset("later")
            db.insert("later", made(1, 8_000))
            return None if (report := db.verify()).ok else f"damaged: {report}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def failures(recording: Recording, chosen: Sequence[Cut], work: Path) -> list[str]:
    """Return what is wrong with each of these states."""
    found = []
    for cut in chosen:
        wrong = wrong_with(cut, recording, work)
        if wrong is not None:
            last = recording.events[cut.events - 1]
            found.append(f"after event {cut.events} ({last.call} {Path(last.path).name}), {cut.kind}: {wrong}")
    return found
