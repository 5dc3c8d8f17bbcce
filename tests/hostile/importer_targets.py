"""The importers of files, and what each of them promises of any file."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tensordb import TensorStorage
from tensordb.errors import AlreadyExistsError, InvalidInputError
from tensordb.integrations.safetensors import export_safetensors, import_safetensors
from tensordb.integrations.torch_files import import_torch

from . import file_changes, files_made
from .fuzzing import Target

_REFUSALS = (InvalidInputError, AlreadyExistsError)
_VERIFIED_EVERY = 50
_MOST_RECORDS = 300
_MOST_PIXELS = 1 << 22


@dataclass
class Importing:
    """A database in memory that takes files, each of which is removed again with what came of it."""

    folder: Path
    db: TensorStorage = field(default_factory=lambda: TensorStorage(None))
    count: int = 0

    def dataset(self, name: str, data: bytes, **options: Any) -> None:
        """Import a file as a dataset; its records read back."""
        path = self._written(name, data)
        self._refused_whole(lambda: self._import_dataset(path.parent if name.endswith("/") else path, options))

    def pictures(self, suffix: str, data: bytes) -> None:
        """Import a folder of one picture."""
        path = self._written(f"pictures/a/x.{suffix}", data)
        self._refused_whole(lambda: self._import_dataset(path.parents[1], {"format": "images"}))

    def torch(self, data: bytes) -> None:
        """Import a file of `torch.save`; its checkpoint reads back."""
        path = self._written("x.pt", data)
        self._refused_whole(lambda: import_torch(self.db, path, "run"))

    def safetensors(self, data: bytes) -> None:
        """Import a file of safetensors as a checkpoint; it comes out again byte for byte."""
        path, out = self._written("x.safetensors", data), self.folder / "out.safetensors"
        self._refused_whole(lambda: import_safetensors(self.db, path, "run"))
        export_safetensors(self.db, "run", out, overwrite=True)
        assert out.read_bytes() == data, "a file does not come out as it went in"

    def model_folder(self, index: bytes) -> None:
        """Import a folder of two shards and this index; it comes out again byte for byte."""
        files_made.write_shards(self.folder / "model")
        path, out = self._written("model/model.safetensors.index.json", index), self.folder / "out"
        self._refused_whole(lambda: import_safetensors(self.db, path.parent, "run"))
        for each in export_safetensors(self.db, "run", out, overwrite=True):
            assert each.read_bytes() == (path.parent / each.relative_to(out)).read_bytes(), each

    def _refused_whole(self, work: Callable[[], Any]) -> None:
        """Import, and read all that is there; look for what a refusal left behind."""
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
                report = self.db.maintenance.verify()
                assert report.ok, report
        for found in self.db.checkpoints.list():
            self.db.checkpoints.load(found)

    def _import_dataset(self, path: Path, options: dict[str, Any]) -> None:
        keys = self.db.import_from("data", path, **options)
        assert self.db.count("data") == len(keys) == len(set(keys))
        first = self.db.page("data", 0, _MOST_RECORDS).records
        for record in first:
            assert isinstance(record.tensor, torch.Tensor)
        assert [record.id for record in first] == keys[:_MOST_RECORDS]
        self.db.sql('SELECT * FROM "data" LIMIT 10')

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


def make_targets() -> list[Target]:
    """Return the importers; what they are given lies in memory where there is such a folder."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="tensordb-fuzz-", dir=place))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
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
                lambda data, suffix=suffix: importing.pictures(suffix, data),
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
