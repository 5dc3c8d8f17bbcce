"""The importers of files, and what each of them promises of any file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tensordb import TensorStorage
from tensordb.datasets.streaming import Rows
from tensordb.errors import AlreadyExistsError, InvalidInputError
from tensordb.exchange.importing import source_of
from tensordb.exchange.rows import Asked
from tensordb.integrations import torch_files
from tensordb.integrations.safetensors import export_safetensors, import_safetensors
from tensordb.tensors import byte_view, snapshot

from . import file_changes, files_made
from .fuzzing import Target

_REFUSALS = (InvalidInputError, AlreadyExistsError)
_VERIFIED_EVERY = 50
_STORED_OF = 6
_MOST_RECORDS = 300
_MOST_EMPTY = 1 << 20
_MOST_PIXELS = 1 << 22


@dataclass
class Importing:
    """A database in memory that takes files, each of which is removed again with what came of it.

    A file is read by itself first. As that is ten times as fast as to store it, only some files, which their bytes
    decide on, are imported as well: what the reader refused or gave.
    """

    folder: Path
    db: TensorStorage = field(default_factory=lambda: TensorStorage(None))
    count: int = 0

    def dataset(self, name: str, data: bytes, **options: Any) -> None:
        """Import a file, or the folder it is in, as a dataset; its records are the rows that it has."""
        path = self._written(name, data)
        source = path.parents[1] if "format" in options else path
        try:
            rows = _rows_of(source, options)
        except _TooManyError:
            return
        except _REFUSALS:
            if not _is_stored(data):
                raise
            rows = None
        if not _is_stored(data):
            return
        self._all_or_nothing(lambda: self._import_dataset(source, options, rows))

    def torch(self, data: bytes) -> None:
        """Import a file of `torch.save`; its checkpoint reads back."""
        path = self._written("x.pt", data)
        if not _is_stored(data):
            torch_files._roles(torch_files._read(path))
            return
        self._all_or_nothing(lambda: self._import_checkpoint(torch_files.import_torch, path))

    def safetensors(self, data: bytes) -> None:
        """Import a file of safetensors as a checkpoint; it comes out again byte for byte."""
        path, out = self._written("x.safetensors", data), self.folder / "out.safetensors"
        self._all_or_nothing(lambda: self._import_checkpoint(import_safetensors, path))
        export_safetensors(self.db, "run", out, overwrite=True)
        assert out.read_bytes() == data, "a file does not come out as it went in"

    def model_folder(self, index: bytes) -> None:
        """Import a folder of two shards and this index; it comes out again byte for byte."""
        files_made.write_shards(self.folder / "model")
        path, out = self._written("model/model.safetensors.index.json", index), self.folder / "out"
        self._all_or_nothing(lambda: self._import_checkpoint(import_safetensors, path.parent))
        for each in export_safetensors(self.db, "run", out, overwrite=True):
            assert each.read_bytes() == (path.parent / each.relative_to(out)).read_bytes(), each

    def _all_or_nothing(self, work: Callable[[], Any]) -> None:
        """Import; look for what a refusal left behind, and now and then at every byte that is stored."""
        self._empty()
        try:
            work()
        except _REFUSALS:
            assert not self.db.list_datasets(), "a refused file left a dataset behind"
            assert not self.db.checkpoints.list(), "a refused file left a checkpoint behind"
            raise
        finally:
            self.count += 1
            if self.count % _VERIFIED_EVERY == 0:
                assert self.db.maintenance.verify().ok

    def _import_dataset(self, path: Path, options: dict[str, Any], rows: list[bytes] | None) -> None:
        keys = self.db.import_from("data", path, **options)
        assert rows is not None, "what could not be read was imported"
        assert len(rows) == len(keys) == len(set(keys)) == self.db.count("data")
        stored = [_bytes_of(record.tensor) for record in self.db.get_many("data", keys[:_MOST_RECORDS])]
        assert stored == rows[:_MOST_RECORDS], "the records are not the rows of the file"

    def _import_checkpoint(self, read: Callable[..., Any], path: Path) -> None:
        self.db.checkpoints.load(read(self.db, path, "run"))

    def _empty(self) -> None:
        for name in self.db.list_datasets():
            self.db.delete_dataset(name)
        for found in self.db.checkpoints.list():
            self.db.checkpoints.delete(found)

    def _written(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a file that is mapped is not cut short
        path.write_bytes(data)
        return path


def _is_stored(data: bytes) -> bool:
    return zlib.crc32(data) % _STORED_OF == 0


def _rows_of(path: Path, options: dict[str, Any]) -> list[bytes]:
    """Return the bytes of the tensors that a file gives."""
    rows: list[bytes] = []
    for each in source_of(path, Asked(), options.get("format")).rows:
        if isinstance(each, Rows):
            assert len(each.stack) <= max(each.stack.nbytes, _MOST_EMPTY), "rows without end, on a number's word alone"
            assert each.metadata is None or len(each.metadata) == len(each.stack)
        tensors = each.stack[: _MOST_RECORDS + 1].unbind() if isinstance(each, Rows) else [each.tensor]
        rows += [_bytes_of(tensor) for tensor in tensors]
        if len(rows) > _MOST_RECORDS:
            raise _TooManyError
    return rows


class _TooManyError(Exception):
    """There are more records than are compared, or imported by thousands in a test."""


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return byte_view(snapshot(tensor)).tobytes()


def make_targets() -> list[Target]:
    """Return the importers; what they are given lies below TMPDIR, and stays: a fuzzer ends without cleaning up."""
    folder = Path(tempfile.mkdtemp(prefix="tensordb-fuzz-"))
    (folder / "pictures" / "a").mkdir(parents=True)
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    importing = Importing(folder)
    targets = [
        Target(
            f"dataset-{name}",
            lambda data, name=name: importing.dataset(f"x.{name}", data),
            _REFUSALS,
            getattr(files_made, name)(),
            getattr(file_changes, name),
        )
        for name in ("npy", "npz", "safetensors", "parquet", "arrow")
    ]
    for suffix, seeds in files_made.pictures().items():
        changes = getattr(file_changes, suffix, file_changes.plain)
        targets.append(
            Target(
                f"picture-{suffix}",
                lambda data, suffix=suffix: importing.dataset(f"pictures/a/x.{suffix}", data, format="images"),
                _REFUSALS,
                seeds,
                changes,
            )
        )
    return [
        *targets,
        Target("torch", importing.torch, _REFUSALS, files_made.torch_files(), file_changes.torch_file),
        Target("model", importing.safetensors, _REFUSALS, files_made.safetensors(), file_changes.safetensors),
        Target("folder", importing.model_folder, _REFUSALS, files_made.shard_indexes(), file_changes.json_text),
    ]
