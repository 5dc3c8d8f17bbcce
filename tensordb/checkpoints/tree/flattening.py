"""A nested training state as a document and leaves, and back. Pure: no files, no pickle, no code in documents.

A document is one stream of tokens (`wire`): a table of the tensors first (`objects`), then the tree, containers as
marks with the number of values that follow, other values by `values`, tensors by their number in the table. Exact
types, insertion order and the identity of tensors come back; a list or dict in two places comes back as two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tensordb.checkpoints.tree.containers import TENSOR
from tensordb.checkpoints.tree.leaves import Leaf, part_names
from tensordb.checkpoints.tree.objects import (
    Deferred,
    ObjectLoader,
    TensorObject,
    describe,
    from_plain,
    leaf_suffix,
    to_plain,
)
from tensordb.checkpoints.tree.paths import Path, name_of, unique_names
from tensordb.checkpoints.tree.reading import PRUNED, TreeReader
from tensordb.checkpoints.tree.sharing import Source, share
from tensordb.checkpoints.tree.wire import mark, pack, unpack
from tensordb.checkpoints.tree.writing import TreeWriter
from tensordb.errors import IntegrityError

__all__ = ["Flattened", "Leaf", "flatten", "tensor_paths", "unflatten", "unflatten_values"]


@dataclass(frozen=True, slots=True, eq=False)
class Flattened:
    """A tree taken apart.

    Attributes:
        document: The tree without the values of its tensors; equal trees give equal bytes.
        leaves: What has to be stored; tied and overlapping tensors once. They may alias the caller's memory.
        gathered: Whether tensors were gathered from all ranks of a process group, each of which has the tree.
    """

    document: bytes
    leaves: tuple[Leaf, ...]
    gathered: bool = False


def flatten(tree: Any) -> Flattened:
    """Take a nested state apart into a document and named tensors.

    Args:
        tree: Dicts, OrderedDicts, Counters, lists, tuples and sets of tensors, NumPy arrays and plain values.

    Raises:
        InvalidInputError: for what would not come back as what it is; the message names its path and the remedy.

    >>> [leaf.name for leaf in flatten({"model": {"layer.weight": torch.ones(2), "step": 3}}).leaves]
    ['model.layer.weight']
    """
    writer = TreeWriter()
    with torch.no_grad():
        writer.write(tree, None, 0)
        references, sources = share([tensor for parts in writer.parts for tensor in parts.tensors])
    remaining = iter(references)
    described = [describe(parts, [next(remaining) for _ in parts.tensors]) for parts in writer.parts]
    numbers: dict[TensorObject, int] = {}
    for _, token, part in writer.places:
        number = numbers.setdefault(described[part], len(numbers))
        writer.tokens[token] = mark(TENSOR, number)
    names = unique_names([(path, described[part].claimed) for path, _, part in writer.places])
    table = TreeWriter()
    table.write([to_plain(tensor) for tensor in numbers], None, 0)
    gathered = any(parts.gathered for parts in writer.parts)
    return Flattened(pack(table.tokens + writer.tokens), tuple(_leaves(writer, names, sources)), gathered)


def unflatten(
    document: bytes, tensor: Callable[[int], torch.Tensor | Deferred], *, wanted: Callable[[str], bool] | None = None
) -> Any:
    """Put a state together again.

    Args:
        document: From `flatten`.
        tensor: Gives the leaf of a number as a dense tensor that the state may keep; called once for each leaf that
            is needed, in the order of the tree. For a number that it lacks it has to raise. A `Deferred` takes the
            place of its tensor.
        wanted: Whether the tensor or value of this name is wanted; containers are not asked for, except empty ones.
            Of dicts only the entries with something wanted are kept. Lists and tuples with something wanted keep
            their length, with None for the rest; sets are kept whole. When nothing is wanted the state is None.

    Raises:
        FormatError: The document's version, or a kind of value in it, is not known to this release.
        IntegrityError: The document is damaged, or the leaves do not fit it.
    """
    tokens, objects, start = _read_table(document)
    loader = ObjectLoader(objects, tensor)
    if wanted is None:
        return _read_tree(tokens, start, lambda path, number: loader.load(_checked(number, objects)), None)
    names = iter(list(_named_objects(tokens, objects, start)))

    def place(path: Path, number: int) -> Any:
        return loader.load(number) if wanted(next(names)[0]) else PRUNED

    tree = _read_tree(tokens, start, place, lambda path: wanted(name_of(path)))
    return None if tree is PRUNED else tree


def unflatten_values(document: bytes, tensor: Callable[[int], torch.Tensor], left_out: Collection[int]) -> Any:
    """Put a state together without what needs any of the leaves `left_out`; arguments and errors as of `unflatten`.

    What is left out of a list leaves None behind; of a dict, nothing.
    """
    tokens, objects, start = _read_table(document)
    loader, without = ObjectLoader(objects, tensor), set(left_out)

    def place(path: Path, number: int) -> Any:
        needed = objects[_checked(number, objects)].leaves
        return loader.load(number) if without.isdisjoint(needed) else PRUNED

    tree = _read_tree(tokens, start, place, None)
    return None if tree is PRUNED else tree


def tensor_paths(document: bytes) -> dict[str, tuple[int, ...]]:
    """Return for the name of each tensor and array of a document the numbers of the leaves that it needs.

    Tied tensors have several names and one number, the parts of a sparse tensor one name and several numbers.

    Raises:
        FormatError: The document's version, or a kind of value in it, is not known to this release.
        IntegrityError: The document is damaged.
    """
    return {name: described.leaves for name, described in _named_objects(*_read_table(document))}


def _leaves(writer: TreeWriter, names: list[str], sources: list[Source]) -> Iterator[Leaf]:
    first_names: dict[int, str] = {}
    for (_, _, part), name in zip(writer.places, names, strict=True):
        first_names.setdefault(part, name)
    owners = [(first_names[index], part) for index, parts in enumerate(writer.parts) for part in part_names(parts.form)]
    for source in sources:
        owner, part_name = owners[source.first]
        yield Leaf(owner + leaf_suffix(part_name, source.is_span), source.tensor)


def _read_table(document: bytes) -> tuple[list[Any], list[TensorObject], int]:
    tokens = unpack(document)
    reader = TreeReader(tokens, _no_tensor)
    table = reader.read(None, 0)
    if type(table) is not list:
        raise IntegrityError("a document does not begin with the table of its tensors")
    return tokens, [from_plain(value) for value in table], reader.position


def _read_tree(
    tokens: list[Any], start: int, place: Callable[[Path, int], Any], keep: Callable[[Path], bool] | None
) -> Any:
    reader = TreeReader(tokens, place, keep, position=start)
    tree = reader.read(None, 0)
    if not reader.at_end:
        raise IntegrityError("a document goes on after its last value")
    return tree


def _named_objects(tokens: list[Any], objects: list[TensorObject], start: int) -> list[tuple[str, TensorObject]]:
    places: list[tuple[Path, TensorObject]] = []
    _read_tree(tokens, start, lambda path, number: places.append((path, objects[_checked(number, objects)])), None)
    names = unique_names([(path, described.claimed) for path, described in places])
    return list(zip(names, (described for _, described in places), strict=True))


def _checked(number: int, objects: list[TensorObject]) -> int:
    if number >= len(objects):
        raise IntegrityError(f"a document has {len(objects)} tensors and refers to number {number}")
    return number


def _no_tensor(path: Path, number: int) -> Any:
    raise IntegrityError("a document has a tensor within the table of its tensors")
