"""What every filter promises: the bytes back, records read by themselves, and parameters that rebuild it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb.encoding import kernels
from tensordb.encoding.filters import (
    BitPack,
    Constant,
    Delta,
    Filter,
    Narrow,
    NoFilter,
    Planes,
    StrideDelta,
    ZeroBitmap,
    filter_with_id,
)
from tensordb.encoding.filters.base import Bytes, Slices
from tensordb.errors import FormatError, IntegrityError

# Filter, dtype of the codes, and the largest value of a byte that it can hold.
FILTERS: list[tuple[Filter, str, int]] = [
    (NoFilter(), "uint8", 255),
    (Planes((1, 3)), "float32", 255),
    (BitPack(1), "bool", 1),
    (BitPack(2), "uint8", 3),
    (BitPack(4), "uint8", 15),
    (Narrow(8, 8, 0), "int64", 255),
    (Narrow(4, 4, 0, planes=True), "int32", 255),
    (StrideDelta((1,)), "uint8", 255),
    (StrideDelta((3,)), "int8", 255),
    (StrideDelta((3, 100)), "uint8", 255),
    (StrideDelta((70, 1)), "uint8", 255),
    (ZeroBitmap((1,)), "float8_e5m2", 1),
    (ZeroBitmap((1, 1)), "bfloat16", 1),
    (ZeroBitmap((2, 2)), "float32", 1),
    (ZeroBitmap((1, 7)), "complex128", 1),
]
WIDTHS = {"bool": 1, "uint8": 1, "int8": 1, "float8_e5m2": 1, "bfloat16": 2, "float32": 4, "int32": 4}


def codes(dtype: str, highest: int, records: int, words: int, seed: int) -> Bytes:
    """Bytes of `records` records of `words` words; where the highest value is 1, many words are zero."""
    width = WIDTHS.get(dtype, 8)
    rng = np.random.default_rng(seed)
    data = rng.integers(0, highest, (records * words, width), np.uint8, endpoint=True)
    if highest == 1 and width > 1:
        data[rng.random(len(data)) < 0.7] = 0
    return data.reshape(-1)


@pytest.mark.parametrize(("used", "dtype", "highest"), FILTERS, ids=lambda each: repr(each))
@given(records=st.integers(1, 5), words=st.integers(1, 300), seed=st.integers(0, 1 << 32))
def test_split_and_merge_give_the_bytes_back(
    used: Filter, dtype: str, highest: int, records: int, words: int, seed: int
) -> None:
    data = codes(dtype, highest, records, words, seed)
    groups = used.split(data, records)
    known: list[Bytes] = []
    for number, group in enumerate(groups):  # a reader finds the size of each from those before it
        assert used.share(number, data.nbytes, known) == len(group) <= used.shares(data.nbytes)[number]
        known.append(group)
    assert len(known) == used.groups
    out = np.empty_like(data)
    used.merge(groups, records, out)
    assert np.array_equal(out, data)


@pytest.mark.parametrize(("used", "dtype", "highest"), [each for each in FILTERS if each[0].sliceable], ids=repr)
def test_a_record_is_put_together_from_its_slices(used: Filter, dtype: str, highest: int) -> None:
    data = codes(dtype, highest, 4, 64, 0)
    size = data.nbytes // 4
    groups = used.split(data, 4)
    shares = used.shares(size)
    out = np.empty(2 * size, np.uint8)
    used.gather(Slices(tuple(shares), [groups], [[group.ctypes.data for group in groups]], [0, 0], [3, 1]), out)
    assert np.array_equal(out, np.concatenate([data[3 * size :], data[size : 2 * size]]))


@pytest.mark.parametrize(("used", "dtype", "_"), FILTERS, ids=lambda each: repr(each))
def test_its_parameters_rebuild_it(used: Filter, dtype: str, _: int) -> None:
    assert filter_with_id(used.id, used.pack(), dtype) == used


@pytest.mark.parametrize(
    ("low", "high", "dtype", "narrow"),
    [
        (7, 7, "int64", 1),
        (-3, 252, "int64", 1),
        (-4, 252, "int16", 2),
        (1 << 40, (1 << 40) + 65535, "uint64", 2),
        (-(1 << 63), (1 << 63) - 1, "int64", 8),
        ((1 << 64) - 200, (1 << 64) - 1, "uint64", 1),
        (-(1 << 31), (1 << 31) - 1, "int32", 4),
        (0, 1 << 16, "int64", 4),
    ],
)
@pytest.mark.parametrize("planes", [False, True])
def test_integers_take_no_more_bytes_than_their_range_needs(
    low: int, high: int, dtype: str, narrow: int, planes: bool
) -> None:
    data = np.array([low, high, (low + high) // 2, high], dtype).view(np.uint8)
    used = Narrow.fitting(data, dtype, planes=planes)
    assert used.narrow == narrow
    out = np.empty_like(data)
    used.merge(used.split(data, 1), 1, out)
    assert np.array_equal(out, data)


def test_packed_bits_hold_what_fits_and_nothing_else() -> None:
    for highest, bits in ((1, 1), (2, 2), (3, 2), (4, 4), (15, 4)):
        assert BitPack.fitting(np.array([0, highest], np.uint8)) == BitPack(bits)
    assert BitPack.fitting(np.array([16], np.uint8)) is None


def test_constant_is_found_for_elements_of_any_size_and_only_where_it_is_true() -> None:
    for itemsize in (1, 2, 4, 8, 16):
        data = np.tile(np.arange(itemsize, dtype=np.uint8), 1000)
        assert Constant.fits(data, itemsize)
        out = np.empty_like(data)
        Constant(itemsize).merge(Constant(itemsize).split(data, 1), 1, out)
        assert np.array_equal(out, data)
        for place in (0, 500 * itemsize, len(data) - 1):
            other = data.copy()
            other[place] ^= 1
            assert not Constant.fits(other, itemsize)


def test_forged_groups_are_refused() -> None:
    out = np.empty(5 * 4, np.uint8)
    with pytest.raises(IntegrityError, match="bits after"):
        ZeroBitmap((4,)).merge([np.array([0b100000], np.uint8), np.zeros(0, np.uint8)], 1, out)
    with pytest.raises(IntegrityError, match="bits after"):
        BitPack(2).merge([np.array([0, 0b100], np.uint8)], 1, np.empty(5, np.uint8))


@pytest.mark.parametrize(
    ("number", "packed", "dtype"),
    [
        (2, b"\0", "float32"),
        (3, b"\3", "bool"),
        (3, b"\1", "int16"),
        (3, b"", "bool"),
        (4, bytes(10), "int64"),
        (4, b"\4\0" + bytes(8), "int16"),
        (4, b"\2\2" + bytes(8), "int32"),
        (4, b"\2\0" + b"\xff" * 8, "int32"),
        (4, b"\2\0" + bytes(8), "float32"),
        (5, b"", "uint8"),
        (5, bytes(4), "uint8"),
        (5, b"\1\0\0\0" * 3, "uint8"),
        (5, b"\1\0\0\0", "int16"),
        (6, b"\1\1", "float32"),
        (6, b"\4\0", "float32"),
    ],
)
def test_parameters_that_no_filter_has_are_refused(number: int, packed: bytes, dtype: str) -> None:
    with pytest.raises(FormatError):
        filter_with_id(number, packed, dtype)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["zero_bitmap", "delta"])
def test_a_bitmap_that_changed_after_its_words_were_counted_is_refused(
    kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:
        assert kernels.load()
    else:
        monkeypatch.setattr(kernels, "sparse", lambda nbytes: None)
    words = np.zeros(1000, np.uint32)
    words[::7] = 5
    filter_ = ZeroBitmap((1, 1, 1, 1)) if kind == "zero_bitmap" else Delta(bytes(32), (1, 1, 1, 1))
    data = words.view(np.uint8)
    groups = filter_.split(data, 1) if isinstance(filter_, ZeroBitmap) else filter_.split_against(data, data * 0)
    filter_.merge(groups, 1, out := np.zeros_like(data))
    assert out.tobytes() == data.tobytes()
    groups[-5][:] = 255
    with pytest.raises(IntegrityError, match="ones any more"):
        filter_.merge(groups, 1, out)
