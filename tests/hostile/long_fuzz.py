"""The long form of test_fuzz."""

from __future__ import annotations

from .running import FUZZERS, fuzz, has_atheris


def run(minutes: float, seed: int) -> dict[str, int]:
    """Run each fuzzer for its share of the time, the others also when one broke a promise; return how many inputs."""
    if not has_atheris():
        print("atheris has no wheel for this platform: no input was tried")
        return {"inputs": 0}
    figures, broken = {f"inputs: {kind}": 0 for kind in FUZZERS}, 0
    for kind in FUZZERS:
        try:
            figures[f"inputs: {kind}"], _ = fuzz(kind, seed=seed, seconds=60 * minutes / len(FUZZERS))
        except AssertionError as error:
            print(error, flush=True)
            broken += 1
    return figures | {"promises broken": broken}
