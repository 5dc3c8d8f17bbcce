"""What a source is, and its rows into a dataset in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tensordb.datasets.insertion import Inserter, progress_bar
from tensordb.datasets.streaming import RowStream
from tensordb.encoding.presets import CompressionConfig, get_compression_preset
from tensordb.errors import InvalidInputError
from tensordb.exchange import arrays, images, items
from tensordb.exchange.rows import Asked, Source

FORMATS = ("npy", "npz", "safetensors", "parquet", "arrow", "images")
_SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
}


def import_from(
    inserter: Inserter,
    name: str,
    source: Any,
    *,
    tensor: str | None,
    record_id: str | None,
    metadata: Any,
    format: str | None,  # noqa: A002
    preset: str | CompressionConfig | None,
    create: bool,
    progress: bool,
) -> list[str]:
    """Insert the rows of a source and return their ids."""
    config = get_compression_preset(preset) if isinstance(preset, str) else preset
    if config is not None and not isinstance(config, CompressionConfig):
        raise InvalidInputError(f"preset is a {type(preset).__name__}; give the name of a preset, or a config")
    found = source_of(source, Asked.of(tensor, record_id, metadata), format)
    stream = RowStream(found.rows, named=record_id is not None)
    with progress_bar(progress, found.total, f"import into {name}") as bar:
        return inserter.insert_stream(name, stream, config, create=create, bar=bar)


def source_of(source: Any, asked: Asked, format: str | None) -> Source:  # noqa: A002
    """Return the rows of an object or a path."""
    if isinstance(source, str | os.PathLike):
        return _of_path(Path(source), asked, format)
    if format is not None:
        raise InvalidInputError(f"format is {format!r}, but the source is no path; leave it out")
    if isinstance(source, torch.Tensor | np.ndarray):
        return arrays.from_stack(source, asked, "the array")
    if items.is_hugging_face(source):
        return items.from_hugging_face(source, asked)
    if isinstance(source, Mapping):
        return arrays.from_columns(source, asked, "the dict")
    if _is_frame(source):
        from tensordb.exchange.frames import from_pandas

        return from_pandas(source, asked)
    if _is_arrow(source):
        from tensordb.exchange.tables import from_arrow  # loading pyarrow takes longer than all the rest of tensordb

        return from_arrow(source, asked, f"the {type(source).__name__}")
    if hasattr(source, "__dlpack__"):
        return arrays.from_stack(source, asked, "the array")
    return items.from_items(source, asked)


def format_of(path: Path, given: str | None) -> str:
    """Return the format of a file by its name, if it is not given."""
    if given is not None and given not in FORMATS:
        raise InvalidInputError(f"format is {given!r}; there are {', '.join(FORMATS)}")
    found = given or _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise InvalidInputError(
            f"{str(path)!r} does not say its format; known endings are {', '.join(_SUFFIXES)}, "
            f"or give one as format: {', '.join(FORMATS)}"
        )
    return found


def check_path(path: Path, given: str | None) -> str:
    """Return the format of a file or folder to be read; raise InvalidInputError when it is not there."""
    try:
        kind = "images" if given is None and path.is_dir() else format_of(path, given)
        if kind != "parquet" and not path.exists():
            raise InvalidInputError(f"there is no file or folder {str(path)!r}")
        if kind == "images" and not path.is_dir():
            raise InvalidInputError(f"{str(path)!r} is no folder; pictures are imported from one")
    except OSError as error:  # a name that is too long, or below a folder that may not be read
        raise InvalidInputError(f"{str(path)[:200]!r} cannot be looked at: {error.strerror}") from error
    return kind


def _of_path(path: Path, asked: Asked, given: str | None) -> Source:
    return _reader(check_path(path, given))(path, asked)


def _reader(kind: str) -> Callable[[Path, Asked], Source]:
    if kind in ("parquet", "arrow"):
        from tensordb.exchange import tables

        return tables.from_parquet if kind == "parquet" else tables.from_ipc
    if kind == "safetensors":
        from tensordb.exchange import safetensors

        return safetensors.from_safetensors
    return {"npy": arrays.from_npy, "npz": arrays.from_npz, "images": images.from_folder}[kind]


def _is_frame(source: Any) -> bool:
    return type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "itertuples")


def _is_arrow(source: Any) -> bool:
    if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        return True
    return type(source).__module__.partition(".")[0] == "pyarrow" and hasattr(source, "scanner")
