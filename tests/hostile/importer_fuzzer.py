"""Coverage-guided fuzzing of every importer of files (atheris). Run by test_fuzz.py; by hand:

``python -m tests.hostile.importer_fuzzer -max_total_time=600 NEW_CORPUS_FOLDER``

The first byte of an input chooses the kind of file, the rest is what is in it. A file gives records or a checkpoint
that read back, or an InvalidInputError, after which there is nothing of it; nothing is allocated on its word alone.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil

import atheris

_ROOMS = ("tensordb.exchange", "tensordb.integrations")
_PARTS = ("tensordb.datasets.streaming", "tensordb.datasets.metadata", "tensordb.datasets.incoming")
_FOREIGN = ("torch._weights_only_unpickler", "PIL.PngImagePlugin", "PIL.TiffImagePlugin", "PIL.GifImagePlugin")


def _import_all() -> None:
    for room in _ROOMS:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            with contextlib.suppress(ImportError):  # what needs an extra that is not installed
                importlib.import_module(module.name)
    for name in (*_PARTS, *_FOREIGN):
        importlib.import_module(name)


with atheris.instrument_imports(include=[*_ROOMS, *_PARTS, *_FOREIGN]):
    _import_all()

from .fuzzing import run  # noqa: E402
from .importer_targets import make_targets  # noqa: E402

SPARE_MEMORY = 512 << 20
"""Address space: what is read in parts takes 16 MiB at a time and some copies of them; DuckDB and torch have their own."""

if __name__ == "__main__":
    run(make_targets(), SPARE_MEMORY)
