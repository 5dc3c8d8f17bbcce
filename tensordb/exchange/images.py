"""Pictures through Pillow: a folder of them into a dataset and out of it, and columns of encoded pictures.

A picture is a uint8 tensor ``[C, H, W]`` of 1, 3 or 4 channels, as torchvision's are; one of 16-bit grey is uint16
``[1, H, W]``, one of floats float32 ``[1, H, W]``. Of several frames the first is taken. Palettes and other colour
spaces become RGB (RGBA where something is transparent).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch

from tensordb.catalog import documents
from tensordb.datasets.streaming import Row
from tensordb.errors import InvalidInputError, MissingDependencyError
from tensordb.exchange.publishing import Publication
from tensordb.exchange.rows import Asked, Source, check_file, identified
from tensordb.exchange.selecting import Column, Selected, document_of, value_of
from tensordb.tensors import adopted, snapshot

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_KEPT = ("L", "RGB", "RGBA")


def from_folder(folder: Path, asked: Asked) -> Source:
    """Return the pictures below a folder, ordered by path.

    Each has the metadata ``path``, relative to the folder with slashes, and ``label``, the name of the folder right
    below it that the picture is in, if it is in one. Files without the suffix of a picture are left out.

    Raises:
        InvalidInputError: There is no picture, or a link leads back to a folder above it.
    """
    asked.refuse_columns(str(folder))
    asked.refuse_rows(str(folder))
    pillow()
    paths = list(_below(folder, ()))
    if not paths:
        raise InvalidInputError(f"{folder} has no pictures; their names end in {', '.join(sorted(SUFFIXES))}")
    return Source(_rows(folder, paths, asked.record_id), len(paths))


def write_folder(files: Publication, selected: Selected, columns: Sequence[Column], bar: Any = None) -> None:
    """Write each tensor as a PNG, below a folder of its label if it has one, and the metadata as ``metadata.jsonl``.

    Names are percent-encoded where they would not be names of files. A line of ``metadata.jsonl`` has ``file_name``,
    as the image folders of Hugging Face have it; what JSON lacks is text there.
    """
    module = pillow()
    fields = [each for each in columns if each.role == "field"]
    with files.file("metadata.jsonl") as lines:
        for part in selected.parts(bar=bar):
            for item in part:
                document = document_of(item)
                name = _file_name(item.record_id, document.get("label"))
                picture = _picture(module, item.tensor, item.record_id)
                with files.file(name) as file:
                    picture.save(file, "PNG")
                said = {each.name: value_of(document, each.path) for each in fields}
                text = documents.as_json({**said, "file_name": name})
                lines.write(text.encode("utf-8") + b"\n")


def _file_name(record_id: str, label: Any) -> str:
    name = f"{_plain_name(quote(record_id, safe=' '))}.png"  # "...png" would be a hidden name without a suffix
    if not isinstance(label, str | int) or label == "":
        return name
    return f"{_plain_name(quote(str(label), safe=' '))}/{name}"


def _plain_name(text: str) -> str:
    return text.replace(".", "%2E") if text.strip(".") == "" else text


def _picture(module: Any, tensor: Any, record_id: str) -> Image:
    array = snapshot(tensor).squeeze(0).numpy() if tensor.ndim == 3 and len(tensor) == 1 else None
    if tensor.dtype == torch.uint8 and tensor.ndim == 3 and len(tensor) in (3, 4):
        array = snapshot(tensor.permute(1, 2, 0)).numpy()
    elif tensor.ndim == 2:
        array = snapshot(tensor).numpy()
    if array is None or tensor.dtype not in (torch.uint8, torch.uint16) or not array.size:
        raise InvalidInputError(
            f"record {record_id!r} is {tensor.dtype} of shape {list(tensor.shape)}, which is no picture: give uint8 of "
            "[H, W] or [1, 3 or 4, H, W], or uint16 of [1, H, W]"
        )
    return module.fromarray(array)  # type: ignore[no-any-return]


def pillow() -> Any:
    """Return the module ``PIL.Image``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("pictures need Pillow: pip install 'tensordb[images]'") from error
    return Image


def is_picture(value: Any) -> bool:
    """Tell whether a value is a picture of Pillow's, without loading it."""
    return any(each.__module__.startswith("PIL.") and each.__name__ == "Image" for each in type(value).__mro__)


def pixels(picture: Image) -> torch.Tensor:
    """Return a picture of Pillow's as a tensor ``[C, H, W]``."""
    mode = picture.mode
    if mode == "F" or mode in _GREY_16 or mode == "I":
        array = np.array(picture)
        taken: torch.Tensor = adopted(array.astype(np.uint16) if mode in _GREY_16 else array)
        return taken.unsqueeze(0)
    if mode not in _KEPT:
        transparent = mode in ("LA", "PA", "La", "RGBa") or "transparency" in picture.info
        picture = picture.convert("L" if mode == "1" else "RGBA" if transparent else "RGB")
    array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def decoded(data: bytes | Path, where: str) -> torch.Tensor:
    """Return an encoded picture as a tensor; raise InvalidInputError that names `where` when it is damaged."""
    module = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("error", module.DecompressionBombWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with module.open(check_file(data) if isinstance(data, Path) else io.BytesIO(data)) as picture:
                return pixels(picture)
        except InvalidInputError:
            raise
        except Exception as error:  # a file made up to do harm can make a decoder fail in any way
            raise InvalidInputError(f"{where} is no picture that can be read: {error}") from error


def is_image(kind: pa.DataType) -> bool:
    """Tell whether a column of Arrow holds encoded pictures, as those of Hugging Face's datasets do."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if not pa.types.is_struct(kind) or {each.name for each in kind} != {"bytes", "path"}:
        return False
    return bool(pa.types.is_binary(kind.field("bytes").type) or pa.types.is_large_binary(kind.field("bytes").type))


def of_column(column: pa.Array, first: int, where: str, *, local: bool) -> Iterator[torch.Tensor]:
    """Yield the pictures of such a column; with `local` those that lie in files of their own are read there."""
    for row, value in enumerate(column.to_pylist(), first):
        place = f"the picture in row {row} of {where}"
        data, path = (None, None) if value is None else (value["bytes"], value["path"])
        if data is None and local and path:
            yield decoded(Path(path), f"{place} ({path})")
        elif data is None:
            raise InvalidInputError(f"{place} is not in it (its path is {path!r}); embed the file")
        else:
            yield decoded(data, place)


def _below(folder: Path, above: Sequence[tuple[int, int]]) -> Iterator[Path]:
    try:
        facts = os.stat(folder)
        key = facts.st_dev, facts.st_ino
        if key in above:
            raise InvalidInputError(f"{folder} is a link to a folder above it, without end; remove it")
        entries = sorted(os.scandir(folder), key=lambda each: each.name)
        for entry in entries:
            if entry.is_dir():
                yield from _below(Path(entry.path), (*above, key))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield Path(entry.path)
    except OSError as error:
        raise InvalidInputError(f"{folder} cannot be read: {error}") from error


def _rows(folder: Path, paths: Sequence[Path], record_id: str | None) -> Iterator[Row]:
    for path in paths:
        parts = path.relative_to(folder).parts
        metadata: dict[str, Any] = {"path": "/".join(parts)}
        if len(parts) > 1:
            metadata["label"] = parts[0]
        yield identified(decoded(path, str(path)), metadata, record_id)
