"""Planes give every bit back, for any grouping and any number of records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb.encoding.filters import NoFilter, Planes, filter_with_id, plane_width
from tensordb.errors import FormatError


@st.composite
def groupings(draw: st.DrawFn) -> Planes:
    width = draw(st.sampled_from((2, 4, 8)))
    sizes = []
    while sum(sizes) < width:
        sizes.append(draw(st.integers(1, width - sum(sizes))))
    return Planes(tuple(sizes))


@given(groupings(), st.integers(1, 5), st.integers(1, 40), st.integers(0, 1 << 32))
def test_split_and_merge_give_the_bytes_back(planes: Planes, records: int, words: int, seed: int) -> None:
    data = np.frombuffer(np.random.default_rng(seed).bytes(records * words * planes.width), np.uint8)
    groups = planes.split(data, records)
    assert [len(group) for group in groups] == [records * words * size for size in planes.sizes]
    out = np.empty_like(data)
    planes.merge(groups, records, out)
    assert (out == data).all()


@given(groupings(), st.integers(2, 5), st.integers(1, 20))
def test_a_record_is_a_slice_of_each_group(planes: Planes, records: int, words: int) -> None:
    data = np.frombuffer(np.random.default_rng(0).bytes(records * words * planes.width), np.uint8)
    groups = planes.split(data, records)
    record = planes.width * words
    for row in range(records):
        slices = [group.reshape(records, -1)[row] for group in groups]
        out = np.empty(record, np.uint8)
        planes.merge(slices, 1, out)
        assert (out == data[row * record : (row + 1) * record]).all()


def test_the_exponent_of_a_float_is_the_first_plane() -> None:
    values = np.array([1.0, -1.0, 2.0, 0.5, -0.5], np.float32)
    first = Planes((1, 3)).split(values.view(np.uint8), 1)[0]
    assert first.tolist() == [127, 127, 128, 126, 126]


def test_stored_filters_come_back_and_unknown_ones_are_refused() -> None:
    assert filter_with_id(1, Planes((1, 3)).pack(), "float32") == Planes((1, 3))
    assert filter_with_id(0, b"", "uint8") == NoFilter()
    for number, packed, dtype in (
        (1, b"\x01\x02", "float32"),
        (1, b"\x00\x04", "float32"),
        (1, b"\x01", "uint8"),
        (9, b"", "float32"),
        (0, b"\x01", "uint8"),
    ):
        with pytest.raises(FormatError):
            filter_with_id(number, packed, dtype)


def test_planes_apply_to_floats_of_more_than_a_byte() -> None:
    assert plane_width("bfloat16") == plane_width("complex32") == 2
    assert plane_width("complex128") == 8
    assert plane_width("int32") is plane_width("float8_e5m2") is None
