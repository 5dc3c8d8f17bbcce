"""Tensors in parts: documents that put them together, and forged ones that must not."""

from typing import Any

import pytest
import torch

from tensordb.checkpoints.tree import flatten, shards, tensor_paths, unflatten, unflatten_values, wire
from tensordb.checkpoints.tree.leaves import put_together
from tensordb.checkpoints.tree.shards import Sharded
from tensordb.errors import IntegrityError


def halves() -> tuple[torch.Tensor, Sharded]:
    whole = torch.arange(24.0).reshape(4, 6)
    boxes = (((0, 0), (4, 2)), ((0, 2), (3, 4)), ((3, 2), (1, 4)))
    return whole, Sharded((4, 6), boxes, tuple(shards.box_of(whole, *box).clone() for box in boxes))


def test_parts_are_leaves_of_their_own_and_come_back_as_the_whole() -> None:
    whole, sharded = halves()
    flat = flatten({"model": {"w": sharded, "b": torch.ones(2)}})
    assert [leaf.name for leaf in flat.leaves] == [
        "model.w.shard(0,0)",
        "model.w.shard(0,2)",
        "model.w.shard(3,2)",
        "model.b",
    ]
    assert [shards.name_of_whole(leaf.name) for leaf in flat.leaves] == ["model.w"] * 3 + ["model.b"]
    assert tensor_paths(flat.document) == {"model.w": (0, 1, 2), "model.b": (3,)}
    tensors = [leaf.tensor for leaf in flat.leaves]
    assert torch.equal(unflatten(flat.document, tensors.__getitem__)["model"]["w"], whole)
    assert list(unflatten_values(flat.document, tensors.__getitem__, {1})["model"]) == ["b"]


@pytest.mark.parametrize(
    ("shape", "boxes"),
    [
        ((4, 7), (((0, 0), (4, 6)),)),
        ((4, 6), (((0, 1), (4, 6)),)),
        ((4, 6), (((0, 0), (6, 4)),)),
        ((4, 6), ()),
        ((1 << 40, 1 << 20), (((0, 0), (4, 6)),)),
    ],
)
def test_parts_that_do_not_make_up_the_whole_are_damage(shape: Any, boxes: Any) -> None:
    parts = tuple(torch.ones(4, 6) for _ in boxes)
    with pytest.raises(IntegrityError):
        put_together((shards.FORM, shape, boxes), 0, parts)


@pytest.mark.parametrize("form", [("shards", (2,), ((0, 2),)), ("shards", [2], ()), ("shards", (-1,), (((0,), (1,)),))])
def test_forms_that_none_is_written_with_are_damage(form: Any) -> None:
    with pytest.raises(IntegrityError):
        shards.check_form(form)


def test_a_note_is_carried_by_a_document_and_changes_nothing_of_it() -> None:
    document = flatten({"a": 1}).document
    noted = wire.with_note(document, b"anything")
    assert unflatten(noted, [].__getitem__) == {"a": 1}
    assert wire.split(noted) == (document, b"anything")
    assert wire.split(document) == (document, None)
    for end in (5, 9, len(document)):
        with pytest.raises(IntegrityError):
            unflatten(noted[:end], [].__getitem__)
