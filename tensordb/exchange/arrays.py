"""Arrays: stacked ones whose rows are records, and several of equal length whose rows belong together.

NumPy's files are read here byte by byte of their documented format, never by `numpy.load`: nothing in them is
unpickled, a claim is believed only as far as the file has bytes for it, and the tensors are streamed.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from tensordb.datasets.streaming import Row
from tensordb.errors import InvalidInputError, TensorDBError
from tensordb.exchange.rows import Asked, Roles, Source, check_count, check_file, id_of, roles_of, stacks_beside
from tensordb.exchange.safetensors_header import map_bytes
from tensordb.tensors import adopted

CHUNK_NBYTES = 16 << 20
"""Bytes of a file that are read at a time, and at least one row."""
_MOST_WHOLE_NBYTES = 1 << 30
"""Bytes of an array that has to be read whole: metadata, or one whose rows do not lie together."""
_MOST_RATIO = 1100
"""Bytes that a byte of a deflated entry can stand for; the format allows a few fewer."""
Array = np.ndarray[Any, Any]


def from_stack(stack: Any, asked: Asked, where: str) -> Source:
    """Return the rows of a stacked tensor or array ``[N, ...]``."""
    asked.refuse_columns(where)
    tensor = adopted(stack)
    if tensor.ndim == 0:
        raise InvalidInputError(f"{where} is 0-d: its records would be along the first dimension; insert() takes one")
    return Source(stacks_beside(cut(tensor), asked), len(tensor))


def from_columns(columns: Mapping[str, Any], asked: Asked, where: str) -> Source:
    """Return the rows of arrays, tensors and lists of equal length, by name."""
    asked.refuse_rows(where)
    held = {name: _column(name, value, where) for name, value in columns.items()}
    roles = roles_of(list(held), [name for name, value in held.items() if _could_be_tensor(value)], asked, where)
    _check_lengths({name: len(held[name]) for name in _used(roles)}, where)
    return Source(_rows(roles, _items(held[roles.tensor]), held), len(held[roles.tensor]))


def from_npy(path: Path, asked: Asked) -> Source:
    """Return the rows of an ``.npy`` file, mapped and not read."""
    asked.refuse_columns(str(path))
    data = map_bytes(path)
    with damage_named(path), open(path, "rb") as file:
        shape, fortran, dtype = _header(file, str(path))
        nbytes, begin = math.prod(shape) * dtype.itemsize, file.tell()
        if data.nbytes - begin != nbytes:
            raise _damaged(str(path), f"its array takes {nbytes:,} bytes, it has {data.nbytes - begin:,} for it")
        if not shape:
            raise InvalidInputError(f"{path} holds a 0-d array; the records are an array's rows")
        array = data[begin:].view(dtype).reshape(shape, order="F" if fortran else "C")
    check_count(shape[0], nbytes, str(path))
    size = max(1, CHUNK_NBYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    chunks = (array[start : start + size] for start in range(0, shape[0], size))
    return Source(stacks_beside(map(adopted, chunks), asked), shape[0])


def from_npz(path: Path, asked: Asked) -> Source:
    """Return the rows of the arrays of an ``.npz`` file: the tensors are streamed, the metadata is read whole."""
    asked.refuse_rows(str(path))
    with damage_named(path):
        archive = zipfile.ZipFile(check_file(path))
        entries = [each for each in archive.infolist() if each.filename.endswith(".npy")]
        names = [each.filename.removesuffix(".npy") for each in entries]
        headers = {}
        for name, entry in zip(names, entries, strict=True):
            _check_entry(entry, path)
            with archive.open(entry) as file:
                headers[name] = _entry_header(file, entry, f"{name!r} of {path}")
        shapes = {name: header[0] for name, header in headers.items()}
        roles = roles_of(names, [name for name, shape in shapes.items() if len(shape) > 1], asked, str(path))
        _check_lengths({name: shapes[name][0] if shapes[name] else None for name in _used(roles)}, str(path))
        by_name = dict(zip(names, entries, strict=True))
        check_count(shapes[roles.tensor][0], math.prod(shapes[roles.tensor]), str(path))
        rest = [name for name in _used(roles) if name != roles.tensor]
        held = {name: _whole(archive, by_name[name], f"{name!r} of {path}") for name in rest}
    tensors = map(adopted, _streamed(archive, by_name[roles.tensor], path))
    return Source(_rows(roles, _apart(tensors), held), shapes[roles.tensor][0])


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise what goes wrong with a file of others as InvalidInputError that names it."""
    try:
        yield
    except TensorDBError:
        raise
    except Exception as error:  # a file made up to do harm can make a reader fail in any way
        raise InvalidInputError(f"{path} cannot be read: {error}; it may be damaged or cut off") from error


def cut(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a stack in parts."""
    return (tensor[start : start + 4096] for start in range(0, len(tensor), 4096))


def _apart(stacks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    return chain.from_iterable(stack.unbind() for stack in stacks)


def _column(name: Any, value: Any, where: str) -> Any:
    """Return a column as something with a length and items."""
    if isinstance(value, torch.Tensor | np.ndarray):
        if value.ndim == 0:
            raise InvalidInputError(f"column {name!r} of {where} is 0-d; each column has a row a record")
        return value
    if isinstance(value, list | tuple):
        return value
    taken = adopted(value)
    if not isinstance(taken, torch.Tensor) or not taken.ndim:
        raise InvalidInputError(f"column {name!r} of {where} is a {type(value).__name__}; give an array or a list")
    return taken


def _could_be_tensor(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim > 1
    first = value[0] if value else None
    return isinstance(first, torch.Tensor | np.ndarray) and bool(first.ndim)


def _used(roles: Roles) -> list[str]:
    return [roles.tensor, *([] if roles.record_id is None else [roles.record_id]), *roles.metadata]


def _check_lengths(lengths: Mapping[str, int | None], where: str) -> None:
    (tensor, total), *rest = lengths.items()
    for name, length in rest:
        if length != total:
            has = "is 0-d" if length is None else f"has {length:,} rows"
            raise InvalidInputError(
                f"column {name!r} of {where} {has}, the tensors {tensor!r} have {total or 0:,}; leave it out with "
                "metadata=[...], which lists the columns to take"
            )
    if total is None:
        raise InvalidInputError(f"column {tensor!r} of {where} is 0-d; its rows would be the records")


def _items(column: Any) -> Iterator[Any]:
    if isinstance(column, torch.Tensor | np.ndarray):
        return _apart(cut(adopted(column)))
    return iter(column)


def _values(column: Any) -> Iterator[Any]:
    """Yield the rows of a metadata column as plain values; an array's rows are lists."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "M":
        column = column.astype("datetime64[us]")
    if isinstance(column, torch.Tensor | np.ndarray):
        for start in range(0, len(column), 4096):
            yield from column[start : start + 4096].tolist()
    else:
        yield from column


def _rows(roles: Roles, tensors: Iterator[Any], held: Mapping[str, Any]) -> Iterator[Row]:
    names = roles.metadata
    columns = [_values(held[name]) for name in names]
    ids = None if roles.record_id is None else _values(held[roles.record_id])
    for tensor in tensors:
        metadata = {name: next(column) for name, column in zip(names, columns, strict=True)}
        yield Row(tensor, metadata or None, None if ids is None else id_of(next(ids)))


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise InvalidInputError(f"{where} has version {version} of the format, which holds structured arrays; convert")
    if dtype.hasobject:
        raise InvalidInputError(f"{where} holds Python objects, which would run code to be read; save numbers or text")
    if any(size < 0 for size in shape):
        raise _damaged(where, f"its shape is {shape}")
    return shape, fortran, dtype


def _check_entry(entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse what could take far more memory than there is file before anything of it is seen."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Of other methods zipfile unpacks as much at once as its input gives: gigabytes from a few kilobytes.
        raise InvalidInputError(f"{entry.filename} of {path} is compressed as NumPy does not write it; save anew")
    if entry.file_size > max(_MOST_WHOLE_NBYTES, _MOST_RATIO * path.stat().st_size):
        raise _damaged(f"{entry.filename} of {path}", f"{entry.file_size:,} bytes are more than it could hold")


def _entry_header(file: IO[bytes], entry: zipfile.ZipInfo, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    shape, fortran, dtype = _header(file, where)
    nbytes = math.prod(shape) * dtype.itemsize
    if file.tell() + nbytes != entry.file_size:
        raise _damaged(where, f"its array takes {nbytes:,} bytes, the archive says {entry.file_size - file.tell():,}")
    return shape, fortran, dtype


def _whole(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> Array:
    with archive.open(entry) as file:
        shape, fortran, dtype = _entry_header(file, entry, where)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > _MOST_WHOLE_NBYTES:
            raise InvalidInputError(
                f"{where} takes {nbytes:,} bytes and would be read whole; leave it out with metadata=[...], or save "
                "the array in row-major order"
            )
        data = np.frombuffer(_exactly(file, nbytes, where), np.uint8)
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def _streamed(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Iterator[Array]:
    where = f"{entry.filename} of {path}"
    with damage_named(path), archive, archive.open(entry) as file:
        shape, fortran, dtype = _entry_header(file, entry, where)
        row = math.prod(shape[1:]) * dtype.itemsize
        if fortran and len(shape) > 1:
            yield _whole(archive, entry, where)
            return
        size = max(1, CHUNK_NBYTES // max(1, row))
        for start in range(0, shape[0], size):
            count = min(size, shape[0] - start)
            data = np.frombuffer(_exactly(file, count * row, where), np.uint8)
            yield data.view(dtype).reshape(count, *shape[1:])


def _exactly(file: IO[bytes], nbytes: int, where: str) -> bytearray:
    data = bytearray()
    while len(data) < nbytes:
        part = file.read(min(nbytes - len(data), CHUNK_NBYTES))
        if not part:
            raise _damaged(where, f"it ends {nbytes - len(data):,} bytes early")
        data += part
    return data


def _damaged(where: str, what: str) -> InvalidInputError:
    return InvalidInputError(f"{where} is no whole array of NumPy: {what}")
