"""Tensors that share memory are stored once and share it again; those that do not are stored on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensordb.checkpoints.tree import flatten, memory, tensor_paths

from .trees import assert_same, back, bits, names


def share_memory(one, other):
    """Whether a write through one shows in the other."""
    one = torch.view_as_real(one) if one.dtype == torch.complex32 else one
    before, kept = bits(other), one.detach().clone()
    with torch.no_grad():
        if one.dtype == torch.bool:
            one.logical_not_()
        else:
            one.copy_(torch.from_numpy(~np.frombuffer(bits(one), np.uint8)).view(one.dtype).reshape(one.shape))
        changed = bits(other) != before
        one.copy_(kept)
    return changed


def test_the_same_tensor_twice_is_one_leaf_and_one_object():
    tensor = torch.ones(3)
    state = {"a": tensor, "b": [tensor, tensor.view(3)]}
    assert names(state) == ["a"]
    result = back(state)
    assert result["a"] is result["b"][0] is result["b"][1]


def test_tied_parameters_are_one_parameter():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    assert names(model.state_dict()) == ["embed.weight"]
    result = back({"tied": dict(model.named_parameters(remove_duplicate=False))})["tied"]
    assert result["embed.weight"] is result["head.weight"]
    assert type(result["embed.weight"]) is nn.Parameter


def test_a_parameter_and_its_data_are_two_objects_over_one_leaf():
    parameter = nn.Parameter(torch.ones(3))
    state = {"parameter": parameter, "data": parameter.data}
    assert names(state) == ["parameter"]
    result = back(state)
    assert_same(result, state)
    result["data"].zero_()
    assert not result["parameter"].detach().any()


def test_overlapping_tensors_are_one_leaf_and_overlap_again():
    base = torch.arange(24.0).reshape(4, 6)
    state = {"rows": base[:3], "turned": base.t(), "step": base[2:, ::2]}
    assert names(state) == ["rows.storage"]
    result = back(state)
    assert_same(result, state)
    result["turned"].zero_()
    assert not result["rows"].any()
    assert not result["step"].any()
    assert tensor_paths(flatten(state).document) == {"rows": (0,), "turned": (0,), "step": (0,)}


def test_views_of_different_dtypes_share_memory_again():
    base = torch.randn(8, dtype=torch.float64)
    state = {"numbers": base[1:], "words": base.view(torch.int16)[6:20], "bytes": base.view(torch.uint8)}
    flat = flatten(state)
    assert [leaf.tensor.dtype for leaf in flat.leaves] == [torch.uint8]
    result = back(state)
    assert_same(result, state)
    assert share_memory(result["numbers"], result["words"])
    assert share_memory(result["bytes"], result["numbers"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.complex32, torch.bool, torch.float8_e5m2])
def test_overlap_is_kept_for_narrow_and_paired_dtypes(dtype):
    raw = torch.randint(0, 2, (64,), dtype=torch.uint8).view(dtype)
    state = {"a": raw[:4], "b": raw[2:6]}
    result = back(state)
    assert_same(result, state)
    assert share_memory(result["b"], result["a"])


def test_tensors_of_one_storage_that_do_not_overlap_are_leaves_of_their_own():
    flat = torch.randn(10)
    assert names({"a": flat[:4], "b": flat[4:]}) == ["a", "b"]


def test_the_columns_of_a_matrix_alternate_in_memory_and_do_not_overlap():
    fused = torch.randn(6, 9)
    query, key, value = fused.split(3, dim=1)
    state = {"q": query, "k": key.t(), "v": value}
    assert names(state) == ["q", "k", "v"]
    assert names({**state, "bias": fused[2, 2:4]}) == ["q.storage", "v"]


def test_tensors_too_large_to_be_told_apart_are_kept_together(monkeypatch):
    monkeypatch.setattr(memory, "MAX_CELLS", 1)
    base = torch.randn(4, 6)
    state = {"even": base[:, ::2], "odd": base[:, 1::2]}
    assert names(state) == ["even.storage"]
    assert_same(back(state), state)


def test_memory_that_no_single_storage_holds_is_joined():
    array = np.arange(12, dtype=np.float32)
    state = {"a": torch.from_numpy(array[1:7]), "b": torch.from_numpy(array[3:11]).view(torch.int32)}
    result = back(state)
    assert_same(result, state)
    assert share_memory(result["a"], result["b"])


def test_a_tensor_and_the_array_of_its_memory_share_it_again():
    tensor = torch.arange(5.0)
    state = {"tensor": tensor, "array": tensor.numpy()}
    assert names(state) == ["tensor"]
    result = back(state)
    result["tensor"][0] = 7
    assert result["array"][0] == 7


def test_expanded_and_conjugated_tensors_are_leaves_with_their_values():
    base = torch.randn(3, dtype=torch.complex64)
    state = {"base": base, "conj": base.conj(), "wide": base.expand(4, 3), "again": base.conj()}
    assert names(state) == ["base", "conj", "wide"]
    result = back(state)
    assert torch.equal(result["conj"], base.conj().resolve_conj())
    assert torch.equal(result["wide"], base.expand(4, 3))
    assert result["conj"] is result["again"]


def test_empty_tensors_are_never_tied_to_each_other():
    base = torch.ones(4)
    result = back({"a": base[:0], "b": base[:0], "c": base})
    assert result["a"] is not result["b"]


def test_sparse_tensors_that_share_a_part_share_it_again():
    sparse = torch.eye(3).to_sparse()
    other = torch.sparse_coo_tensor(sparse.indices(), torch.ones(3), (3, 3), check_invariants=True)
    state = {"a": sparse, "b": other}
    assert names(state) == ["a.indices", "a.values", "b.values"]
    assert_same(back(state), state)


def test_pruning_keeps_what_the_wanted_tensors_share():
    base = torch.arange(6.0)
    result = back({"a": base[:4], "b": base[2:], "tie": base[2:]}, wanted=lambda name: name != "a")
    assert torch.equal(result["b"], base[2:])
    assert result["b"] is result["tie"]


_SLICES = st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 3))


@given(st.lists(st.tuples(_SLICES, _SLICES, st.booleans(), st.booleans()), min_size=2, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_two_views_share_memory_after_as_before(views):
    base = torch.arange(36, dtype=torch.int32).reshape(6, 6)
    tensors = []
    for (top, down, row), (left, across, column), turned, narrow in views:
        view = base[top : top + down : row, left : left + across : column]
        if narrow and view.stride(-1) == 1:
            view = view.view(torch.int16)
        tensors.append(view.t() if turned else view)
    result = back(tensors)
    assert_same(result, [tensor.detach() for tensor in tensors])
    for left in range(len(tensors)):
        for right in range(len(tensors)):
            assert share_memory(result[left], result[right]) == share_memory(tensors[left], tensors[right])


def test_thousands_of_columns_of_one_matrix_are_leaves_of_their_own():
    matrix = torch.randn(20, 2000)
    assert len(names([matrix[:, column] for column in range(2000)])) == 2000
