"""A database to be damaged: made once, copied by each test."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tensordb import TensorStorage

from .programs import made

PRESETS = ("lossless", "none", "maximum", "fast")


@dataclass(frozen=True)
class Sample:
    """A database that is never changed, and what its records hold."""

    folder: Path
    tensors: dict[str, torch.Tensor]
    inline: tuple[str, ...]

    def copy(self, to: Path) -> Path:
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        return to


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder, keys = tmp_path_factory.mktemp("sample") / "db", []
    with TensorStorage(folder) as db:
        db.create_dataset("d")
        keys += [db.insert("d", made(i, 20 + i), {"i": i}) for i in range(12)]
        inline = tuple(keys)
        for preset in PRESETS:
            db.set_compression_preset(preset)
            keys += [db.insert("d", made(size, size)) for size in (9_000, 20_000)]
            keys += db.insert_many("d", made(7, 40 * 200).reshape(40, 200) * len(keys))
        tensors = {record.id: record.tensor for record in db.get_many("d", keys)}
    return Sample(folder, tensors, inline)
