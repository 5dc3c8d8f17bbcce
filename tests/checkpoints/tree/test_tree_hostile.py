"""What would not come back is refused by its path; no bytes make reading do more than give a value or an error."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import functools
import sys
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tensordb.checkpoints.tree import flatten, tensor_paths, unflatten
from tensordb.checkpoints.tree.containers import MAX_DEPTH
from tensordb.checkpoints.tree.wire import MAX_NBYTES
from tensordb.errors import FormatError, IntegrityError, InvalidInputError

from .trees import back

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


class Marked(torch.Tensor):
    pass


class Zone(dt.tzinfo):
    def utcoffset(self, when):
        return dt.timedelta(0)


class Text(str):
    __slots__ = ()


def with_attribute(container):
    container.note = 1
    return container


def freed():
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


def unsorted():
    columns, values = torch.tensor([1, 0]), torch.ones(2)
    return torch.sparse_csr_tensor(torch.tensor([0, 2, 2]), columns, values, (2, 2), check_invariants=False)


def shrunk():
    tensor = torch.ones(100)[10:]
    tensor.untyped_storage().resize_(16)
    return tensor


REFUSED = {
    "defaultdict": (lambda: defaultdict(list, a=1), "dict(x)"),
    "namedtuple": (lambda: Point(1, 2), "tuple(x)"),
    "enum": (lambda: Colour.RED, "numbers"),
    "dataclass": (lambda: Settings(), "asdict"),
    "function": (lambda: len, "leave it out"),
    "partial": (lambda: functools.partial(int), "leave it out"),
    "class": (lambda: int, "leave it out"),
    "module": (lambda: nn.Linear(1, 1), "state_dict()"),
    "optimizer": (lambda: torch.optim.SGD([nn.Parameter(torch.ones(1))]), "state_dict()"),
    "object": (lambda: object(), "dicts"),
    "deque": (lambda: deque([1]), "lists"),
    "time zone of its own": (lambda: dt.datetime(2024, 1, 1, tzinfo=Zone()), "Zone"),
    "unsorted csr": (unsorted, "rules of its layout"),
    "text subclass": (lambda: Text("x"), "text"),
    "generator": (lambda: torch.Generator(), "tensors"),
    "structured scalar": (lambda: np.zeros(1, "i4,f4")[0], "numbers"),
    "attribute of an OrderedDict": (lambda: with_attribute(OrderedDict()), "'note'"),
    "attribute of a Counter": (lambda: with_attribute(Counter()), "'note'"),
    "meta": (lambda: torch.empty(2, device="meta"), "meta"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "dequantize"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged), "unbind"),
    "subclass of tensor": (lambda: torch.ones(2).as_subclass(Marked), "as_subclass"),
    "uninitialized": (lambda: nn.parameter.UninitializedParameter(), "meta|subclass|uninit"),
    "mkldnn": (lambda: torch.ones(2, 2).to_mkldnn(), "to_dense"),
    "freed": (lambda: freed(), "freed"),
    "shrunk": (lambda: shrunk(), "shrunk"),
    "object array": (lambda: np.array([1, "a"], dtype=object), "object"),
    "structured array": (lambda: np.zeros(2, "i4,f4"), "dtype"),
    "matrix": (lambda: np.ma.masked_array([1]), "asarray"),
    "tensor in a set": (lambda: {torch.ones(1)}, "set"),
    "tensor in a tuple in a set": (lambda: {(torch.ones(1),)}, "set"),
    "tensor as a key": (lambda: {torch.ones(1): 1}, "state_dict"),
    "nan as a key": (lambda: {(float("nan"),): 1}, "NaN"),
    "huge integer as a key": (lambda: {10**5000: 1}, "text"),
    "enum as a key": (lambda: {Colour.RED: 1}, "key of type"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("make", "remedy"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_come_back_is_refused_by_its_path(make, remedy):
    with pytest.raises(InvalidInputError, match=rf"(?s)^a\.b\.1.*({remedy.replace('(', '[(]').replace(')', '[)]')})"):
        flatten({"a": {"b": [0, make()]}})


def test_what_contains_itself_is_refused_by_its_path():
    inner = {}
    state = {"a": [1, inner]}
    inner["back"] = state["a"]
    with pytest.raises(InvalidInputError, match=r"^a\.1\.back contains itself"):
        flatten(state)


def test_a_container_in_two_places_is_no_cycle():
    shared = [1]
    assert back({"a": shared, "b": shared}) == {"a": [1], "b": [1]}


def nested(depth):
    tree = 1
    for _ in range(depth):
        tree = [tree]
    return tree


def test_the_deepest_tree_comes_back_and_a_deeper_one_is_refused():
    assert back(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidInputError, match="nested deeper"):
            flatten(nested(depth))


def test_a_value_of_several_parts_fits_at_any_depth_where_it_is_accepted():
    for depth in range(MAX_DEPTH - 3, MAX_DEPTH + 1):
        tree = {"size": torch.Size([1]), "slice": slice(slice(1))}
        for _ in range(depth):
            tree = [tree]
        try:
            flat = flatten(tree)
        except InvalidInputError:
            assert depth > MAX_DEPTH - 4
        else:
            assert unflatten(flat.document, lambda index: None) == tree


def test_a_key_nested_too_deep_is_refused():
    key = ()
    for _ in range(5000):
        key = (key,)
    with pytest.raises(InvalidInputError, match="nested deeper"):
        flatten({"a": {key: 1}})


def test_a_state_with_too_much_beside_its_tensors_is_refused():
    with pytest.raises(InvalidInputError, match="tensors or NumPy arrays"):
        flatten({"log": bytes(MAX_NBYTES)})


def forged(*tokens):
    return b"\x01" + b"".join(msgpack.packb(token, unicode_errors="surrogatepass") for token in tokens)


def mark(code, number=0):
    return msgpack.ExtType(code, number.to_bytes((number.bit_length() + 7) // 8, "little"))


NO_TENSORS = mark(5, 0)
LIST, TUPLE, DICT, SET, TENSOR = 5, 6, 2, 7, 1


def tensors(*plain):
    """Return the tokens of a value of nested tuples."""
    tokens = []
    for value in plain:
        tokens += [mark(TUPLE, len(value)), *tensors(*value)] if type(value) is tuple else [value]
    return tokens


def one_tensor(*plain):
    return forged(mark(LIST, 1), *tensors(*plain), mark(TENSOR, 0))


FORGED = {
    "nothing": b"",
    "version": b"\x02",
    "only a version": b"\x01",
    "no tree": forged(NO_TENSORS),
    "table is no list": forged(5, 5),
    "more than a tree": forged(NO_TENSORS, 1, 2),
    "unknown kind": forged(NO_TENSORS, mark(99)),
    "unknown extension": forged(NO_TENSORS) + b"\xd4\xfb\x00",
    "a time": forged(NO_TENSORS, msgpack.Timestamp(1)),
    "an array of MessagePack": forged(NO_TENSORS, [1]),
    "an empty map of MessagePack": forged(NO_TENSORS, {}),
    "huge list": forged(NO_TENSORS, mark(LIST, 2**62)),
    "count of thousands of digits": forged(NO_TENSORS, mark(DICT, 1 << 16_000), 1),
    "number of thousands of digits": forged(NO_TENSORS, mark(TENSOR, 1 << 16_000)),
    "huge count": forged(NO_TENSORS, msgpack.ExtType(LIST, b"\xff" * 1000)),
    "huge text": b"\x01\x95\xdb\xff\xff\xff\xff",
    "too deep": forged(NO_TENSORS, *[mark(LIST, 1)] * 5000, 1),
    "too deep a key": forged(NO_TENSORS, *[mark(DICT, 1), mark(TUPLE, 1)] * 3000, 1),
    "too deep a kind": forged(NO_TENSORS, *[mark(41)] * 5000),
    "twice a key": forged(NO_TENSORS, mark(DICT, 2), 1, 0, True, 0),
    "list as a key": forged(NO_TENSORS, mark(DICT, 1), mark(LIST, 0), 1),
    "tensor as a key": forged(mark(LIST, 1), 0, mark(DICT, 1), mark(TENSOR, 0), 1),
    "huge integer as a key": forged(NO_TENSORS, mark(DICT, 1), msgpack.ExtType(0, b"\x7f" * 9999), 1),
    "twice a member": forged(NO_TENSORS, mark(SET, 2), 1, 1),
    "list in a set": forged(NO_TENSORS, mark(SET, 1), mark(LIST, 0)),
    "bytearray by its length": forged(NO_TENSORS, mark(33), 10**12),
    "range of text": forged(NO_TENSORS, mark(42), mark(TUPLE, 1), "x"),
    "range without a step": forged(NO_TENSORS, mark(42), mark(TUPLE, 3), 1, 2, 0),
    "decimal": forged(NO_TENSORS, mark(40), "x"),
    "zone": forged(NO_TENSORS, mark(39), "../../../etc/passwd"),
    "dtype": forged(NO_TENSORS, mark(44), "torch.strided"),
    "device": forged(NO_TENSORS, mark(47), "x" * 100),
    "numpy object": forged(NO_TENSORS, mark(51), mark(TUPLE, 2), "|O", bytes(8)),
    "numpy structure": forged(NO_TENSORS, mark(51), mark(TUPLE, 2), "i4,i4", bytes(8)),
    "numpy length": forged(NO_TENSORS, mark(51), mark(TUPLE, 2), "<f4", bytes(8)),
    "missing tensor": forged(NO_TENSORS, mark(TENSOR, 0)),
    "negative leaf": one_tensor(-1),
    "tensor in the table": forged(mark(LIST, 1), mark(TENSOR, 0), 1),
    "form unknown": one_tensor((("blob",), 0, 0)),
    "form empty": one_tensor(((), 0, 0)),
    "form too short": one_tensor((("coo",), 0, 0, 0)),
    "flags": one_tensor((("dense",), 9, 0)),
    "too many parts": one_tensor((("dense",), 0, 0, 0)),
    "integer that requires gradients": one_tensor((("array", "|O"), 0, 0)),
    "view beyond": one_tensor((("dense",), 0, (0, "float32", 0, (100,), (1,)))),
    "view of a negative stride": one_tensor((("dense",), 0, (0, "float32", 0, (2,), (-1,)))),
    "view of unequal rank": one_tensor((("dense",), 0, (0, "float32", 0, (2,), ()))),
    "view of an unknown dtype": one_tensor((("dense",), 0, (0, "object", 0, (2,), (1,)))),
    "view of another dtype": one_tensor((("dense",), 0, (0, "int32", 0, (2,), (1,)))),
    "huge view": one_tensor((("dense",), 0, (0, "float32", 0, (2**61, 2**61), (0, 0)))),
    "sparse of floats": one_tensor((("coo", (2,), False), 0, 0, 0)),
    "sparse of a huge shape": one_tensor((("csr", (2**62, 1)), 0, 0, 0, 0)),
    "array of text": one_tensor((("array", "<U1"), 0, 0)),
    "array of 2 GB elements": one_tensor((("array", "<U999999999"), 0, 0)),
}


def read_all(document):
    leaf = torch.arange(6.0)
    unflatten(document, lambda index: leaf, wanted=lambda name: "a" in name)
    tensor_paths(document)
    return unflatten(document, lambda index: leaf)


@pytest.mark.parametrize("document", FORGED.values(), ids=FORGED)
def test_forged_documents_are_refused(document):
    with pytest.raises((FormatError, IntegrityError)):
        unflatten(document, lambda index: torch.arange(6.0))
    with pytest.raises((FormatError, IntegrityError)):
        read_all(document)


@pytest.mark.parametrize("plain", [mark(0, 10**5000), (("dense",), 0, mark(0, 10**5000))], ids=["leaf", "part"])
def test_nobody_is_asked_for_a_leaf_whose_number_has_too_many_digits_to_be_told(plain):
    with pytest.raises(IntegrityError):
        unflatten(one_tensor(plain), lambda index: pytest.fail("somebody was asked"))


def test_a_version_that_is_not_known_is_named():
    with pytest.raises(FormatError, match="version 9"):
        tensor_paths(b"\x09abc")


def test_forged_counts_take_no_memory():
    document = forged(NO_TENSORS, *[mark(LIST, 2**40)] * 50, *[mark(DICT, 2**50)] * 50)
    tracemalloc.start()
    with pytest.raises(IntegrityError):
        unflatten(document, lambda index: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


def sample():
    base = torch.arange(12.0)
    return {
        "model": OrderedDict(weight=nn.Parameter(base[:6]), bias=base[4:8], tied=base[4:8]),
        "s": torch.eye(3).to_sparse(),
        "n": [1, 2.5, None, "ü", b"x", 10**30, (1, {2}), torch.float16, np.float32(1), range(3), {(1, "a"): -0.0}],
        "a": np.arange(3, dtype=">i4"),
    }


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_documents_give_a_value_or_an_error(data):
    document = bytearray(flatten(sample()).document)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(document) - 1))
        document[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(document), data.draw(st.integers(0, len(document)))]))
    with contextlib.suppress(FormatError, IntegrityError):
        read_all(bytes(document[:end]))


@given(st.binary(max_size=200))
@example(b"\xc7\xff\x05")
@settings(max_examples=400, deadline=None)
def test_random_bytes_give_a_value_or_an_error(stream):
    with contextlib.suppress(FormatError, IntegrityError):
        read_all(b"\x01" + stream)


_MARKS = st.builds(mark, st.integers(0, 60), st.integers(0, 3))
_TOKENS = _MARKS | st.integers(-2, 9) | st.sampled_from(["", "<f4", "coo", "dense", "torch.float32", b"", None, 1.5])


@given(st.lists(_TOKENS, max_size=30))
@settings(max_examples=600, deadline=None)
def test_random_tokens_give_a_value_or_an_error(tokens):
    with contextlib.suppress(FormatError, IntegrityError):
        read_all(forged(*tokens))


def test_a_leaf_that_does_not_fit_is_an_error():
    flat = flatten(sample())
    with pytest.raises(IntegrityError):
        unflatten(flat.document, lambda index: torch.ones(2))


def test_depth_is_refused_also_from_deep_within_a_program():
    def call(levels):
        return call(levels - 1) if levels else flatten(nested(MAX_DEPTH))

    assert call(sys.getrecursionlimit() // 3).document
