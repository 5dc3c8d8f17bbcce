"""A database that a plugin was given, or the folder of one that it opens when it needs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tensordb.errors import InvalidInputError
from tensordb.storage import TensorStorage


class Opening:
    """A database by itself or by its folder; one that was given open stays open."""

    def __init__(self, db_or_path: TensorStorage | str | os.PathLike[str]) -> None:
        if not isinstance(db_or_path, TensorStorage | str | os.PathLike):
            raise InvalidInputError(
                f"a database is given as {type(db_or_path).__name__}; give a TensorStorage or a path"
            )
        self._given = db_or_path if isinstance(db_or_path, TensorStorage) else None
        self._opened: TensorStorage | None = None
        self._folder = None if isinstance(db_or_path, TensorStorage) else Path(db_or_path).absolute()

    @property
    def db(self) -> TensorStorage:
        """The database, opened if it is not."""
        if self._given is not None:
            return self._given
        if self._opened is None:
            self._opened = TensorStorage(self._folder)
        return self._opened

    def close(self) -> None:
        """Wait until what is saved in the background is written; close what this opened."""
        if self._given is not None:
            self._given.checkpoints.wait()
        elif self._opened is not None:
            opened, self._opened = self._opened, None
            opened.close()

    def __getstate__(self) -> dict[str, Any]:
        # A trainer that starts processes sends its plugins to them.
        return self.__dict__ | {"_opened": None}
