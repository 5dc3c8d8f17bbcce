"""Documents: the packed form of metadata, which is the truth for what a read returns."""

import datetime as dt
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb.catalog.documents import MAX_DEPTH, normalize, pack, unpack
from tensordb.errors import IntegrityError, InvalidInputError

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates(), st.datetimes(allow_imaginary=False)
).filter(lambda value: not getattr(value, "fold", 0))
DOCUMENTS = st.dictionaries(
    st.text(),
    st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20),
)


@given(document=DOCUMENTS)
def test_packing_keeps_every_value_its_type_and_the_order(document: dict[str, Any]) -> None:
    assert repr(unpack(pack(document))) == repr(document)


@given(document=DOCUMENTS)
def test_normalizing_what_is_plain_changes_nothing_and_copies_it(document: dict[str, Any]) -> None:
    normal = normalize(document)
    assert repr(normal) == repr(document)
    assert normal is not document
    assert repr(normalize(normal)) == repr(normal)


def test_no_document_is_packed_as_none_and_read_as_an_empty_one() -> None:
    assert normalize(None) is None
    assert pack(None) is None
    assert unpack(None) == {}
    assert unpack(pack({})) == {}


def test_edges_of_the_number_and_time_types() -> None:
    for value in (2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**4000, 5e-324, math.inf):
        returned = unpack(pack({"v": value}))["v"]
        assert returned == value
        assert type(returned) is type(value)
    assert math.copysign(1, unpack(pack({"v": -0.0}))["v"]) == -1
    zone = dt.timezone(dt.timedelta(hours=23, minutes=59, seconds=59))
    moment = dt.datetime(1, 1, 1, 0, 0, 0, 1, zone)
    assert repr(unpack(pack({"v": moment}))["v"]) == repr(moment)


def test_nesting_is_bounded_with_an_error() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return value

    deepest = {"v": nested(MAX_DEPTH)}
    assert unpack(pack(normalize(deepest))) == deepest
    for depth in (MAX_DEPTH + 1, 5000):
        with pytest.raises(InvalidInputError, match=f"{MAX_DEPTH} levels"):
            normalize({"v": nested(depth)})


def test_the_argument_s_own_name_starts_the_path() -> None:
    with pytest.raises(InvalidInputError, match=r"metadata\[7\]\.a\.b\[0\] is a builtins\.bytes"):
        normalize({"a": {"b": [b""]}}, where="metadata[7]")


@pytest.mark.parametrize(
    "damage", [b"", b"\xc1", b"\x81\xa1a", b"\x01\x02", b"\xd4\x63x", b"\xd5\x02no", b"\x81\xa1v\xd4\x01x"]
)
def test_damaged_bytes_are_an_integrity_error(damage: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpack(damage)


@given(damage=st.binary(max_size=40))
def test_any_bytes_are_a_document_or_an_integrity_error(damage: bytes) -> None:
    try:
        document = unpack(damage)
    except IntegrityError:
        return
    assert isinstance(document, dict)
