"""Conditions select what the same comparison in Python selects."""

import operator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb import TensorStorage

OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "<>": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
NUMBERS = st.one_of(
    st.integers(-(2**50), 2**50), st.floats(allow_nan=False), st.booleans(), st.sampled_from([0, 1, -0.0, 1.0, 2**63])
)


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), NUMBERS), min_size=1, max_size=8),
    symbol=st.sampled_from(sorted(OPERATORS)),
    bound=st.one_of(st.integers(-(2**50), 2**50), st.floats(allow_nan=False)),
)
def test_number_filters_agree_with_python(values: list[float | None], symbol: str, bound: float) -> None:
    with TensorStorage(None) as db:
        db.create_dataset("data")
        for some in ([7], values[: len(values) // 2], values[len(values) // 2 :]):
            db.insert_many("data", torch.zeros(len(some), 1), [{"v": value} for value in some])
        found = [record.metadata["v"] for record in db.query("data", f"metadata.v {symbol} ?", params=[bound])]
        expected = [v for v in [7, *values] if v is not None and OPERATORS[symbol](v, bound)]
        assert found == expected
        assert [type(v) for v in found] == [type(v) for v in expected]


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.text(max_size=6)), min_size=1, max_size=8),
    symbol=st.sampled_from(sorted(OPERATORS)),
    bound=st.text(max_size=6),
)
def test_text_filters_agree_with_python(values: list[str | None], symbol: str, bound: str) -> None:
    with TensorStorage(None) as db:
        db.create_dataset("data", {"metadata": {"v": "str?"}})
        db.insert_many("data", torch.zeros(len(values), 1), [{"v": value} for value in values])
        found = [record.metadata["v"] for record in db.query("data", f"metadata.v {symbol} ?", params=[bound])]
        # DuckDB orders text by its UTF-8 bytes, Python by code points, which is the same order.
        assert found == [v for v in values if v is not None and OPERATORS[symbol](v, bound)]
