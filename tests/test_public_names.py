"""What the verbs give back has a name that users can import, to annotate and to match."""

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pytest

import tensordb
from tensordb import TensorStorage
from tensordb.checkpoints.accessor import Checkpoints
from tensordb.maintenance import Maintenance
from tensordb.weights.accessor import Weights


def classes_in(annotation: Any) -> Iterator[type]:
    """Yield the classes of this package that an annotation names."""
    if isinstance(annotation, type) and annotation.__module__.startswith("tensordb."):
        yield annotation
    for part in typing.get_args(annotation):
        yield from classes_in(part)


@pytest.mark.parametrize("owner", [TensorStorage, Checkpoints, Weights, Maintenance])
def test_what_every_verb_returns_can_be_imported(owner: type) -> None:
    verbs = [verb for name, verb in inspect.getmembers(owner, inspect.isfunction) if not name.startswith("_")]
    assert verbs
    returned = {
        each for verb in verbs for each in classes_in(typing.get_type_hints(verb, localns={"pa": pa}).get("return"))
    }
    assert returned <= {getattr(tensordb, name) for name in tensordb.__all__ if not _is_table(name)}


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert len(set(tensordb.__all__)) == len(tensordb.__all__)
    for name in tensordb.__all__:
        assert _is_table(name) or inspect.getdoc(getattr(tensordb, name)), name


def _is_table(name: str) -> bool:
    return isinstance(getattr(tensordb, name), Mapping)
