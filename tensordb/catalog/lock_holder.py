"""Who holds the catalog: a note in the lock file, read only to word an error.

The note is advisory. It may be stale (a reader that cannot write leaves none, a killed holder cannot remove its
own), and a disk too full to write it never stops the operation.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tensordb import files

_LONGEST_NOTE = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that took the catalog last.

    Attributes:
        pid: Process id on `host`.
        host: Host name.
        program: What was started, such as ``train.py``.
        since: When it took the catalog, in seconds since 1970 (UTC).
    """

    pid: int
    host: str
    program: str
    since: float

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).isoformat(sep=" ", timespec="seconds")
        return f"process {self.pid} ({self.program}) on {self.host}, since {since}"


def leave_note(descriptor: int) -> None:
    """Write this process as the holder into the open lock file."""
    holder = Holder(os.getpid(), socket.gethostname(), _program(), time.time())
    note = json.dumps(asdict(holder)).encode()[:_LONGEST_NOTE]
    with contextlib.suppress(OSError):
        files.truncate(descriptor, len(note))
        files.write_at(descriptor, note, 0)


def read_note(path: Path) -> Holder | None:
    """Read the last holder from the lock file; None when there is no legible note."""
    try:
        fields: Any = json.loads(path.read_bytes()[:_LONGEST_NOTE])
        holder = Holder(int(fields["pid"]), str(fields["host"]), str(fields["program"]), float(fields["since"]))
        str(holder)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return holder


def _program() -> str:
    script = sys.argv[0] if getattr(sys, "argv", None) else ""
    return Path(script).name or Path(sys.executable or "python").name
