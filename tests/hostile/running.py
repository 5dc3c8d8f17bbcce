"""The fuzzers, each in a process of its own: for a number of inputs, or for as long as there is time."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "encoding" / "golden"
FUZZERS = {
    "container": "tests.encoding.payload_fuzzer",
    "catalog": "tests.hostile.catalog_fuzzer",
    "importers": "tests.hostile.importer_fuzzer",
}
"""Modules by what they put inputs into."""
_LONGEST_INPUT = {"container": 4096, "catalog": 8192, "importers": 8192}
_STARTING_SECONDS = 600


def has_atheris() -> bool:
    """Whether there is a fuzzer at all: atheris has wheels for few platforms."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(kind: str, *, seed: int, runs: int | None = None, seconds: float = 0) -> tuple[int, str]:
    """Run a fuzzer for so many inputs, or for so long.

    Returns:
        How many inputs there were, and what it printed.

    Raises:
        AssertionError: An input broke a promise; the message has it in hex.
    """
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tensordb-fuzz-", dir=in_memory) as folder:
        corpus, found = Path(folder) / "corpus", Path(folder) / "found"
        corpus.mkdir()
        found.mkdir()
        extent = f"-max_total_time={max(1, round(seconds))}" if runs is None else f"-runs={runs}"
        options = [extent, f"-seed={seed % 2**31 or 1}", f"-max_len={_LONGEST_INPUT[kind]}", "-timeout=60"]
        command = [sys.executable, "-m", FUZZERS[kind], *options, f"-artifact_prefix={found}/", str(corpus)]
        done = subprocess.run(
            [*command, str(GOLDEN)] if kind == "container" else command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": folder},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_STARTING_SECONDS + seconds,
        )
        inputs = "\n".join(f"{path.name}: {path.read_bytes().hex()}" for path in found.iterdir())
    assert done.returncode == 0, f"{kind}: {_of_error(done.stderr)}\nthe inputs, in hex:\n{inputs}"
    counted = re.search(r"^Done (\d+) (?:runs|in)", done.stderr, re.MULTILINE)
    assert counted, done.stderr[-5000:]
    return int(counted[1]), done.stdout


def _of_error(log: str) -> str:
    at = log.find("Uncaught Python exception")
    return log[at:] if at >= 0 else log[-5000:]
