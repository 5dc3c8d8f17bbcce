"""A nested state comes back as what it was: types, order, bits and gradient flags."""

from __future__ import annotations

import datetime as dt
import random
import struct
import uuid
from collections import Counter, OrderedDict
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensordb.checkpoints.tree import flatten, tensor_paths, unflatten
from tensordb.tensors import dtype_from_name

from .trees import assert_same, back, bits, names

NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF))[0]

VALUES = [
    None,
    True,
    0,
    -1,
    2**63,
    -(2**64),
    10**5000,
    NAN,
    -NAN,
    -0.0,
    float("inf"),
    5e-324,
    complex(-0.0, NAN),
    "",
    "läufer",
    "\ud83d\ude00 \udcff",
    "a\0b",
    b"",
    b"\xff\0",
    bytearray(b"abc"),
    dt.datetime(2024, 2, 29, 1, 2, 3, 4),
    dt.datetime(1, 1, 1, tzinfo=dt.timezone.utc),  # noqa: UP017
    dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Zurich")),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, seconds=7), "odd")),
    dt.date.max,
    dt.time(23, 59, 59, 999999, fold=1),
    dt.time(1, tzinfo=dt.UTC),
    dt.timedelta(-1, 5, 999999),
    dt.timedelta.max,
    dt.UTC,
    Decimal("1.10"),
    Decimal("-sNaN12"),
    Decimal("1E+999999"),
    uuid.UUID(int=2**128 - 1),
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.quint8,
    torch.device("cuda:7"),
    torch.device("cpu"),
    torch.Size([2, 0, 3]),
    torch.Size([]),
    torch.sparse_csr,
    torch.channels_last,
    range(0, 10**30, 3),
    slice(None, 5, -1),
    np.float32(1.5),
    np.float64(NAN),
    np.float16("-0.0"),
    np.longdouble(1) / 3,
    np.int8(-1),
    np.uint64(2**64 - 1),
    np.bool_(True),
    np.complex64(1 - 2j),
    np.datetime64("2024-01-01T00:00", "ns"),
    np.datetime64("NaT"),
    np.timedelta64(-5, "D"),
    np.str_("x\0"),
    np.str_(""),
    np.bytes_(b"\0"),
    (),
    [],
    {},
    set(),
    frozenset(),
    {1, "1", None, 2.5, (1, 2), b"x"},
    frozenset({torch.float32, frozenset({1})}),
    OrderedDict(b=1, a=2),
    Counter({10: 2, 20: -1}),
    {1: "int", "1": "text", 1.5: 0, None: 0, b"1": 0, (1, ("a", None)): 0, False: 0, torch.float16: 0},
    {True: 0},
    {1.0: 0},
    {-0.0: 0},
    [[[]], ((), [{}])],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_plain_value_comes_back_with_its_type_and_bits(value):
    tree = {"a": value, "b": [value], "c": (value, torch.ones(1))}
    assert_same(back(tree), tree)
    assert_same(back(value), value)


@pytest.mark.parametrize(
    "dtype",
    ["?", "<i2", ">i4", "<u8", ">u2", "<f2", ">f4", "<f8", ">c8", "<c16", "<U3", ">U3", "S2", "<M8[ns]", ">m8[D]", "g"],
)
@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 3, 4)])
def test_a_numpy_array_comes_back_with_its_dtype_and_byte_order(dtype, shape):
    count = int(np.prod(shape))
    raw = np.arange(count * np.dtype(dtype).itemsize, dtype=np.uint8) % 2
    array = raw.view(dtype).reshape(shape) if count else np.empty(shape, dtype)
    result = back({"x": array})["x"]
    assert_same(result, array)
    assert not np.shares_memory(result, array)
    assert result.flags.writeable


def test_numpy_arrays_that_are_read_only_reversed_or_in_fortran_order_keep_their_values():
    array = np.arange(12.0).reshape(3, 4)
    frozen = array.copy()
    frozen.flags.writeable = False
    for variant in (frozen, array[::-1], array[:, ::2], np.asfortranarray(array), np.broadcast_to(array[0], (5, 4))):
        assert np.array_equal(back([variant])[0], variant)


def test_the_states_of_the_random_generators_go_through():
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    state["generator"] = np.random.default_rng(3).bit_generator.state
    expected = random.random(), np.random.rand()
    result = back(state)
    random.setstate(result["python"])
    np.random.set_state(result["numpy"])
    torch.set_rng_state(result["torch"])
    assert (random.random(), np.random.rand()) == expected
    assert_same(result, state)


@pytest.mark.parametrize("name", sorted(dtype_from_name.__globals__["_BY_NAME"]))
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_a_tensor_of_every_dtype_comes_back_bit_by_bit(name, shape):
    dtype = dtype_from_name(name)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 2 if name == "bool" else 256, (count,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape) if count else raw.view(dtype).view(shape)
    result = back({"x": tensor})["x"]
    assert (result.dtype, result.shape, bits(result)) == (dtype, tensor.shape, bits(tensor))


def test_tensors_of_any_strides_come_back_with_their_values():
    base = torch.randn(4, 6)
    complex_base = torch.randn(3, dtype=torch.complex64)
    for tensor in (
        base.t(),
        base[1:3, ::2],
        base[0].expand(5, 6),
        base.unfold(1, 3, 1),
        complex_base.conj(),
        complex_base.conj().imag,
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ):
        result = back([tensor])[0]
        assert torch.equal(result, tensor)
        assert not result.is_conj()


def test_parameters_and_gradient_flags_come_back():
    state = {
        "parameter": nn.Parameter(torch.ones(2)),
        "frozen": nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False),
        "leaf": torch.ones(3, requires_grad=True),
        "computed": torch.ones(2, requires_grad=True) * 2,
        "plain": torch.ones(1),
    }
    result = back(state)
    assert_same(result, state)
    assert result["computed"].is_leaf


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc]
)
def test_sparse_tensors_come_back_in_their_layout(layout):
    dense = torch.randn(4, 6) * (torch.rand(4, 6) > 0.5)
    block = {"blocksize": (2, 3)} if layout in (torch.sparse_bsr, torch.sparse_bsc) else {}
    sparse = dense.to_sparse(layout=layout, **block)
    result = back({"w": sparse, "same": sparse, "parameter": nn.Parameter(sparse)})
    assert_same(result["w"], sparse)
    assert result["same"] is result["w"]
    assert type(result["parameter"]) is nn.Parameter
    assert names({"w": sparse})[-1] == "w.values"


def test_coo_tensors_keep_duplicates_dense_dimensions_and_emptiness():
    uncoalesced = torch.sparse_coo_tensor(torch.tensor([[0, 0, 1]]), torch.randn(3, 2), (4, 2), check_invariants=True)
    for sparse in (uncoalesced, uncoalesced.coalesce(), torch.zeros(3, 0).to_sparse()):
        assert_same(back([sparse])[0], sparse)
    assert names({"x": uncoalesced}) == ["x.indices", "x.values"]


def test_the_versions_in_a_state_dict_come_back():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = module.state_dict()
    result = back({"model": state})["model"]
    assert_same(result, state)
    assert result._metadata == state._metadata
    nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).load_state_dict(result)


def test_names_are_the_dotted_keys():
    tensor = torch.ones(1)
    state = {
        "model": {"layer.0.weight": tensor + 0},
        "optimizer": {"state": {3: {"exp_avg": tensor + 1}}},
        "x": [tensor],
    }
    assert names(state) == ["model.layer.0.weight", "optimizer.state.3.exp_avg", "x.0"]


def test_names_that_would_be_equal_are_quoted():
    state = {
        "a.b": torch.ones(1),
        "a": {"b": torch.ones(1)},
        "c": {1: torch.ones(1), "1": torch.ones(1)},
        "d": torch.ones(1),
    }
    assert names(state) == ["['a.b']", "['a']['b']", "['c'][1]", "['c']['1']", "d"]
    assert sorted(names({key: state[key] for key in reversed(state)})) == sorted(names(state))


def test_names_of_parts_give_way_to_no_other_name():
    sparse = torch.eye(2).to_sparse()
    state = {"x": sparse, "x.values": torch.ones(1), "['x']": {"": torch.ones(1)}, "['x'].values": torch.ones(1)}
    assert len(set(names(state))) == 5
    assert len(tensor_paths(flatten(state).document)) == 4


def test_names_are_valid_text_whatever_the_keys():
    state = {"\ud800": torch.ones(1), "\\ud800": torch.ones(1), b"\xff": torch.ones(1), None: torch.ones(1)}
    assert len({name.encode() for name in names(state)}) == 4
    assert_same(back(state), state)


def test_paths_of_tensors_say_which_leaves_they_need():
    tied, sparse = torch.ones(2), torch.eye(2).to_sparse()
    document = flatten({"a": tied, "b": {"c": tied}, "s": sparse, "array": np.ones(2), "n": 1}).document
    assert tensor_paths(document) == {"a": (0,), "b.c": (0,), "s": (1, 2), "array": (3,)}


def test_equal_trees_give_equal_bytes_and_leaves():
    def tree():
        return {"x": torch.ones(2), "set": {f"m{i}" for i in range(50)}, "n": [1, 2.0, None], "d": OrderedDict(a=1)}

    assert flatten(tree()).document == flatten(tree()).document


def test_the_order_of_a_set_does_not_show_in_the_document():
    members = [f"{i}" for i in range(40)]
    assert flatten({*members}).document == flatten({*reversed(members), "x"} - {"x"}).document


def test_only_what_is_wanted_is_fetched():
    flat = flatten(
        {"a": torch.ones(1), "b": {"c": torch.ones(2), "n": 5}, "l": [torch.ones(3), 7, {"d": torch.ones(4)}]}
    )
    fetched = []

    def fetch(index):
        fetched.append(index)
        return flat.leaves[index].tensor

    result = unflatten(flat.document, fetch, wanted=lambda name: name in ("b.n", "l.2.d"))
    assert_same(result, {"b": {"n": 5}, "l": [None, None, {"d": torch.ones(4)}]})
    assert fetched == [3]
    assert unflatten(flat.document, fetch, wanted=lambda name: False) is None
    assert_same(unflatten(flat.document, fetch, wanted=lambda name: True), unflatten(flat.document, fetch))


def test_wanted_is_asked_for_tensors_values_and_empty_containers_only():
    asked = []
    state = {"m": {"w": torch.ones(1), "e": {}, "s": {1}, "t": (), "size": torch.Size([1])}, "o": OrderedDict()}
    state["o"]._metadata = {"version": 1}
    back(state, wanted=lambda name: asked.append(name) or True)
    assert asked == ["m.w", "m.e", "m.s", "m.t", "m.size", "o"]


def test_a_quoted_name_is_wanted_by_its_quoted_name():
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}
    assert_same(back(state, wanted=lambda name: name == "['a']['b']"), {"a": {"b": torch.ones(1)}})


def test_a_single_tensor_and_a_single_value_are_trees():
    assert_same(back(torch.ones(2)), torch.ones(2))
    assert tensor_paths(flatten(torch.ones(2)).document) == {"": (0,)}


def test_the_result_shares_no_memory_with_what_was_flattened():
    tensor = torch.zeros(3)
    result = back({"x": tensor})
    tensor.fill_(1)
    assert not result["x"].any()


_ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=8)
    | st.text(st.characters(), max_size=8)
)
_HASHABLE = st.recursive(
    _ATOMS.filter(lambda x: x == x), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4
)
_TENSORS = st.builds(lambda n, m: torch.arange(n * m).reshape(n, m).t(), st.integers(0, 3), st.integers(1, 3))
_TREES = st.recursive(
    _ATOMS | st.complex_numbers() | st.datetimes() | st.decimals() | st.timedeltas() | _TENSORS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(_HASHABLE, inner, max_size=4)
        | st.dictionaries(_HASHABLE, inner, max_size=4).map(OrderedDict)
        | st.sets(_HASHABLE, max_size=4)
        | st.frozensets(_HASHABLE, max_size=4)
    ),
    max_leaves=20,
)


@given(_TREES)
@settings(max_examples=300, deadline=None)
def test_any_nested_value_comes_back(tree):
    assert_same(back(tree), tree)
    document = flatten(tree).document
    assert len(set(tensor_paths(document))) == len(tensor_paths(document))
    assert_same(back(tree, wanted=lambda name: True), tree)
