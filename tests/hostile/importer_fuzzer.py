"""Coverage-guided fuzzing of every importer of files (atheris). Run by test_fuzz.py; by hand:

``python -m tests.hostile.importer_fuzzer -max_total_time=600 NEW_CORPUS_FOLDER``

The first byte of an input chooses the kind of file, the rest is what is in it. A file gives records or a checkpoint
that read back, or an InvalidInputError, after which there is nothing of it; nothing is allocated on its word alone.
"""

from __future__ import annotations

import warnings

import atheris

# What numba compiles must stay as it was written.
with atheris.instrument_imports(include=["tensordb"], exclude=["tensordb.encoding.kernels"]):
    import tensordb.exchange.tables
    import tensordb.integrations.safetensors
    import tensordb.integrations.torch_files  # noqa: F401

from .fuzzing import run
from .importer_targets import make_targets

SPARE_MEMORY = 512 << 20
"""Address space: what is read in parts takes 16 MiB at a time, and some copies; the rest is DuckDB's and torch's."""

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Pillow says what it skips in a damaged picture
    run(make_targets(), SPARE_MEMORY)
