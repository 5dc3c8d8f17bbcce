"""A dataset as arrays of NumPy: stacked in memory, or streamed into ``.npy`` and ``.npz`` files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, BinaryIO

import numpy as np
import torch

from tensordb.errors import InvalidInputError
from tensordb.exchange.selecting import Column, Item, Selected
from tensordb.model import TensorSpec
from tensordb.tensors import byte_view

Array = np.ndarray[Any, Any]


def to_numpy(selected: Selected, bar: Any = None) -> Array:
    """Return the tensors as one array ``[N, ...]``."""
    spec = selected.spec()
    stack = np.empty((len(selected), *spec.shape), _dtype(spec))
    at = 0
    for part in selected.parts(bar=bar):
        torch.stack(_tensors(part), out=torch.from_numpy(stack[at : at + len(part)]))
        at += len(part)
    return stack


def write_npy(file: BinaryIO, selected: Selected, columns: Sequence[Column], bar: Any = None) -> None:
    """Write the tensors, and nothing else."""
    if [each.role for each in columns] != ["tensor"]:
        raise InvalidInputError("an .npy file holds the tensors alone; leave columns out, or write .npz or Parquet")
    spec = selected.spec()
    _write_header(file, (len(selected), *spec.shape), _dtype(spec))
    for part in selected.parts(bar=bar):
        file.write(_bytes(part))


def write_npz(file: BinaryIO, selected: Selected, columns: Sequence[Column], bar: Any = None) -> None:
    """Write an array a column; the metadata is held until the tensors are written.

    Raises:
        InvalidInputError: NumPy has no dtype for the tensors or for a field, or a field is not in every record.
    """
    from tensordb.exchange import tabling  # loading pyarrow takes longer than all the rest of tensordb

    tensors = [each.name for each in columns if each.role == "tensor"]
    rest = [each for each in columns if each.role != "tensor"]
    layout = tabling.layout_of(selected, rest)
    held = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        spec = selected.spec()
        with _entry(archive, tensors[0] if tensors else None) as entry:
            if entry is not None:
                _write_header(entry, (len(selected), *spec.shape), _dtype(spec))
            for part in selected.parts(decode=entry is not None, bar=bar):
                if entry is not None:
                    entry.write(_bytes(part))
                held.append(tabling.batch_of(part, layout))
        import pyarrow as pa

        table = pa.Table.from_batches(held, layout.schema)
        for column in rest:
            array = _plain_array(table.column(column.name), column)
            with archive.open(f"{column.name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _tensors(part: Sequence[Item]) -> list[torch.Tensor]:
    return [item.tensor for item in part if item.tensor is not None]


def _bytes(part: Sequence[Item]) -> memoryview:
    return byte_view(torch.stack(_tensors(part))).data


class _Nothing(AbstractContextManager[None]):
    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def _entry(archive: zipfile.ZipFile, name: str | None) -> AbstractContextManager[IO[bytes] | None]:
    return _Nothing() if name is None else archive.open(f"{name}.npy", "w", force_zip64=True)


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise InvalidInputError(
            f"NumPy has no {spec.dtype}; use to_arrow(), Parquet or safetensors, which keep it, or convert the tensors"
        ) from None


def _plain_array(column: Any, wanted: Column) -> Array:
    """Return a column as an array that needs no pickle."""
    if column.null_count:
        raise InvalidInputError(
            f"metadata.{wanted.name} is missing or None in {column.null_count:,} records, which .npz cannot say; leave "
            "it out with columns=[...], or write Parquet"
        )
    array: Array = column.to_numpy()
    if (array.dtype == object and wanted.kind == "VARCHAR") or wanted.role == "record_id":
        if any(each.endswith("\0") for each in array):
            raise InvalidInputError(f"metadata.{wanted.name} has texts that end in NUL, which NumPy drops")
        array = array.astype(str)
    if array.dtype.kind not in "biufUM":
        raise InvalidInputError(
            f"metadata.{wanted.name} holds lists, structs or mixed values, which .npz cannot; leave it out with "
            "columns=[...], or write Parquet"
        )
    return array
