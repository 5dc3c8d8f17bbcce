"""A fixed number of inputs of each coverage-guided fuzzer: none may crash, hang, take memory or break a promise."""

from __future__ import annotations

import pytest

from .running import fuzz, has_atheris

RUNS = {"container": 4_000, "catalog": 3_000, "importers": 700}
READ = {
    "container": ["payloads passed the checks"],
    "catalog": [f"{name}: 5 accepted" for name in ("metadata", "fields", "facts", "tree")],
    "importers": [f"{name}: 5 accepted" for name in ("dataset-npy", "dataset-parquet", "torch")],
}
"""What is printed once enough inputs got as far as being read: a fuzzer that is refused at once looks at nothing."""


@pytest.mark.skipif(not has_atheris(), reason="atheris has no wheel for this platform")
@pytest.mark.parametrize("kind", RUNS)
def test_no_input_of_a_fuzzer_breaks_a_promise(kind: str) -> None:
    _, printed = fuzz(kind, seed=1, runs=RUNS[kind])
    assert [each for each in READ[kind] if each not in printed] == []
