"""A checkpoint's model, or its optimizer's state, as safetensors files: which tensors go where, and writing them.

Invariants: a tensor's memory is written once, under the name that safetensors' own `save_model` picks; tensors are
read one at a time; what safetensors cannot hold is refused by its name before a file appears.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tensordb.checkpoints.lazy import LazyTensor
from tensordb.errors import InvalidInputError
from tensordb.exchange.publishing import publication
from tensordb.exchange.safetensors_header import Header, build
from tensordb.integrations.model_folders import INDEX_SUFFIX, SUFFIX, shard_names
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view, dtype_name, nbytes_of, snapshot

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_PLAIN = (str, int, float, bool, type(None))
_FORMAT = {"format": "pt"}  # transformers reads no file without it


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written: a header and its tensors, or other bytes."""

    name: str
    header: Header | None
    tensors: Mapping[str, Any]
    data: bytes = b""


def module_files(
    tree: Mapping[str, Any], target: Path, max_shard_size: int | str | None, optimizer: bool
) -> list[NewFile]:
    """Return the files of a checkpoint's model, those that others refer to first.

    Raises:
        InvalidInputError: The checkpoint has no model, or one that safetensors cannot hold.
    """
    if "model" not in tree or (optimizer and "optimizer" not in tree):
        lacking = "optimizer" if "model" in tree else "model"
        raise InvalidInputError(f"the checkpoint has no {lacking} to export (it has: {', '.join(tree) or 'nothing'})")
    limit = _nbytes(max_shard_size)
    stem = target.name.removesuffix(SUFFIX) if target.name.endswith(SUFFIX) else "model"
    files = _model_files(tree["model"], stem, limit)
    if optimizer:
        tensors, values = _flat(tree["optimizer"], "optimizer")
        texts = _FORMAT | {name: json.dumps(value) for name, value in values.items()}
        files.append(NewFile(f"{stem}.optimizer{SUFFIX}", build(_specs(tensors), texts), tensors))
    return files


def write_files(files: Sequence[NewFile], target: Path, overwrite: bool) -> list[Path]:
    """Write these files beside `target`, or in it where it is a folder."""
    folder = target.parent if target.name.endswith(SUFFIX) else target
    names = [each.name for each in files]
    with publication(folder, names, overwrite=overwrite) as new:
        for each in files:
            with new.file(each.name) as file:
                write_tensors(file, each)
    return [folder / name for name in names]


def write_tensors(file: BinaryIO, new: NewFile) -> None:
    """Write what a file is to hold."""
    file.write(new.header.raw if new.header else new.data)
    for entry in new.header.entries if new.header else ():
        file.write(byte_view(snapshot(read_now(new.tensors[entry.name]))).data)


def model_file(model: Any, name: str) -> NewFile:
    """Return the one file of a model, in which tied tensors have all their names: so none is missing to a reader."""
    tensors = _only_tensors(model)
    return NewFile(name, build(_specs(tensors), _FORMAT), tensors)


def read_now(tensor: Any) -> torch.Tensor:
    """Return a tensor that was left to be read when it is needed."""
    return tensor.load() if isinstance(tensor, LazyTensor) else tensor


def _model_files(model: Any, stem: str, limit: int | None) -> list[NewFile]:
    tensors = _only_tensors(model)
    dropped = _shared(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    specs = _specs(kept)
    texts = _FORMAT | dropped
    shards = list(_shards(specs, limit))
    names = shard_names(stem, len(shards))
    files = [
        NewFile(name, build({key: specs[key] for key in shard}, texts), kept)
        for name, shard in zip(names, shards, strict=True)
    ]
    if len(files) > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(map(nbytes_of, specs.values()))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        files.append(NewFile(f"{stem}{INDEX_SUFFIX}", None, {}, text.encode("utf-8")))
    return files


def _only_tensors(model: Any) -> dict[str, Any]:
    tensors, values = _flat(model, "model")
    if values:
        name, value = next(iter(values.items()))
        raise InvalidInputError(
            f"model.{name} is a {type(value).__name__}, and a safetensors file holds tensors alone; save such values "
            "as state=, or write the tensors that you need with safetensors.torch.save_file"
        )
    return tensors


def _flat(state: Any, role: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors of a state by their dotted paths, and its other values, empty containers among them."""
    tensors: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, value in _paths(state, ()):
        if name in tensors or name in values:
            raise InvalidInputError(f"{role} has two values called {name!r} once its keys are joined; rename one")
        if isinstance(value, torch.Tensor | LazyTensor):
            tensors[name] = value
        elif isinstance(value, _PLAIN) or (isinstance(value, Mapping | list | tuple) and not value):
            values[name] = value
        else:
            raise InvalidInputError(f"{role}.{name} is a {type(value).__name__}, which safetensors cannot hold")
    return tensors, values


def _paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, each in value.items():
            yield from _paths(each, (*path, str(key)))
    elif isinstance(value, list | tuple) and value:
        for key, each in enumerate(value):
            yield from _paths(each, (*path, str(key)))
    else:
        yield ".".join(path), value


def _shared(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that are not written, each with the name whose memory it is or lies in."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[_memory(tensor)].append(name)
    dropped: dict[str, str] = {}
    for names in groups.values():
        whole = [name for name in names if _is_whole(tensors[name])]
        if len(names) > 1 and whole:
            dropped |= {name: min(whole) for name in names if name != min(whole)}
    return dropped


def _memory(tensor: Any) -> Any:
    if isinstance(tensor, LazyTensor) or tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.untyped_storage().data_ptr()


def _is_whole(tensor: Any) -> bool:
    if isinstance(tensor, LazyTensor) or tensor.layout != torch.strided:
        return True
    return bool(tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes())


def _specs(tensors: Mapping[str, Any]) -> dict[str, TensorSpec]:
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.layout != torch.strided:
            raise InvalidInputError(f"{name!r} is sparse, which safetensors cannot hold; save tensor.to_dense()")
    return {name: TensorSpec(dtype_name(each.dtype), tuple(each.shape)) for name, each in tensors.items()}


def _shards(specs: Mapping[str, TensorSpec], limit: int | None) -> Iterator[list[str]]:
    shard: list[str] = []
    total = 0
    for name, spec in specs.items():
        nbytes = nbytes_of(spec)
        if shard and limit is not None and total + nbytes > limit:
            yield shard
            shard, total = [], 0
        shard.append(name)
        total += nbytes
    yield shard


def _nbytes(size: int | str | None) -> int | None:
    if size is None:
        return None
    found = (
        re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)(I?)B?", size.strip().upper()) if isinstance(size, str) else None
    )
    nbytes = int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]]) if found else size
    if isinstance(nbytes, bool) or not isinstance(nbytes, int) or nbytes < 1:
        raise InvalidInputError(f"max_shard_size is {size!r}; give bytes from 1, or text such as '5GB' or '500MiB'")
    return nbytes
