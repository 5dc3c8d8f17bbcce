"""A training state taken apart into named tensors and JSON, and put together again: what peers without trees need.

States are dicts, lists, tuples, tensors and JSON's own values. The round trip is exact: types, key types, bits.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def flatten(state: State) -> tuple[str, dict[str, Tensor]]:
    """Return the structure as JSON, and the tensors by their dotted names."""
    tensors: dict[str, Tensor] = {}
    return json.dumps(_taken_apart(state, "", tensors)), tensors


def rebuild(structure: str, tensors: dict[str, Tensor]) -> State:
    """Return the state that `flatten` took apart."""
    return _put_together(json.loads(structure), tensors)


def tensor_bytes(state: State) -> int:
    """Return the raw bytes of all tensors of a state."""
    return sum(each.nbytes for each in flatten(state)[1].values())


def difference(left: State, right: State) -> str | None:
    """Return where two states differ, by a bit or in kind; None where they do not."""
    (structure, tensors), (other_structure, others) = flatten(left), flatten(right)
    if structure != other_structure:
        return "the structure"
    return next((name for name, each in tensors.items() if not _same_bits(each, others[name])), None)


def _taken_apart(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[key, _taken_apart(each, _joined(name, key), tensors)] for key, each in node.items()]}
    if isinstance(node, list | tuple):
        kind = "list" if isinstance(node, list) else "tuple"
        return {kind: [_taken_apart(each, _joined(name, number), tensors) for number, each in enumerate(node)]}
    return {"value": node}


def _put_together(node: Any, tensors: dict[str, Tensor]) -> Any:
    [(kind, content)] = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_together(each, tensors) for key, each in content}
    if kind == "value":
        return content
    parts = [_put_together(each, tensors) for each in content]
    return parts if kind == "list" else tuple(parts)


def _joined(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _same_bits(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (left, right)))
