"""Metadata: what is put in comes back, and what cannot be stored is refused with its path."""

import datetime as dt
import enum
import math
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensordb import InvalidInputError, TensorStorage


def back(db: TensorStorage, metadata: Any) -> Any:
    return db.get_tensor_by_id("data", db.insert("data", torch.zeros(1), metadata)).metadata


class Colour(enum.IntEnum):
    RED = 2


class Text(str):
    pass


@pytest.mark.parametrize("metadata", [None, {}])
def test_no_metadata_is_an_empty_dict(data: TensorStorage, metadata: Any) -> None:
    assert back(data, metadata) == {}


def test_scalars_of_numpy_torch_and_subclasses_become_plain(data: TensorStorage) -> None:
    for given_value, expected in (
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float16(1.5), 1.5),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(7), 7),
        (np.datetime64("2024-01-02T03:04:05.678901"), dt.datetime(2024, 1, 2, 3, 4, 5, 678901)),
        (np.datetime64("2024-01-02"), dt.datetime(2024, 1, 2)),
        (torch.tensor(3), 3),
        (torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), 1.5),
        (torch.tensor(True), True),
        (Colour.RED, 2),
        (Text("t"), "t"),
        (pd.Timestamp("2024-01-01 10:00"), dt.datetime(2024, 1, 1, 10)),
        (pd.Timestamp("2024-01-01 10:00:00.123456789", tz="UTC"), dt.datetime(2024, 1, 1, 10, 0, 0, 123456, dt.UTC)),
        (pd.NaT, None),
        ((1, (2, "x")), [1, [2, "x"]]),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": (np.int64(1),)}), {"a": [1]}),
    ):
        value = back(data, {"v": given_value})["v"]
        assert value == expected
        assert type(value) is type(expected)


def test_python_values_come_back_with_their_types(data: TensorStorage) -> None:
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
    document = {
        "none": None,
        "bool": False,
        "int": 0,
        "big": -(2**200),
        "float": 0.0,
        "minus": -0.0,
        "inf": -math.inf,
        "text": "line\nü🙂\0end",
        "date": dt.date(1, 1, 1),
        "time": dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
        "zoned": dt.datetime(2024, 1, 1, tzinfo=zone),
        "edge": dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-1))),
        "list": [None, 1, 1.0, "x", [], {}, [[{"deep": True}]]],
        "dict": {"a": {"b": {"c": [dt.date(2024, 1, 1)]}}},
    }
    returned = back(data, document)
    assert repr(returned) == repr(document)
    assert list(returned) == list(document), "the order of the fields is kept"


def test_what_cannot_be_stored_is_refused_with_the_path_to_it(data: TensorStorage) -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    for metadata, path in (
        ({"a": object()}, r"metadata\.a\b"),
        ({"a": {"b": [0, {"c": b"x"}]}}, r"metadata\.a\.b\[1\]\.c\b"),
        ({"a": {1, 2}}, r"metadata\.a\b"),
        ({"a": 1j}, r"metadata\.a\b"),
        ({"a": np.zeros(2)}, r"metadata\.a\b"),
        ({"a": torch.zeros(1)}, r"metadata\.a\b"),
        ({"a": [dt.timedelta(1)]}, r"metadata\.a\[0\]"),
        ({"a": dt.time(1)}, r"metadata\.a\b"),
        ({"a": lambda: 1}, r"metadata\.a\b"),
        ({"a": "\ud800"}, r"metadata\.a\b"),
        ({"\ud800": 1}, "metadata key"),
        ({1: 2}, "metadata has the key 1"),
        ({"a": {None: 2}}, r"metadata\.a has the key None"),
        (cycle, r"metadata\.self\.self"),
        ([1], "metadata"),
        ("text", "metadata"),
        (5, "metadata"),
    ):
        with pytest.raises(InvalidInputError, match=path):
            data.insert("data", torch.zeros(1), metadata)  # type: ignore[arg-type]
        if isinstance(metadata, dict):
            with pytest.raises(InvalidInputError, match=path.replace("metadata", r"metadata\[1\]", 1)):
                data.insert_many("data", torch.zeros(2, 1), [{}, metadata])
    assert data.count("data") == 0


def test_thousands_of_fields_and_large_values(data: TensorStorage) -> None:
    wide = {f"field_{n}": n for n in range(1000)}
    assert back(data, wide) == wide
    large = {"text": "x" * 3_000_000, "list": list(range(50_000))}
    assert back(data, large) == large
    assert data.count("data", "metadata.field_999 = 999") == 1


NAMES = st.text(max_size=5)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.datetimes(timezones=st.one_of(st.none(), st.just(dt.UTC), st.just(dt.timezone(dt.timedelta(hours=-11))))).map(
        lambda moment: moment.replace(fold=0)
    ),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
DOCUMENTS = st.dictionaries(st.sampled_from(["a", "A", "b", "ü", 'q"', ""]) | NAMES, VALUES, max_size=4)


@settings(max_examples=30, deadline=None)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=4), one_by_one=st.booleans())
def test_any_documents_in_any_order_come_back_as_they_were(documents: list[dict[str, Any]], one_by_one: bool) -> None:
    with TensorStorage(None) as db:
        db.create_dataset("data")
        if one_by_one:
            for document in documents:
                db.insert("data", torch.zeros(1), document)
        else:
            db.insert_many("data", torch.zeros(len(documents), 1), documents)
        records = db.query("data", "true")
        assert repr([record.metadata for record in records]) == repr(documents)
        assert db.sql("FROM data").num_rows == len(documents)
        db.update_tensor_metadata("data", records[0].id, documents[-1])
        assert repr(db.get_dataset_with_metadata("data")[0].metadata) == repr(documents[-1])


def test_keys_that_differ_in_case_are_one_field_of_many_records_as_of_single_ones(data: TensorStorage) -> None:
    rows = [{"Loss": 1.0}, {"loss": 2.0}, {"loss": 3.0, "x": 1}, {"Loss": 4.0}, {"LOSS": 5.0}]
    data.insert_many("data", torch.zeros(len(rows), 2), rows)
    assert [record.metadata for record in data.query("data", "metadata.loss > 1.5")] == rows[1:]
    data.insert_many("data", torch.ones(4, 2), [{"lOSS": float(i)} for i in range(6, 10)])
    assert data.count("data", "metadata.loss > 1.5") == 8
