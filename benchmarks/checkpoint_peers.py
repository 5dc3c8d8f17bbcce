"""Ways to keep the checkpoints of a training run, each behind the same few methods.

Terms: `save` returns once the checkpoint would survive a power cut (files and their folder synced); `load` returns the
whole state in memory of its own, bit for bit. The threads of a peer are set to all cores where it has any.
A competitor is a subclass of `CheckpointStore` named in `PEERS`; those of tensordb are in `tensordb_stores`.
"""

from __future__ import annotations

import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from measure import folder_bytes
from state_tree import State, flatten, rebuild
from torch import Tensor

_ZIPNN_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class CheckpointStore(ABC):
    """The checkpoints of one run, in a folder of their own.

    Attributes:
        name: As tables show it.
        package: Importable package that it needs.
    """

    name: ClassVar[str]
    package: ClassVar[str] = "torch"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    @abstractmethod
    def save(self, index: int, state: State) -> None:
        """Store the next checkpoint; indices count from 0 without gaps."""

    @abstractmethod
    def load(self, index: int) -> State:
        """Return any checkpoint stored so far."""

    def close(self) -> None:
        """Release the store."""
        return

    def nbytes(self) -> int:
        """Bytes of all files."""
        return folder_bytes(self.folder)[0]


class TorchSave(CheckpointStore):
    """One file of torch.save a checkpoint."""

    name = "torch.save"

    def save(self, index: int, state: State) -> None:
        """Write and sync."""
        with open(self.folder / f"{index}.pt", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)

    def load(self, index: int) -> State:
        """Read."""
        return torch.load(self.folder / f"{index}.pt", weights_only=True)


class Safetensors(CheckpointStore):
    """One safetensors file a checkpoint, with dotted names; what is no tensor is JSON in its header."""

    name = "safetensors"
    package = "safetensors"

    def save(self, index: int, state: State) -> None:
        """Write and sync."""
        from safetensors.torch import save_file

        structure, tensors = flatten(state)
        path = self.folder / f"{index}.safetensors"
        save_file(tensors, path, {"structure": structure})
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        sync_folder(self.folder)

    def load(self, index: int) -> State:
        """Read; mapped tensors would follow changes of the file, clones are owned."""
        from safetensors import safe_open

        with safe_open(self.folder / f"{index}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            return rebuild(file.metadata()["structure"], tensors)


class Distributed(CheckpointStore):
    """torch.distributed.checkpoint in one process: a folder a checkpoint.

    It loads into tensors that are there already. They are made anew for each load, within its time, from the structure
    of what was saved last, as a trainer would have it.
    """

    name = "torch dcp"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._structure, self._like = "", dict[str, Tensor]()

    def save(self, index: int, state: State) -> None:
        """Write and sync."""
        import torch.distributed.checkpoint as dcp

        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        self._structure, tensors = flatten(state)
        self._like = {name: each.to("meta") for name, each in tensors.items()}
        writer = dcp.FileSystemWriter(
            self.folder / str(index), thread_count=os.cpu_count() or 1, _extensions=self._extensions()
        )
        dcp.save(state, storage_writer=writer, no_dist=True)
        sync_folder(self.folder / str(index))
        sync_folder(self.folder)

    def load(self, index: int) -> State:
        """Read into new tensors."""
        import torch.distributed.checkpoint as dcp

        state = rebuild(
            self._structure, {name: torch.empty_like(each, device="cpu") for name, each in self._like.items()}
        )
        dcp.load(state, storage_reader=dcp.FileSystemReader(self.folder / str(index)), no_dist=True)
        return state

    def _extensions(self) -> Sequence[Any] | None:
        return None


class DistributedZstd(Distributed):
    """The same with its own zstd extension."""

    name = "torch dcp zstd"
    package = "zstandard"

    def _extensions(self) -> Sequence[Any] | None:
        from torch.distributed.checkpoint._extension import ZStandard

        return [ZStandard()]


class ZipNN(CheckpointStore):
    """One file a checkpoint; all tensors of a dtype joined and compressed with the ZipNN made for it, others raw."""

    name = "zipnn"
    package = "zipnn"

    def save(self, index: int, state: State) -> None:
        """Join, compress, write and sync."""
        structure, tensors = flatten(state)
        groups = _grouped(tensors)
        shapes = {name: list(each.shape) for name, each in tensors.items()}
        parts = [self._packed(index, dtype, _joined(names, tensors)) for dtype, names in groups.items()]
        groups_by_name = [
            [str(dtype), names, len(part)] for (dtype, names), part in zip(groups.items(), parts, strict=True)
        ]
        header = json.dumps({"structure": structure, "shapes": shapes, "groups": groups_by_name}).encode()
        write_durably(self.folder / f"{index}.znn", [len(header).to_bytes(8, "little"), header, *parts])

    def load(self, index: int) -> State:
        """Read and decompress."""
        with open(self.folder / f"{index}.znn", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            tensors: dict[str, Tensor] = {}
            for written, names, length in header["groups"]:
                dtype = getattr(torch, written.removeprefix("torch."))
                raw = self._unpacked(index, dtype, file.read(length))
                tensors |= _split(raw, dtype, {name: header["shapes"][name] for name in names})
        return rebuild(header["structure"], tensors)

    def _packed(self, index: int, dtype: torch.dtype, raw: bytearray) -> bytes | bytearray:
        return self._coder(dtype).compress(raw) if dtype in _ZIPNN_NAMES else raw

    def _unpacked(self, index: int, dtype: torch.dtype, stored: bytes) -> bytes | bytearray:
        return self._coder(dtype).decompress(stored) if dtype in _ZIPNN_NAMES else stored

    def _coder(self, dtype: torch.dtype, **options: Any) -> Any:
        import zipnn

        return zipnn.ZipNN(
            input_format="byte", bytearray_dtype=_ZIPNN_NAMES[dtype], threads=os.cpu_count() or 1, **options
        )


class ZipNNDelta(ZipNN):
    """The same with ZipNN's own XOR against the checkpoint before, which a save finds in memory.

    A load reads every file up to the one asked for.
    """

    name = "zipnn delta"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._last: dict[torch.dtype, bytes | bytearray] = {}

    def load(self, index: int) -> State:
        """Read and decompress the files up to the one asked for."""
        kept, self._last = self._last, {}
        states = [super(ZipNNDelta, self).load(number) for number in range(index + 1)]
        self._last = kept
        return states[-1]

    def _packed(self, index: int, dtype: torch.dtype, raw: bytearray) -> bytes | bytearray:
        if dtype not in _ZIPNN_NAMES:
            return raw
        base, self._last[dtype] = self._last.get(dtype), bytes(raw)
        if base is None:
            return self._coder(dtype).compress(raw)
        return self._coder(dtype, delta_compressed_type="byte").compress(raw, delta_second_data=base)

    def _unpacked(self, index: int, dtype: torch.dtype, stored: bytes) -> bytes | bytearray:
        if dtype not in _ZIPNN_NAMES:
            return stored
        base = self._last.get(dtype)
        if base is None:
            self._last[dtype] = self._coder(dtype).decompress(stored)
        else:
            coder = self._coder(dtype, delta_compressed_type="byte")
            self._last[dtype] = coder.decompress(stored, delta_second_data=base)
        return self._last[dtype]


PEERS: tuple[type[CheckpointStore], ...] = (TorchSave, Safetensors, Distributed, DistributedZstd, ZipNN, ZipNNDelta)


def write_durably(path: Path, buffers: Iterable[bytes | bytearray]) -> None:
    """Write a file under another name, and rename it once it is on the disk."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.writelines(buffers)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _grouped(tensors: dict[str, Tensor]) -> dict[torch.dtype, list[str]]:
    groups: dict[torch.dtype, list[str]] = {}
    for name, each in tensors.items():
        groups.setdefault(each.dtype, []).append(name)
    return groups


def _joined(names: Sequence[str], tensors: dict[str, Tensor]) -> bytearray:
    raw = bytearray()
    for name in names:
        raw += memoryview(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy())
    return raw


def _split(raw: bytes | bytearray, dtype: torch.dtype, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    values = torch.frombuffer(bytearray(raw) if isinstance(raw, bytes) else raw, dtype=dtype)
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = zip(shapes.items(), values.split(sizes), strict=True)
    return {name: part.reshape(shape) for (name, shape), part in parts}
