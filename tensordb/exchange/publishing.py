"""Files that appear under their names when they are whole and on the disk, and leave nothing behind when they do not.

Invariants: nothing is written outside of the folder, whatever the names say; a file that is there is replaced only
when that was asked for; files are written under a temporary name beside their place.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tensordb import files
from tensordb.errors import AlreadyExistsError, IntegrityError
from tensordb.payloads.files import make_folders, store_error

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What file systems without hard links answer; whether a file is there was looked for just before."""


class Publication:
    """New files of one folder, which is made where it is missing.

    Attributes:
        folder: Where they appear.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
        self.folder = folder
        self._names = [check_name(name) for name in names]
        self._overwrite = overwrite
        self._whole = not folder.exists()
        for name in self._names:
            self._check_place(name)
        make_folders(folder.parent)
        beside = folder.parent if self._whole else folder
        self._staging = beside / f".{folder.name}.{secrets.token_hex(8)}.part"
        files.make_folder(self._staging)

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """Open a new file for writing; it is on the disk when the block ends."""
        path = self._staging / check_name(name)
        make_folders(path.parent)
        with os.fdopen(files.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            yield file
            file.flush()
            files.sync_file(file.fileno())

    def make_folder(self, name: str) -> None:
        """Make a folder that may stay empty."""
        make_folders(self._staging / check_name(name))
        if not self._whole:
            make_folders(self.folder / name)

    def publish(self) -> list[Path]:
        """Give all files their names; return their paths."""
        if self._whole:
            self._publish_folder()
        else:
            for name in self._names:
                self._publish_file(name)
        return [self.folder / name for name in self._names]

    def discard(self) -> None:
        """Remove what was written and not published."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def _publish_folder(self) -> None:
        for path in [*self._staging.rglob("*"), self._staging]:
            if path.is_dir():
                files.sync_directory(path)
        try:
            files.rename(self._staging, self.folder)
        except OSError as error:
            if self.folder.exists():
                raise _taken(self.folder) from error
            raise
        files.sync_directory(self.folder.parent)

    def _publish_file(self, name: str) -> None:
        new, path = self._staging / name, self._check_place(name)
        make_folders(path.parent)
        if self._overwrite:
            files.rename(new, path)
        else:
            _move(new, path)
        files.sync_directory(path.parent)

    def _check_place(self, name: str) -> Path:
        path = self.folder / name
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise AlreadyExistsError(f"{path.parent} is a link out of {self.folder}; remove it")
        if os.path.lexists(path) and (not self._overwrite or path.is_dir()):
            raise _taken(path)
        if path.exists() and not path.is_file():  # to replace it would take it away from all who use it
            raise AlreadyExistsError(f"{path} is a device or a pipe, no file; give another place")
        return path


@contextmanager
def publication(folder: Path, names: Sequence[str], *, overwrite: bool) -> Iterator[Publication]:
    """Write files of a folder within the block; they appear when it ends without an error.

    Args:
        folder: Where they appear; made where it is missing.
        names: Their paths in it, with slashes; those that others refer to first.
        overwrite: Replace files that are there.

    Raises:
        AlreadyExistsError: A file is there.
        IntegrityError: A name leads out of the folder.
        StoreError: The folder cannot be written.
    """
    try:
        made = Publication(folder, names, overwrite=overwrite)
        try:
            yield made
            made.publish()
        finally:
            made.discard()
    except OSError as error:
        raise store_error("writing files to", folder, error) from error


def check_name(name: str) -> str:
    """Return the path of a file within its folder; raise IntegrityError when it leads anywhere else."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name or name == ".":
        raise IntegrityError(f"{name!r} is no path of a file within a folder; it is not written")
    return name


def _move(new: Path, path: Path) -> None:
    """Give a file its name unless there is a file of that name."""
    try:
        files.link(new, path)  # unlike a rename it fails where a file has appeared meanwhile
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        files.rename(new, path)


def _taken(path: Path) -> AlreadyExistsError:
    return AlreadyExistsError(f"{path} exists; give another place, or overwrite=True")
