"""What survives a fork, whatever the threads of the parent were doing: locks that they held are held for ever.

Objects that have locks are mended in the child. Values that are computed once need none.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, overload

Value = TypeVar("Value")


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


class computed_once(Generic[Value]):  # noqa: N801
    """A property that is computed when it is first asked for, and kept; threads at once may each compute it.

    `functools.cached_property` of Python 3.11 holds one lock for all objects of a class meanwhile.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> computed_once[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object | None, owner: type) -> computed_once[Value] | Value:
        if instance is None:
            return self
        value = self._compute(instance)
        instance.__dict__[self._name] = value  # where it is found from now on, before this is asked
        return value
