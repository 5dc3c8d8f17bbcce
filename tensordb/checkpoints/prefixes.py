"""Modules whose names have nothing in common with those of a checkpoint, most often because one of them is wrapped.

``DataParallel`` puts ``module.`` before every name, ``torch.compile`` puts ``_orig_mod.``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tensordb.errors import InvalidInputError


def check_common(role: str, there: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise InvalidInputError when a module and its saved state have names, and none in common.

    Args:
        role: Of the module.
        there: The module's state.
        given: The saved one.
    """
    if not there or not given or not there.keys().isdisjoint(given):
        return
    refused = "checkpoint and module have no name in common, so nothing was loaded"
    added = _prefix(given, there)
    if added:
        raise InvalidInputError(
            f"{refused}: in the checkpoint all begin with {added!r}, as a model that is wrapped (DataParallel, "
            f"torch.compile) has them; load {{name.removeprefix({added!r}): each for name, each in "
            f"db.checkpoints.load(...)[{role!r}].items()}} by load_state_dict(), and save the model without its wrapper"
        )
    lacking = _prefix(there, given)
    if lacking:
        raise InvalidInputError(
            f"{refused}: in the module all begin with {lacking!r}, as it is wrapped (DataParallel, torch.compile); "
            f"load into the model inside it, model.{lacking.removesuffix('.')}"
        )
    raise InvalidInputError(
        f"{refused}: {role}.{next(iter(given))} and so on in the checkpoint, {role}.{next(iter(there))} and so on in "
        "the module; load it as a dict, and rename what is the same"
    )


def _prefix(longer: Collection[str], shorter: Collection[str]) -> str | None:
    """Return what all of some names begin with, and others lack that are else the same."""
    first, known = next(iter(longer)), set(shorter)
    beginnings = [first[: at + 1] for at, letter in enumerate(first) if letter == "."]
    for begin in beginnings:
        if all(each.startswith(begin) for each in longer) and any(each.removeprefix(begin) in known for each in longer):
            return begin
    return None
