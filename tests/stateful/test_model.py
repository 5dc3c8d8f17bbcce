"""Any sequence of operations leaves the database as it would leave a dict.

`TENSORDB_MODEL_EXAMPLES` sets how many sequences are tried, `TENSORDB_MODEL_STEPS` how long they are, and
`TENSORDB_MODEL_SEED` which: a failure prints the seed that repeats it.
"""

from __future__ import annotations

import os
import random

import pytest

from .running import run_model

EXAMPLES = int(os.environ.get("TENSORDB_MODEL_EXAMPLES", "6"))
STEPS = int(os.environ.get("TENSORDB_MODEL_STEPS", "35"))
SEED = int(os.environ.get("TENSORDB_MODEL_SEED", random.SystemRandom().randrange(2**32)))


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_whatever_is_done_a_database_holds_what_a_dict_would(place: str) -> None:
    assert run_model(SEED, on_disk=place == "disk", examples=EXAMPLES, steps=STEPS) > EXAMPLES
