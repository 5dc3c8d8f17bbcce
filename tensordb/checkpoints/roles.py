"""What a checkpoint is made of: the roles at the top of its state, and what each of them is encoded with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tensordb.checkpoints import randomness
from tensordb.checkpoints.tree.shards import name_of_whole
from tensordb.encoding.presets import CompressionConfig, get_compression_preset
from tensordb.errors import InvalidInputError

ROLES = ("model", "optimizer", "scheduler", "scaler", "state", "rng")


def role_of(name: str) -> str:
    """Return the role that a full name begins with, or the key where a state has others at its top."""
    quoted = next((role for role in ROLES if name.startswith(f"[{role!r}]")), None)  # see paths.unique_names
    return name.partition(".")[0] if quoted is None else quoted


@dataclass(frozen=True)
class RoleConfigs:
    """What the tensors of each role are encoded with."""

    of_role: Mapping[str, CompressionConfig]

    @classmethod
    def of(cls, preset: Any, default: CompressionConfig) -> RoleConfigs:
        """Return what `save` was given as `preset`; `default` is for the roles that it does not name.

        Raises:
            InvalidInputError: It is neither a preset, a config, nor a mapping of roles to those.
        """
        if preset is None or isinstance(preset, str | CompressionConfig):
            config = _config(preset, default)
            return cls(dict.fromkeys(ROLES, config) | {"rng": get_compression_preset("lossless")})
        if not isinstance(preset, Mapping):
            raise InvalidInputError(
                f"preset is a {type(preset).__name__}; give the name of a preset, a CompressionConfig, or a mapping of "
                f"roles ({', '.join(ROLES)}) to those"
            )
        unknown = [role for role in preset if role not in ROLES]
        if unknown:
            raise InvalidInputError(f"preset names the role {unknown[0]!r}; there are: {', '.join(ROLES)}")
        return cls({role: _config(preset.get(role), default) for role in ROLES})

    def of_tensor(self, name: str) -> tuple[CompressionConfig, str]:
        """Return the config of a tensor by its full name, and what rules know it by: its name within the role."""
        role = role_of(name)
        quoted = f"[{role!r}]"
        return self.of_role[role], name.removeprefix(quoted) if name.startswith(quoted) else name.partition(".")[2]


@dataclass(frozen=True)
class KeyConfigs:
    """What the tensors below each key at the top of a state are encoded with.

    Attributes:
        default: For the keys that are not named.
    """

    of_key: Mapping[str, CompressionConfig]
    default: CompressionConfig

    @classmethod
    def of(cls, preset: Any, default: CompressionConfig) -> KeyConfigs:
        """Return what was given as `preset`: the name of a preset, a config, or those by key.

        Raises:
            InvalidInputError: It is none of these.
        """
        if preset is None or isinstance(preset, str | CompressionConfig):
            return cls({}, _config(preset, default))
        if not isinstance(preset, Mapping) or not all(isinstance(key, str) for key in preset):
            raise InvalidInputError(
                f"preset is {preset!r}; give the name of a preset, a CompressionConfig, or a mapping of keys of the "
                "state to those"
            )
        return cls({key: _config(each, default) for key, each in preset.items()}, default)

    def of_tensor(self, name: str) -> tuple[CompressionConfig, str]:
        """Return the config of a tensor, or of a part of it, and what rules know it by: its name behind the key."""
        whole = name_of_whole(name)
        key, dot, path = whole.partition(".")
        return self.of_key.get(key, self.default), path if dot else whole


def state_tree(model: Any, *, optimizer: Any, scheduler: Any, scaler: Any, state: Any, rng: bool) -> dict[str, Any]:
    """Return the state of what was given, by role; what is None has none."""
    for value, role in ((model, "model"), (scheduler, "scheduler"), (scaler, "scaler")):
        if isinstance(value, torch.optim.Optimizer):
            raise InvalidInputError(f"{role} is a {type(value).__name__}; give it as optimizer=")
    if isinstance(optimizer, torch.nn.Module | torch.optim.lr_scheduler.LRScheduler):
        raise InvalidInputError(f"optimizer is a {type(optimizer).__name__}; give it as model or scheduler=")
    given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    tree = {role: state_of(value, role) for role, value in given.items() if value is not None}
    if state is not None:
        tree["state"] = _nested_state(state)
    if not tree:
        raise InvalidInputError("there is nothing to save; give a model, an optimizer, or any nested state as state=")
    if rng:
        tree["rng"] = randomness.capture()
    return tree


def state_of(value: Any, what: str) -> Any:
    """Return the state dict of a module, an optimizer or the like, or a state dict that was given as it is."""
    if isinstance(value, torch.Generator):
        return {"generator": value.get_state()}
    if isinstance(value, Mapping):
        return value
    if not callable(getattr(value, "state_dict", None)):
        raise InvalidInputError(
            f"{what} is a {type(value).__name__} without state_dict(); give one that has it, or the state itself"
        )
    return value.state_dict()


def _nested_state(state: Any) -> Any:
    """Return the user's own state; what has a `state_dict` at its top, such as a sampler, gives that."""
    if not isinstance(state, Mapping):
        return state_of(state, "state") if has_state(state) else state
    plain = {key: state_of(value, f"state[{key!r}]") if has_state(value) else value for key, value in state.items()}
    return plain if any(has_state(value) for value in state.values()) else state


def has_state(value: Any) -> bool:
    """Tell whether a value has a state to save and to restore."""
    return isinstance(value, torch.Generator) or (
        callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))
    )


def _config(preset: Any, default: CompressionConfig) -> CompressionConfig:
    if preset is None:
        return default
    if isinstance(preset, CompressionConfig):
        return preset
    return get_compression_preset(preset)
