"""Lightning's checkpoint dict as roles, and back.

``state_dict`` is the model; the only one of ``optimizer_states`` is the optimizer, and the only one of
``lr_schedulers`` the scheduler; everything else is the state, several optimizers included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSION_KEY = "pytorch-lightning_version"
_MODEL = "state_dict"
_LISTS = {"optimizer": "optimizer_states", "scheduler": "lr_schedulers"}


def roles_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint dict by role."""
    rest = dict(checkpoint)
    roles: dict[str, Any] = {}
    if isinstance(rest.get(_MODEL), Mapping):
        roles["model"] = rest.pop(_MODEL)
    for role, key in _LISTS.items():
        states = rest.get(key)
        if isinstance(states, list) and len(states) == 1 and isinstance(states[0], Mapping):
            (roles[role],) = rest.pop(key)
    return roles | ({"state": rest} if rest or not roles else {})


def checkpoint_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checkpoint dict that `roles_of` took apart."""
    checkpoint = dict(tree.get("state") or {})
    if "model" in tree:
        checkpoint[_MODEL] = tree["model"]
    return checkpoint | {key: [tree[role]] for role, key in _LISTS.items() if role in tree}


def numbers_of(state: Any) -> dict[str, Any]:
    """Return step and epoch as a state names them, None for those it does not."""
    return {"step": _number(state, ("global_step", "step"), int), "epoch": _number(state, ("epoch",), int | float)}


def _number(state: Any, keys: tuple[str, ...], kind: Any) -> Any:
    values = [state.get(key) for key in keys] if isinstance(state, Mapping) else []
    numbers = [value for value in values if isinstance(value, kind) and not isinstance(value, bool)]
    return next((number for number in numbers if 0 <= number < 1 << 62), None)
