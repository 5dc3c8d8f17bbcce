"""Coverage-guided fuzzing of all that the catalog stores as bytes or text (atheris). Run by test_fuzz.py; by hand:

``python -m tests.hostile.catalog_fuzzer -max_total_time=600 NEW_CORPUS_FOLDER``

The first byte of an input chooses who reads the rest. What is read round-trips and can be used, or is an
IntegrityError or a FormatError.
"""

from __future__ import annotations

import atheris

# What numba compiles must stay as it was written.
with atheris.instrument_imports(include=["tensordb"], exclude=["tensordb.encoding.kernels"]):
    import tensordb.integrations.dcp_manifest  # noqa: F401

from .catalog_targets import TARGETS
from .fuzzing import run

SPARE_MEMORY = 192 << 20

if __name__ == "__main__":
    run(TARGETS, SPARE_MEMORY)
