"""What a power cut may leave of a folder: from the system calls of a program that was recorded by strace.

The rules are those of POSIX and no kinder: bytes are on the disk once their file was synced, names once their folder
was. Of what was not synced any part may be there, in any order, torn where sectors of 512 bytes meet; a file may have
grown without its bytes, which then are zeros. DuckDB's files are recorded as well as tensordb's own.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
TRACED = "openat,lseek,write,writev,pwrite64,pwritev,fsync,fdatasync,ftruncate,fallocate,rename,unlink,mkdir,link,rmdir"
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
ACKNOWLEDGED = b"acknowledged "


@dataclass(frozen=True)
class Event:
    """One call that changed a file of the folder, or `done` when the program acknowledged its number `offset`."""

    call: str
    path: str
    data: bytes = b""
    offset: int = 0


def record(program: str, folders: Sequence[Path], log: Path, *arguments: object) -> list[list[Event]]:
    """Run a Python program and return what it did below each of these folders, in order."""
    command = ["strace", "-f", "-y", "-xx", "-s", "8388608", "-e", f"trace={TRACED}", "-o", str(log)]
    ran = subprocess.run(
        [*command, sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [list(_events(log, str(folder))) for folder in folders]


def _events(log: Path, folder: str) -> Iterator[Event]:
    unfinished: dict[str, str] = {}
    above = str(Path(folder).parent)
    about = (_hexed(os.fsencode(above)), above, _hexed(ACKNOWLEDGED))
    with log.open(encoding="ascii") as lines:
        for line in lines:
            pid = line.split(" ", 1)[0]
            if line.endswith("<unfinished ...>\n"):
                unfinished[pid] = line.removesuffix("<unfinished ...>\n")
                continue
            if " resumed>" in line:
                line = unfinished.pop(pid) + line.split(" resumed>", 1)[1]
            if not any(each in line for each in about):
                continue
            if (found := _LINE.match(line)) and int(found[4]) >= 0:
                yield from _event(found[2], found[3], int(found[4]), folder)


def _hexed(text: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text)


def _event(call: str, given: str, result: int, folder: str) -> Iterator[Event]:
    texts = [bytes.fromhex(each.replace("\\x", "")) for each in _TEXT.findall(given)]
    on = _DESCRIPTOR.match(given)
    path = _plain(on[1]) if on else (os.fsdecode(texts[0]) if texts else "")
    if call == "write" and texts and texts[0].startswith(ACKNOWLEDGED):
        if texts[0].split()[2] == os.fsencode(folder):
            yield Event("done", "", offset=int(texts[0].split()[1]))
        return
    if call == "openat":
        path = os.fsdecode(texts[0])
    if not path.startswith(folder) and path != str(Path(folder).parent):
        return
    if call == "openat" and ("O_RDWR" in given or "O_WRONLY" in given or "O_CREAT" in given):
        yield Event("create" if "O_CREAT" in given else "open", path, b"append" if "O_APPEND" in given else b"")
    elif call == "lseek":
        yield Event("seek", path, offset=result)
    elif call in ("write", "writev"):
        yield Event("append", path, b"".join(texts)[:result])
    elif call == "pwrite64":
        yield Event("write", path, texts[0][:result], int(given.rsplit(", ", 1)[1]))
    elif call == "ftruncate":
        yield Event("truncate", path, offset=int(given.rsplit(", ", 1)[1]))
    elif call in ("fsync", "fdatasync"):
        yield Event("sync", path)
    elif call in ("rename", "link"):
        yield Event(call, path, texts[1])
    elif call in ("unlink", "mkdir"):
        yield Event(call, path)
    elif call in ("pwritev", "fallocate", "rmdir"):
        raise AssertionError(f"{call} is not understood yet")


def _plain(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text.replace("\\x", ""))) if text.startswith("\\x") else text


@dataclass
class File:
    """The bytes of a file: those on the disk, and the writes (offset, bytes) that were not synced."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    size: int = 0
    position: int = 0
    appends: bool = False

    def sync(self) -> None:
        self.durable = self.content(self.pending, self.size)
        self.pending = []

    def content(self, writes: list[tuple[int, bytes]], size: int) -> bytearray:
        """Return the bytes with some of the writes."""
        made = bytearray(self.durable)
        for offset, data in writes:
            made += bytes(max(0, offset + len(data) - len(made)))
            made[offset : offset + len(data)] = data
        return made[:size] + bytes(max(0, size - len(made)))


Names = dict[str, File | None]
"""Files by their paths; None for a folder."""
State = dict[str, bytes | None]
"""The bytes of files by their paths; None for a folder."""


class Disk:
    """A folder as the running system sees it, and what of it is on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.now: Names = {}
        self.durable: Names = {}
        self.pending: list[tuple[str, str, str, File | None]] = []

    def apply(self, event: Event) -> None:
        """Let one event happen."""
        file = self.now.get(event.path)
        if event.call == "create" and event.path not in self.now:
            file = File()
            self._name("put", event.path, "", file)
        if event.call in ("create", "open") and file is not None:
            file.position, file.appends = 0, event.data == b"append"
        elif event.call == "mkdir":
            self._name("put", event.path, "", None)
        elif event.call in ("rename", "link"):
            self._name(event.call, event.path, os.fsdecode(event.data), file)
        elif event.call == "unlink":
            self._name("unlink", event.path, "", None)
        elif event.call == "sync":
            self._sync(event.path, file)
        elif file is not None and event.call in ("append", "write"):
            here = file.size if file.appends else file.position
            offset = here if event.call == "append" else event.offset
            file.pending.append((offset, event.data))
            file.size = max(file.size, offset + len(event.data))
            file.position = offset + len(event.data) if event.call == "append" else file.position
        elif file is not None and event.call == "seek":
            file.position = event.offset
        elif file is not None and event.call == "truncate":
            file.size = event.offset
            file.pending = [(offset, data[: max(0, event.offset - offset)]) for offset, data in file.pending]

    def _name(self, call: str, path: str, target: str, file: File | None) -> None:
        self.pending.append((call, path, target, file))
        _rename(self.now, call, path, target, file)

    def _sync(self, path: str, file: File | None) -> None:
        if file is not None:
            file.sync()
            return
        rest = []
        for change in self.pending:
            if str(Path(change[2] or change[1]).parent) == path:
                _rename(self.durable, *change)
            else:
                rest.append(change)
        self.pending = rest

    def left(self, names: list[int], bytes_of: Callable[[File], bytes]) -> State:
        """Return paths with their bytes: after these of the pending changes of names, and so much of each file."""
        there = dict(self.durable)
        for index in names:
            _rename(there, *self.pending[index])
        made = {path: None if file is None else bytes_of(file) for path, file in there.items()}
        return {path: data for path, data in made.items() if _reachable(path, made, self._folder)}


def _reachable(path: str, made: State, folder: Path) -> bool:
    """Whether the folders above a path are there, from the first one that was made."""
    return all(str(above) in made for above in Path(path).parents if above == folder or folder in above.parents)


def _rename(names: Names, call: str, path: str, target: str, file: File | None) -> None:
    if call == "put":
        names[path] = file
    elif call == "unlink":
        names.pop(path, None)
    else:
        names[target] = file
        if call == "rename":
            names.pop(path, None)


def _none(file: File) -> bytes:
    return bytes(file.durable)


def _all(file: File) -> bytes:
    return bytes(file.content(file.pending, file.size))


def _zeros(file: File) -> bytes:
    return bytes(file.content([], file.size))


def _torn(file: File) -> bytes:
    if not file.pending:
        return bytes(file.durable)
    offset, data = file.pending[-1]
    kept = max(0, (offset + len(data) // 2) // SECTOR * SECTOR - offset)
    writes = [*file.pending[:-1], (offset, data[:kept])]
    # A write within the file, torn, takes away nothing that lies behind it.
    reach = max(len(file.durable), *(begin + len(part) for begin, part in writes))
    return bytes(file.content(writes, min(file.size, reach)))


_BYTES: dict[str, Callable[[File], bytes]] = {
    "nothing": _none,
    "everything": _all,
    "zeros": _zeros,
    "a torn end": _torn,
}
NOTHING = "nothing, no names"
EVERYTHING = "everything, names"


def kinds(disk: Disk, seed: int = 0) -> list[str]:
    """Return the kinds of states that a cut at this moment may leave: the extreme ones, and some by chance."""
    bytes_wait = any(file is not None and file.pending for file in disk.now.values())
    if not bytes_wait and not disk.pending:
        return [EVERYTHING]
    names = ("no names", "names") if disk.pending else ("no names",)
    extreme = [f"{what}, {which}" for which in names for what in (_BYTES if bytes_wait else ["nothing"])]
    return [*extreme, *(f"by chance {seed}-{number}" for number in range(3))]


def left_by_cut(disk: Disk, kind: str) -> State:
    """Return the state of a kind; those by chance are the same for the same seed and moment."""
    every = list(range(len(disk.pending)))
    if not kind.startswith("by chance"):
        what, which = kind.split(", ")
        return disk.left(every if which == "names" else [], _BYTES[what])
    chance = random.Random(f"{kind} {len(every)} {sum(file.size for file in disk.now.values() if file)}")

    def drawn(file: File) -> bytes:
        writes = [write for write in file.pending if chance.random() < 0.5]
        reach = max((offset + len(data) for offset, data in writes), default=len(file.durable))
        return bytes(file.content(writes, min(file.size, max(reach, len(file.durable)))))

    return disk.left([index for index in every if chance.random() < 0.5], drawn)


def restore(state: State, folder: str, to: Path) -> None:
    """Write a state down."""
    for path in sorted(state):
        place = to / os.path.relpath(path, folder)
        data = state[path]
        if data is None:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
