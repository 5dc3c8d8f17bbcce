"""What all tests share: thousands of them are collected first, and garbage is not looked for among those."""

from __future__ import annotations

import gc

import pytest

from tensordb.encoding import kernels


def pytest_collection_finish() -> None:
    """Keep what was collected out of every later search for garbage, some of which tests ask for themselves."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["numpy", "compiled"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have all work on bytes done in one of the two ways, whatever the process did before."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        assert kernels.load()
    else:
        for ready in ("ready", "sparse", "ready_to_scale", "ready_to_sum", "ready_to_spread"):
            monkeypatch.setattr(kernels, ready, lambda nbytes: None)
    name: str = request.param
    return name
