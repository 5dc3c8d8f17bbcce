"""Objects that have to be mended in the child of a fork: threads of the parent may have held their locks."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """What has state that does not survive a fork."""

    def after_fork(self) -> None:
        """Mend it, in the child, where no other thread runs."""


_objects: weakref.WeakSet[Forked] = weakref.WeakSet()


def mend_after_fork(each: Forked) -> None:
    """Have `after_fork` called in every child forked while the object lives."""
    _objects.add(each)


def _mend() -> None:
    for each in list(_objects):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mend)
