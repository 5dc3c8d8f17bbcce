"""Coverage-guided fuzzing of all that the catalog stores as bytes or text (atheris). Run by test_fuzz.py; by hand:

``python -m tests.hostile.catalog_fuzzer -max_total_time=600 NEW_CORPUS_FOLDER``

The first byte of an input chooses who reads the rest. What is read round-trips and can be used, or is an
IntegrityError or a FormatError.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil

import atheris

_ROOMS = ("tensordb.catalog", "tensordb.checkpoints", "tensordb.datasets", "tensordb.encoding.presets")
_MODULES = (
    "tensordb.encoding.rules", "tensordb.engine.stored_config", "tensordb.integrations.dcp_manifest",
    "tensordb.integrations.lightning", "tensordb.integrations.safetensors",
)  # fmt: skip


def _import_all() -> None:
    for room in _ROOMS[:3]:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            importlib.import_module(module.name)
    for name in (*_ROOMS[3:], *_MODULES):
        with contextlib.suppress(ImportError):  # what needs an extra that is not installed
            importlib.import_module(name)


with atheris.instrument_imports(include=[*_ROOMS, *_MODULES]):
    _import_all()

from .catalog_targets import TARGETS  # noqa: E402
from .fuzzing import run  # noqa: E402

SPARE_MEMORY = 192 << 20

if __name__ == "__main__":
    run(TARGETS, SPARE_MEMORY)
