"""Models in safetensors files: into a database and out of it again, byte for byte.

A file becomes a checkpoint whose ``"model"`` has its tensors, and whose ``"state"`` has what a file holds beside them
(the header, byte for byte). A folder, such as one of Hugging Face, becomes one checkpoint too: ``"model"`` has the
tensors of ``model.safetensors`` or of the shards in its index, ``"state"`` has all other files.

Tensors are read from the file while they are stored, and written to it one at a time, so that neither way needs the
memory for a whole model. Equal tensors are stored once over all files, models and runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensordb.checkpoints.checkpoint import Checkpoint
from tensordb.checkpoints.history import Mode
from tensordb.encoding.presets import CompressionConfig
from tensordb.errors import FormatError, IntegrityError, InvalidInputError
from tensordb.exchange.publishing import Publication, publication
from tensordb.exchange.safetensors_header import Header, SafetensorsFile, map_bytes, parse
from tensordb.integrations.model_folders import SUFFIX, ModelFolder, read_folder
from tensordb.integrations.module_files import module_files, read_now, write_files
from tensordb.model import TensorSpec
from tensordb.storage import TensorStorage
from tensordb.tensors import byte_view, snapshot, view_of

_RECORD = "safetensors"
_VERSION = 1


def import_safetensors(
    db: TensorStorage,
    source: str | os.PathLike[str],
    run: str,
    *,
    step: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    preset: str | CompressionConfig | Mapping[str, str | CompressionConfig] | None = None,
) -> Checkpoint:
    """Save a safetensors file, or a folder with all that is in it, as a checkpoint.

    Args:
        db: The database.
        source: The file or the folder.
        run: Name of the run, made when it is new.
        step: As for `db.checkpoints.save`.
        metadata: JSON-like values by name.
        preset: As for `db.checkpoints.save`. What `export_safetensors` writes is the same byte for byte where it is
            lossless, as the default is.

    Returns:
        The checkpoint: ``db.checkpoints.load(run)["model"]`` has the tensors by their names in the files. Elements of
        4 and 6 bits, for which torch has no dtype of their own, are there as flat uint8.

    Raises:
        InvalidInputError: A file is damaged, cannot be read, or is a link out of the folder; the message names it.

    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder, TensorStorage(None) as db:
    ...     save_file({"weight": torch.ones(2)}, f"{folder}/model.safetensors")
    ...     checkpoint = import_safetensors(db, f"{folder}/model.safetensors", "mine")
    ...     db.checkpoints.load("mine")["model"]
    {'weight': tensor([1., 1.])}
    """
    path = Path(source)
    contents = _read_tree(path) if path.is_dir() else _read_file(path)
    return db.checkpoints.save(
        run, contents.model, state={_RECORD: contents.record()}, step=step, metadata=metadata, preset=preset, rng=False
    )


def export_safetensors(
    db: TensorStorage,
    run_or_id: str | Checkpoint,
    target: str | os.PathLike[str],
    *,
    step: int | None = None,
    which: str = "latest",
    metric: str | None = None,
    mode: Mode = "min",
    max_shard_size: int | str | None = None,
    optimizer: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write a checkpoint's model to safetensors files, for anybody to read without tensordb.

    What was imported comes out as it went in: a file at `target`, or a folder. The model of a checkpoint saved by
    `db.checkpoints.save` becomes one file that `safetensors.torch.load_file` and `load_model` read; of tied
    tensors one is written, as safetensors' own `save_model` does.

    Args:
        db: The database.
        run_or_id: A run, a checkpoint id, or a `Checkpoint`.
        target: The file. For a path without the suffix ``.safetensors`` the folder, in which a model is
            ``model.safetensors``.
        step: The newest checkpoint of this step.
        which: ``"latest"``, ``"best"``, or a tag.
        metric: For ``"best"``, likewise `mode`, as for ``db.checkpoints.load``.
        mode: Whether the smallest or the largest is best.
        max_shard_size: Bytes of tensors in a file, as a number or text such as ``"5GB"``; a model with more is
            written to shards ``model-00001-of-00002.safetensors`` … and an index, as Hugging Face does. None for one
            file.
        optimizer: Write the optimizer's state too, to ``model.optimizer.safetensors``: tensors by their path, such as
            ``"state.0.exp_avg"``, all other values as JSON by their path in the file's metadata.
        overwrite: Replace files that are there.

    Returns:
        The files written; each appeared under its name once all of them were whole and on the disk.

    Raises:
        AlreadyExistsError: A file is there; nothing was written.
        CheckpointNotFoundError: There is no such checkpoint.
        InvalidInputError: The model has something that safetensors cannot hold; the message has its name.
        IntegrityError: Stored bytes are damaged; nothing was written.
    """
    found = db.checkpoints.get(run_or_id, step=step, which=which, metric=metric, mode=mode)
    tree = db.checkpoints.load(
        found, keys=["model", "optimizer", "state"] if optimizer else ["model", "state"], lazy=True
    )
    state = (tree or {}).get("state")
    record = state.get(_RECORD) if isinstance(state, Mapping) else None
    path = Path(target)
    if isinstance(record, Mapping) and "headers" in record:
        if max_shard_size is not None or optimizer:
            raise InvalidInputError(
                "this checkpoint is written as it was imported; leave max_shard_size and optimizer out"
            )
        return _write_imported(_Contents.of(record, tree.get("model") or {}), path, overwrite)
    files = module_files(tree or {}, path, max_shard_size, optimizer)
    return write_files(files, path, overwrite)


@dataclass(frozen=True, slots=True)
class _Contents:
    """A file or folder taken apart.

    Attributes:
        folder: Whether it is a folder; a file is the only one, by its name.
        model: The tensors of the model by name.
        headers: The bytes before the tensors, of each file that holds some.
        beside: Tensors of such files that `model` has no place for, by file and name.
        files: All other files, as bytes.
        empty: Folders that hold nothing.
    """

    folder: bool
    model: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, bytes] = field(default_factory=dict)
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    empty: Sequence[str] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any], model: dict[str, Any]) -> _Contents:
        """Return what a checkpoint holds."""
        if record.get("version") != _VERSION:
            raise FormatError(f"an import of version {record.get('version')!r}; this release knows {_VERSION}")
        parts = {key: record.get(key, {}) for key in ("headers", "beside", "files")}
        return cls(bool(record["folder"]), model, **parts, empty=record.get("empty", ()))

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the model."""
        parts = {"headers": self.headers, "beside": self.beside, "files": self.files, "empty": list(self.empty)}
        return {"version": _VERSION, "folder": self.folder} | {key: part for key, part in parts.items() if part}

    def add(self, name: str, file: SafetensorsFile, model: Mapping[str, str] | None) -> None:
        """Take a file's tensors apart; `model` says which are the model's: None for none, {} for all."""
        self.headers[name] = file.header.raw
        for entry in file.header.entries:
            mine = model is not None and (not model or entry.name in model) and entry.name not in self.model
            place = self.model if mine else self.beside.setdefault(name, {})
            place[entry.name] = file.tensor(entry)

    def tensor(self, file: str, name: str) -> Any:
        """Return a tensor of a file."""
        found = self.beside.get(file, {}).get(name)
        found = self.model.get(name) if found is None else found
        if found is None:
            raise IntegrityError(f"the checkpoint lacks {name!r} of {file}, which it was imported with")
        return found


def _read_file(path: Path) -> _Contents:
    contents = _Contents(folder=False)
    contents.add(path.name, SafetensorsFile(path), {})
    return contents


def _read_tree(path: Path) -> _Contents:
    found: ModelFolder = read_folder(path)
    if not found.tensor_files:
        raise InvalidInputError(f"{path} has no file that ends in {SUFFIX}; give the folder of a model, or a file")
    contents = _Contents(folder=True, empty=found.empty)
    model = found.model_files()
    for name in [*model, *(each for each in found.tensor_files if each not in model)]:
        contents.add(name, SafetensorsFile(found.files[name]), model.get(name))
    for name, file in found.files.items():
        if name not in contents.headers:
            data = map_bytes(file)
            contents.files[name] = view_of(data, TensorSpec("uint8", (data.nbytes,)))
    return contents


def _write_imported(contents: _Contents, target: Path, overwrite: bool) -> list[Path]:
    if not contents.folder:
        ((name, raw),) = contents.headers.items()
        folder, name_there = (target, name) if target.is_dir() else (target.parent, target.name)
        with publication(folder, [name_there], overwrite=overwrite) as files:
            _write_tensors(files, name_there, raw, contents, name)
        return [folder / name_there]
    names = [*contents.headers, *contents.files]
    with publication(target, names, overwrite=overwrite) as files:
        for name, raw in contents.headers.items():
            _write_tensors(files, name, raw, contents, name)
        for name, data in contents.files.items():
            with files.file(name) as file:
                file.write(byte_view(snapshot(read_now(data))).data)
        for name in contents.empty:
            files.make_folder(name)
    return sorted(target / name for name in names)


def _write_tensors(files: Publication, name: str, raw: bytes, contents: _Contents, imported: str) -> None:
    header: Header = parse(raw, None, name)
    with files.file(name) as file:
        file.write(raw)
        for entry in header.entries:
            data = byte_view(snapshot(read_now(contents.tensor(imported, entry.name))))
            if data.nbytes != entry.end - entry.begin:
                raise IntegrityError(f"{entry.name!r} has {data.nbytes:,} bytes, not those of the header of {imported}")
            file.write(data.data)
