"""The competitors of `loading.py`: each writes a stack of tensors once, and yields shuffled batches of it.

A batch is a tensor of its own, ``[batch, …]``. Each competitor feeds in the fastest way that its documentation shows;
`shuffle` says what it shuffles, which is not the same for all.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

FILE_ROWS = 4096


class Feeder(ABC):
    """A store that feeds.

    Attributes:
        name: Column title.
        package: Importable package that it needs.
        shuffle: What is shuffled.
        on_disk: Whether it reads from a disk.
        with_workers: Whether a `DataLoader` can spread its work over processes.
        like: Another one that writes the same files, which are then written once.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    shuffle: ClassVar[str] = "records"
    on_disk: ClassVar[bool] = True
    with_workers: ClassVar[bool] = True
    like: ClassVar[str | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec: tuple[int, ...] = ()

    @abstractmethod
    def write(self, stack: Tensor) -> None:
        """Store the records."""

    @classmethod
    def load(cls) -> None:
        """Load the libraries."""
        importlib.import_module(cls.package)

    def open(self, spec: Sequence[int], count: int) -> None:
        """Open what was written before, in this process or another, of so many records of this shape."""
        self.spec = tuple(spec)

    @abstractmethod
    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Return a loader of one shuffled epoch."""

    def close(self) -> None:
        """Release everything."""
        return


class InMemory(Feeder):
    """The bound: rows of one tensor in memory, a batch by one index."""

    name = "memory"
    package = "torch"
    on_disk = False

    def write(self, stack: Tensor) -> None:
        """Keep it."""
        self._data = _Stack(stack)

    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Index it."""
        return _loader(self._data, batch, workers, seed)


class TensorDB(Feeder):
    """A stream of batches."""

    name = "tensordb"
    package = "tensordb"
    shuffle = "pages, and records within 32 MB"
    preset: ClassVar[str] = "lossless"
    mode: ClassVar[Any] = True

    def write(self, stack: Tensor) -> None:
        """Insert it in ten commits, with fields that pick a tenth: scattered, and together."""
        from tensordb import TensorStorage

        with TensorStorage(self.path, compression_preset=self.preset) as db:
            db.create_dataset("data")
            part = max(1, len(stack) // 10)
            for start in range(0, len(stack), part):
                rows = stack[start : start + part]
                numbers = range(start, start + len(rows))
                db.insert_many("data", rows, [{"tenth": n % 10, "part": n * 10 // len(stack)} for n in numbers])

    @classmethod
    def load(cls) -> None:
        """Load DuckDB and Arrow, too, which it does only when they are needed."""
        for name in ("duckdb", "pyarrow", "tensordb.storage"):
            importlib.import_module(name)

    def open(self, spec: Sequence[int], count: int) -> None:
        """Take the snapshots."""
        from tensordb import TensorStorage

        self._db = TensorStorage(self.path, read_only=True)
        self.data = self._db.dataset("data")
        self.tenth = self._db.dataset("data", "metadata.tenth = 3")
        self.part = self._db.dataset("data", "metadata.part = 3")

    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Stream it; without workers there is no need of a loader."""
        stream = self.data.stream(shuffle=self.mode, seed=seed, batch_size=batch)
        return DataLoader(stream, batch_size=None, num_workers=workers) if workers else stream

    def close(self) -> None:
        """Close the database."""
        self._db.close()


class _Batches:
    """Whole batches are shuffled, as Lance does it."""

    shuffle = "batches of adjacent records"
    mode = "batches"


class TensorDBBatches(_Batches, TensorDB):
    """The same in shuffled batches."""

    name = "tensordb batches"
    like = "tensordb"


class TensorDBRaw(TensorDB):
    """The preset without compression: as many bytes as Lance has for floats."""

    name = "tensordb none"
    preset = "none"


class TensorDBRawBatches(_Batches, TensorDBRaw):
    """That in shuffled batches."""

    name = "tensordb none batches"
    like = "tensordb none"


class LanceRows(Feeder):
    """Rows taken by number, as its documentation has it for random access; its `SafeLanceDataset` gives lists."""

    name = "lance take"
    package = "lance"

    def write(self, stack: Tensor) -> None:
        """Write a column of lists of fixed size."""
        import lance
        import pyarrow as pa

        flat = stack.reshape(len(stack), -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1).numpy()), flat.shape[1])
        table = pa.table({"tensor": column})
        lance.write_dataset(table, str(self.path))

    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Take the rows of each batch."""
        context = "spawn" if workers else None  # its threads do not survive a fork
        return _loader(_LanceTake(str(self.path), self.spec), batch, workers, seed, context)


class LanceBatches(LanceRows):
    """`lance.torch.data.LanceDataset`, whose sampler puts batches of adjacent rows into a random order."""

    name = "lance"
    shuffle = "batches of adjacent records"
    like = "lance take"
    with_workers = False  # its sampler gives every worker all batches

    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Scan batches in random order."""
        from lance.torch.data import LanceDataset, ShardedBatchSampler

        sampler = ShardedBatchSampler(0, 1, randomize=True, seed=seed)
        data = LanceDataset(str(self.path), batch, sampler=sampler)
        return (each.reshape(-1, *self.spec) for each in data)


class HuggingFace(Feeder):
    """`datasets` in torch format."""

    name = "hf datasets"
    package = "datasets"

    def write(self, stack: Tensor) -> None:
        """Save a table of lists of fixed size."""
        import datasets
        import pyarrow as pa

        flat = stack.reshape(len(stack), -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1).numpy()), flat.shape[1])
        datasets.disable_progress_bars()
        datasets.Dataset(pa.table({"tensor": column})).save_to_disk(str(self.path))

    def open(self, spec: Sequence[int], count: int) -> None:
        """Map the table."""
        import datasets

        super().open(spec, count)
        self._data = datasets.load_from_disk(str(self.path)).with_format("torch")

    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Index it, a batch at a time."""
        return _loader(_HuggingFaceRows(self._data, self.spec), batch, workers, seed)


class LitData(Feeder):
    """Its streaming dataset over optimized chunks."""

    name = "litdata"
    package = "litdata"
    shuffle = "chunks, and records within one"

    def write(self, stack: Tensor) -> None:
        """Write chunks of 16 MB."""
        from litdata.streaming.writer import BinaryWriter

        self.path.mkdir(parents=True)
        writer = BinaryWriter(str(self.path), chunk_bytes="16MB")
        for number, row in enumerate(stack):
            writer.add_item(number, row.clone())
        writer.done()
        writer.merge(1)

    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Stream them."""
        from litdata import StreamingDataLoader, StreamingDataset

        data = StreamingDataset(str(self.path), shuffle=True, seed=seed)
        return StreamingDataLoader(data, batch_size=batch, num_workers=workers)


class Safetensors(Feeder):
    """Files of some thousand rows each, rows read from the maps by `get_slice`."""

    name = "safetensors"
    package = "safetensors"

    def write(self, stack: Tensor) -> None:
        """Write files of up to 64 MB."""
        from safetensors.torch import save_file

        self.path.mkdir(parents=True)
        rows = max(1, min(FILE_ROWS, (64 << 20) // stack[0].nbytes))
        for number, start in enumerate(range(0, len(stack), rows)):
            save_file({"rows": stack[start : start + rows].contiguous()}, self.path / f"{number:05d}.safetensors")

    def open(self, spec: Sequence[int], count: int) -> None:
        """See how many rows a file has."""
        from safetensors import safe_open

        super().open(spec, count)
        with safe_open(self.path / "00000.safetensors", "pt") as file:
            self._rows, self._count = file.get_slice("rows").get_shape()[0], count

    def epoch(self, batch: int, workers: int, seed: int) -> Iterable[Tensor]:
        """Read rows one by one."""
        return _loader(_SafetensorsRows(self.path, self._rows, self._count), batch, workers, seed)


FEEDERS: tuple[type[Feeder], ...] = (
    TensorDB,
    TensorDBBatches,
    TensorDBRaw,
    TensorDBRawBatches,
    InMemory,
    LanceRows,
    LanceBatches,
    LitData,
    HuggingFace,
    Safetensors,
)


def installed_feeders(names: Sequence[str]) -> list[type[Feeder]]:
    """Return the competitors of these names whose packages are installed."""
    return [each for each in FEEDERS if each.name in names and importlib.util.find_spec(each.package)]


def _loader(data: Dataset[Any], batch: int, workers: int, seed: int, context: str | None = None) -> DataLoader[Any]:
    order = torch.Generator().manual_seed(seed)
    return DataLoader(
        data,
        batch_size=batch,
        shuffle=True,
        generator=order,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context=context,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


class _Stack(Dataset[Tensor]):
    def __init__(self, stack: Tensor) -> None:
        self._stack = stack

    def __len__(self) -> int:
        return len(self._stack)

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self._stack[torch.tensor(indices)]


class _LanceTake(Dataset[Tensor]):
    def __init__(self, path: str, spec: tuple[int, ...]) -> None:
        import lance

        self._path, self._spec = path, spec
        self._count = lance.dataset(path).count_rows()
        self._data: Any = None

    def __len__(self) -> int:
        return int(self._count)

    def __getitems__(self, indices: list[int]) -> Tensor:
        import lance
        from lance.torch.data import _to_tensor

        if self._data is None:
            self._data = lance.dataset(self._path)
        batch = self._data.take(indices, columns=["tensor"]).combine_chunks().to_batches()[0]
        return _to_tensor(batch).reshape(-1, *self._spec)


class _HuggingFaceRows(Dataset[Tensor]):
    def __init__(self, data: Any, spec: tuple[int, ...]) -> None:
        self._data, self._spec = data, spec

    def __len__(self) -> int:
        return len(self._data)

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self._data[indices]["tensor"].reshape(-1, *self._spec)


class _SafetensorsRows(Dataset[Tensor]):
    def __init__(self, path: Path, rows: int, count: int) -> None:
        self._path, self._rows, self._count = path, rows, count
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.stack([self._row(index) for index in indices])

    def _row(self, index: int) -> Tensor:
        from safetensors import safe_open

        number, row = divmod(index, self._rows)
        if number not in self._open:
            file = safe_open(self._path / f"{number:05d}.safetensors", "pt")
            self._open[number] = file.__enter__().get_slice("rows")
        return self._open[number][row]
