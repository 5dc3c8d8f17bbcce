"""What a folder of a model holds: all its files, and which of them have the tensors of the model itself.

Invariants: nothing outside of the folder is read, wherever links and indexes point.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensordb.errors import InvalidInputError
from tensordb.exchange.safetensors_header import map_bytes

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_USUAL = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The files of a folder, by their paths in it with slashes.

    Attributes:
        files: All of them, sorted, with where their bytes are.
        empty: Folders that hold nothing.
    """

    files: Mapping[str, Path]
    empty: tuple[str, ...]

    @property
    def tensor_files(self) -> list[str]:
        """Those that hold tensors."""
        return [name for name in self.files if name.endswith(SUFFIX)]

    def model_files(self) -> dict[str, Mapping[str, str]]:
        """Return the files of the model itself, each with the tensors that are said to be in it; {} for all.

        Raises:
            InvalidInputError: An index is damaged, or names a file that is not there.
        """
        at_top = [name for name in self.files if "/" not in name]
        indexes = [name for name in at_top if name.endswith(INDEX_SUFFIX)]
        if indexes:
            return self._indexed(f"{_USUAL}.index.json" if f"{_USUAL}.index.json" in indexes else indexes[0])
        candidates = [name for name in at_top if name.endswith(SUFFIX)]
        if _USUAL in candidates:
            return {_USUAL: {}}
        return {candidates[0]: {}} if len(candidates) == 1 else {}

    def _indexed(self, name: str) -> dict[str, Mapping[str, str]]:
        path = self.files[name]
        try:
            weight_map = json.loads(map_bytes(path).tobytes().decode("utf-8"))["weight_map"]
            places = {str(tensor): str(file) for tensor, file in weight_map.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidInputError(f"{path} is not an index of shards: {error!r}; fetch it again") from error
        missing = [file for file in places.values() if file not in self.files]
        if missing:
            raise InvalidInputError(f"{path} names the shard {missing[0]!r}, which is not in the folder; fetch it")
        return {
            shard: {tensor: file for tensor, file in places.items() if file == shard}
            for shard in dict.fromkeys(places.values())
        }


def read_folder(root: Path) -> ModelFolder:
    """Return the files of a folder and of those within it; hidden ones too.

    Raises:
        InvalidInputError: A file is a link out of the folder, is no regular file, or has a name that is no text.
    """
    files: dict[str, Path] = {}
    empty: list[str] = []

    def fail(error: OSError) -> None:
        raise InvalidInputError(f"{error.filename} cannot be read: {error.strerror}") from error

    inside = root.resolve()
    for folder, folders, names in os.walk(root, onerror=fail):
        here = Path(folder)
        for name in [*folders, *names]:
            relative = _relative(here / name, root)
            if name in names:
                files[relative] = _real(here / name, inside)
            elif (here / name).is_symlink():
                raise InvalidInputError(f"{here / name} is a link to a folder; copy what it points to in its place")
        if not folders and not names and here != root:
            empty.append(_relative(here, root))
    return ModelFolder(dict(sorted(files.items())), tuple(sorted(empty)))


def _relative(path: Path, root: Path) -> str:
    relative = path.relative_to(root).as_posix()
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"the name {relative!r} in {root} is no text; rename it") from error
    return relative


def _real(path: Path, inside: Path) -> Path:
    real = path.resolve()
    if not real.is_relative_to(inside):
        raise InvalidInputError(
            f"{path} is a link to {real}, out of the folder, and is not followed; copy the folder with what its links "
            "point to (cp -rL), and import the copy"
        )
    if not real.is_file():
        raise InvalidInputError(f"{path} is no regular file; leave it out")
    return real


def shard_names(stem: str, count: int) -> Sequence[str]:
    """Return what Hugging Face calls the shards of a file."""
    if count == 1:
        return [f"{stem}{SUFFIX}"]
    return [f"{stem}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]
