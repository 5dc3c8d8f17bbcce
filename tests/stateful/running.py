"""Runs the model from a seed, so that what was found once is found again."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from .history import EverythingLikeADict


def run_model(number: int, *, on_disk: bool, examples: int, steps: int) -> int:
    """Try sequences of operations and return how many steps were compared; a failure says how to repeat it."""

    @seed(number)
    class Machine(EverythingLikeADict):
        pass

    Machine.on_disk = on_disk
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Machine, settings=chosen)
    except BaseException as error:
        error.add_note(
            f"Repeat with TENSORDB_MODEL_SEED={number} TENSORDB_MODEL_EXAMPLES={examples} TENSORDB_MODEL_STEPS={steps}"
        )
        raise
    return Machine.steps
