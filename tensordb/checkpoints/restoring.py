"""Putting a loaded state back into modules, optimizers and whatever else has one.

What can be told beforehand is checked before anything is changed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.checkpoints.prefixes import check_common
from tensordb.checkpoints.roles import ROLES, has_state
from tensordb.checkpoints.selecting import Selection
from tensordb.errors import InvalidInputError

_SHOWN = 10


@dataclass(frozen=True)
class LoadReport:
    """What loading into modules and optimizers did.

    Attributes:
        checkpoint: The one that was loaded.
        missing: Full names of tensors of a module that the checkpoint lacks; they were left as they were.
        unexpected: Full names of tensors of the checkpoint that a module lacks.
    """

    checkpoint: Checkpoint
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def targets_of(into: Any) -> dict[str, Any]:
    """Return what is to be loaded into, by role.

    Raises:
        InvalidInputError: `into` is no module, optimizer, mapping of roles or sequence of those.
    """
    if isinstance(into, Mapping) and not isinstance(into, torch.nn.Module):
        unknown = [role for role in into if role not in ROLES]
        if unknown:
            raise InvalidInputError(
                f"into is a mapping with {unknown[0]!r}, which is no role ({', '.join(ROLES)}); give the module or the "
                "optimizer itself, as their state dicts are not loaded into; without into= the state is returned"
            )
        return {role: target for role, target in into.items() if target is not None}
    targets: dict[str, Any] = {}
    for each in into if isinstance(into, list | tuple) else [into]:
        role = _role_of(each)
        if role in targets:
            raise InvalidInputError(f"into has two of the role {role!r}; give a mapping of roles")
        targets[role] = each
    return targets


def compare(
    tree: Mapping[str, Any], targets: Mapping[str, Any], wanted: Selection
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the full names that modules lack values for, and those that they have no place for.

    Args:
        tree: The state by role.
        targets: What is to be loaded into, by role.
        wanted: Tells which names were asked for, and which there are.

    Raises:
        InvalidInputError: The checkpoint has no state for a target, no name in common with a module, tensors of other
            shapes, or other parameter groups than an optimizer; or a target has no state to load.
    """
    saved = wanted.roles
    lacking = [role for role in targets if role not in tree]
    if lacking:
        has = ", ".join(role for role in ROLES if role in saved) or "nothing"
        raise InvalidInputError(f"the checkpoint has no {lacking[0]!r} (it has: {has}); leave it out")
    missing: list[str] = []
    unexpected: list[str] = []
    for role, target in targets.items():
        if isinstance(target, torch.nn.Module):
            there, given = target.state_dict(), tree[role]
            _check_tensors(role, there, given)
            check_common(role, there, given)
            names = [f"{role}.{key}" for key in there if key not in given]
            missing += [name for name in names if wanted(name)]
            unexpected += [f"{role}.{key}" for key in given if key not in there]
        elif role == "state" and isinstance(target, Mapping):
            for key, each in target.items():
                _check_target(f"state[{key!r}]", each, _entry(tree[role], key))
        else:
            _check_target(role, target, tree[role])
    return tuple(missing), tuple(unexpected)


def check_strict(missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Raise InvalidInputError when names are missing or unexpected."""
    if missing or unexpected:
        raise InvalidInputError(
            "checkpoint and module do not fit, so nothing was loaded: "
            f"missing in the checkpoint: {_some(missing)}; not in the module: {_some(unexpected)}; "
            "strict=False loads what fits"
        )


def warn_of_left_out(checkpoint: Checkpoint, saved: Collection[str], targets: Collection[str]) -> None:
    """Warn of roles that a checkpoint has, and that the training it resumes was not given."""
    left = [role for role in ROLES if role in saved and role not in targets and role != "rng"]
    if left:
        warnings.warn(
            f"resumed run {checkpoint.run!r} at step {checkpoint.step} without its {', '.join(left)}, which the "
            f"checkpoint has; give {left[0]}=, {{}} for a state that you read yourself, or load(into=...) for parts",
            stacklevel=3,
        )


def load_states(tree: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Load the state of each role into its target, once `compare` found nothing against it."""
    for role, target in targets.items():
        if isinstance(target, torch.nn.Module):
            with _refusing(role):
                target.load_state_dict(tree[role], strict=False)
        elif role == "state" and isinstance(target, Mapping):
            _load_each(target, tree[role])
        else:
            _load(role, target, tree[role])


def _load_each(targets: Mapping[str, Any], states: Any) -> None:
    for key, target in targets.items():
        _load(f"state[{key!r}]", target, states[key])


def _entry(states: Any, key: Any) -> Any:
    if not isinstance(states, Mapping) or key not in states:
        there = ", ".join(map(repr, states)) if isinstance(states, Mapping) else type(states).__name__
        raise InvalidInputError(f"the checkpoint's state has no {key!r} (it has: {there}); leave it out")
    return states[key]


def _check_target(what: str, target: Any, state: Any) -> None:
    """Raise InvalidInputError for what cannot take a state, as far as that can be told before it is tried."""
    if isinstance(target, torch.Generator):
        if not isinstance(state, Mapping) or not isinstance(state.get("generator"), torch.Tensor):
            raise InvalidInputError(f"{what} is a generator, and the checkpoint has none there; leave it out")
    elif not has_state(target):
        raise InvalidInputError(f"{what} is a {type(target).__name__} without load_state_dict(); load it as a dict")
    elif isinstance(target, torch.optim.Optimizer):
        given = _group_sizes(state.get("param_groups") if isinstance(state, Mapping) else None)
        there = _group_sizes(target.param_groups)
        if given != there:
            raise InvalidInputError(
                f"{what} has parameter groups of {there} parameters, the checkpoint's of {given}; nothing was loaded; "
                "make the optimizer as it was made when it was saved"
            )
        _check_kind(what, target, state["param_groups"])


def _check_kind(what: str, target: torch.optim.Optimizer, groups: list[Any]) -> None:
    """Raise InvalidInputError for the state of another kind of optimizer, which torch would take."""
    for there, given in zip(target.param_groups, groups, strict=True):
        ours, theirs = set(there) - set(given), set(given) - set(there)
        if ours and theirs:  # a release of torch that adds a setting makes only one of them
            raise InvalidInputError(
                f"{what} is a {type(target).__name__} with {_some(sorted(ours))}, the checkpoint's has "
                f"{_some(sorted(theirs))} instead, so it was of another kind; nothing was loaded"
            )


def _group_sizes(groups: Any) -> list[int] | None:
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) and "params" in group for group in groups):
        return None
    return [len(group["params"]) for group in groups]


def _load(what: str, target: Any, state: Any) -> None:
    if isinstance(target, torch.Generator):
        target.set_state(state["generator"].cpu())
        return
    with _refusing(what):
        target.load_state_dict(state)
    if isinstance(target, torch.optim.Optimizer):
        _keep_dtypes(target, state)


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Tell what could not be told beforehand: a target looks at its state in its own way, and raises what it likes."""
    try:
        yield
    except Exception as error:
        raise InvalidInputError(
            f"{what} does not take the checkpoint's state, a part of it and others may be loaded already: "
            f"{type(error).__name__}: {error}"
        ) from error


def _keep_dtypes(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer's state its own dtypes back: torch casts it to those of the parameters."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in state["state"].get(number, {}).items():
            there = optimizer.state[parameter].get(key)
            if isinstance(value, torch.Tensor) and isinstance(there, torch.Tensor) and there.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(there.device)


def _check_tensors(role: str, there: Mapping[str, Any], given: Any) -> None:
    """Raise InvalidInputError when tensors of a module cannot take what the checkpoint has for them, or lose of it."""
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"the checkpoint's {role!r} is a {type(given).__name__}, not the state of a module")
    odd = next((key for key in given if not isinstance(key, str)), None)
    if odd is not None:
        raise InvalidInputError(f"the checkpoint's {role!r} has the key {odd!r}, as no module's has; load it as a dict")
    wrong = [
        f"{role}.{key} is {misfit[0]} in the checkpoint and {misfit[1]} in the module"
        for key, value in given.items()
        if isinstance(there.get(key), torch.Tensor) and (misfit := _misfit(value, there[key])) is not None
    ]
    if any(isinstance(value, torch.Tensor) and value.is_meta for value in given.values()):
        raise InvalidInputError("map_location is 'meta', where tensors have no values to load; nothing was loaded")
    meta = [f"{role}.{key}" for key, value in there.items() if isinstance(value, torch.Tensor) and value.is_meta]
    if meta:
        raise InvalidInputError(f"{_some(meta)} of the module is on meta, with no memory; call to_empty(device=…)")
    if wrong:
        raise InvalidInputError(f"checkpoint and module do not fit, so nothing was loaded: {_some(wrong)}")


def _misfit(value: Any, tensor: torch.Tensor) -> tuple[object, object] | None:
    """Return in what a stored value and the tensor that is to take it differ too much; None when they do not."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}", "a tensor"
    if torch.nn.parameter.is_lazy(tensor):
        return None
    if value.shape != tensor.shape:
        return tuple(value.shape), tuple(tensor.shape)
    if value.layout != tensor.layout:
        return value.layout, tensor.layout
    if not torch.can_cast(value.dtype, tensor.dtype):  # torch would drop imaginary parts and fractions without a word
        return value.dtype, tensor.dtype
    return None


def _role_of(target: Any) -> str:
    if isinstance(target, torch.nn.Module):
        return "model"
    if isinstance(target, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(target, torch.optim.lr_scheduler.LRScheduler):
        return "scheduler"
    if isinstance(target, torch.amp.GradScaler):
        return "scaler"
    raise InvalidInputError(
        f"into is a {type(target).__name__}; give a module, an optimizer, or a mapping of roles ({', '.join(ROLES)})"
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return (f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown) or "none"
