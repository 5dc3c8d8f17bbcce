"""Break the engine on purpose, one thing after another, and see that the tests notice: ``python -m tests.mutations``.

Works on a copy of the tree. Words on the command line choose the breaks whose titles hold one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .breaks import BREAKS, Break

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900
"""Seconds after which tests that hang have noticed, too."""


def main(words: list[str]) -> int:
    """Run the chosen breaks; return how many nobody noticed."""
    chosen = [each for each in BREAKS if not words or any(word in each.title for word in words)]
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        tree = Path(scratch) / "tree"
        ignored = shutil.ignore_patterns(".git", "__pycache__", "benchmarks", "notebooks", ".*_cache")
        shutil.copytree(ROOT, tree, ignore=ignored)
        for each in chosen:
            began = time.monotonic()
            noticed = notices(each, tree)
            unnoticed += not noticed
            print(
                f"{'noticed' if noticed else 'UNNOTICED'}  {each.title}  ({time.monotonic() - began:.0f} s)", flush=True
            )
    print(f"{len(chosen) - unnoticed} of {len(chosen)} breaks noticed")
    return unnoticed


def notices(each: Break, tree: Path) -> bool:
    """Tell whether a test fails with the break."""
    file = tree / each.file
    sound = file.read_text(encoding="utf-8")
    assert sound.count(each.old) == 1, f"{each.title}: its text is {sound.count(each.old)} times in {each.file}"
    file.write_text(sound.replace(each.old, each.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *each.tests]
    room = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=room, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(sound, encoding="utf-8")
    if done.returncode not in (0, 1) and done.returncode > 0:
        raise AssertionError(
            f"{each.title}: pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-500:]}"
        )
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
