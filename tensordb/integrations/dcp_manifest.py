"""What torch.distributed.checkpoint knows of a checkpoint, as plain data: no pickle is written, and none is read.

A manifest says of each item its place in the state, and of each tensor its dtype, size, and which leaf of the
checkpoint holds which chunk. Values that are no tensors are in the checkpoint's own document, at their places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tensordb.checkpoints.tree import unflatten
from tensordb.checkpoints.tree.containers import MAX_DEPTH
from tensordb.checkpoints.tree.shards import Sharded
from tensordb.errors import FormatError, IntegrityError
from tensordb.tensors import dtype_from_name, dtype_name

_KIND, _VERSION = "torch.distributed.checkpoint", 1
_MOST_HOLES = 1000
"""Numbers that a list of the state may lack beside as many as it has."""


def manifest_of(metadata: Metadata, leaf_of: Callable[[MetadataIndex], int | None]) -> dict[str, Any]:
    """Return the plain form of `metadata`; `leaf_of` says which leaf holds a chunk, None for one without values."""
    return {
        "kind": _KIND,
        "version": _VERSION,
        "planner_data": metadata.planner_data,
        "items": {name: _entry(name, item, leaf_of) for name, item in metadata.state_dict_metadata.items()},
    }


def metadata_of(note: bytes) -> Metadata:
    """Return what a manifest says, with the leaf of each chunk as ``storage_data``.

    Raises:
        FormatError: It is of another kind, or of a version that this release does not know.
        IntegrityError: It is damaged.
    """
    manifest = unflatten(note, _no_tensor)
    if not isinstance(manifest, dict) or (manifest.get("kind"), manifest.get("version")) != (_KIND, _VERSION):
        raise FormatError(
            f"the checkpoint has no manifest that this release reads ({_KIND} version {_VERSION}); load it with "
            "db.checkpoints.load"
        )
    leaves: dict[MetadataIndex, int] = {}
    try:
        items = {name: _item(name, entry, leaves) for name, entry in manifest["items"].items()}
        planner_data = manifest["planner_data"]
        "".join(items).encode("utf-8")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise IntegrityError(f"the manifest of the checkpoint is damaged: {error!r:.500}") from error
    return Metadata(items, planner_data=planner_data, storage_data=leaves)


def state_of(metadata: Metadata, value_of: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Return the state that was saved, nested as it was where the planner says how.

    Args:
        metadata: With the planner's data, in the usual form a path for each item.
        value_of: Gives what stands in the place of an item.
    """
    paths = paths_of(metadata)
    state = _Node()
    for name, item in metadata.state_dict_metadata.items():
        _set(state, paths[name], value_of(name, item))
    plain: dict[str, Any] = _plain(state)
    return plain


def paths_of(metadata: Metadata) -> dict[str, tuple[Any, ...]]:
    """Return the place of each item in the state: as the planner says for all of them, or by its name alone."""
    known, names = metadata.planner_data, metadata.state_dict_metadata
    if isinstance(known, Mapping) and all(_is_path(known.get(name)) for name in names):
        paths = {name: tuple(known[name]) for name in names}
        inner = {path[:length] for path in paths.values() for length in range(1, len(path))}
        if len(set(paths.values())) == len(paths) and not inner & set(paths.values()):
            return paths
    return {name: (name,) for name in names}


def stand_in(item: TensorStorageMetadata, part_of: Callable[[ChunkStorageMetadata], torch.Tensor | None]) -> Any:
    """Return what stands for a tensor in the state: a tensor for one in one piece, else `Sharded`.

    Args:
        item: The tensor.
        part_of: Gives what stands for a chunk, None for one without values.
    """
    parts = [(chunk, part) for chunk in item.chunks if (part := part_of(chunk)) is not None]
    if len(parts) == 1 and parts[0][0].sizes == item.size:
        return parts[0][1]
    if not parts:
        return torch.empty(item.size, dtype=item.properties.dtype)
    boxes = tuple((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk, _ in parts)
    return Sharded(tuple(item.size), boxes, tuple(part for _, part in parts))


def _entry(name: str, item: Any, leaf_of: Callable[[MetadataIndex], int | None]) -> Any:
    if isinstance(item, BytesStorageMetadata):
        return None
    chunks = [
        (tuple(chunk.offsets), tuple(chunk.sizes), leaf_of(MetadataIndex(name, chunk.offsets))) for chunk in item.chunks
    ]
    return (dtype_name(item.properties.dtype), item.properties.requires_grad, tuple(item.size), chunks)


def _item(name: str, entry: Any, leaves: dict[MetadataIndex, int]) -> Any:
    if entry is None:
        return BytesStorageMetadata()
    dtype, requires_grad, size, given = entry
    _check_sizes(size)
    chunks = []
    for offsets, sizes, leaf in given:
        _check_sizes(offsets, len(size))
        _check_sizes(sizes, len(size))
        if leaf is not None and (type(leaf) is not int or leaf < 0):
            raise ValueError(f"{name} has a chunk in the leaf {leaf!r:.100}")
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        if leaf is not None:
            leaves[MetadataIndex(name, offsets)] = leaf
    properties = TensorProperties(dtype=dtype_from_name(dtype), requires_grad=requires_grad)
    return TensorStorageMetadata(properties, torch.Size(size), chunks)


def _check_sizes(value: Any, rank: int | None = None) -> None:
    if type(value) is not tuple or not all(type(each) is int and 0 <= each < 1 << 62 for each in value):
        raise ValueError(f"{value!r:.100} are no sizes")
    if rank is not None and len(value) != rank:
        raise ValueError(f"{value!r:.100} are not {rank} sizes")


def _is_path(path: Any) -> bool:
    if not isinstance(path, tuple | list) or not 0 < len(path) <= MAX_DEPTH or not isinstance(path[0], str):
        return False
    return all(type(key) in (str, int) for key in path)


class _Node(dict[Any, Any]):
    """A container of the state; its keys are numbers where it was a list."""


def _set(state: _Node, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        state = state.setdefault(key, _Node())
    state[path[-1]] = value


def _plain(state: Any) -> Any:
    if type(state) is not _Node:
        return state
    if _is_list(state):
        return [_plain(state.get(index)) for index in range(max(state) + 1)]
    return {key: _plain(value) for key, value in state.items()}


def _is_list(state: _Node) -> bool:
    """Tell whether the keys are the numbers of a list; a list is not made as long as a number merely says."""
    numbers = bool(state) and all(type(key) is int for key in state)
    return numbers and min(state) >= 0 and max(state) <= 2 * len(state) + _MOST_HOLES


def _no_tensor(number: int) -> torch.Tensor:
    raise IntegrityError("a manifest refers to a tensor")
