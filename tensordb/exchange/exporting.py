"""Out of a dataset: the verbs that a selection of records has, and files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tensordb.catalog.records import Selection
from tensordb.datasets import queries
from tensordb.datasets.insertion import progress_bar
from tensordb.datasets.lookup import Params
from tensordb.engine import Database
from tensordb.errors import AlreadyExistsError, ConflictError, InvalidInputError
from tensordb.exchange import images, selecting, stacks
from tensordb.exchange.importing import format_of
from tensordb.exchange.publishing import publication
from tensordb.exchange.selecting import Selected

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Columns = Sequence[str] | str | None


class Exporting:
    """What a selection of records can be given out as.

    Columns are ``"tensor"``, ``"record_id"``, ``"created_at"``, or fields of the metadata, with dots where they are
    nested. A field that has one of these names is ``"metadata.…"``. By default there are the id, the tensor and all
    fields. What matches is found when an export begins; all of them read in bounded memory, and only `to_arrow`,
    `to_pandas`, `to_polars` and `to_numpy` hold the result.
    """

    _db: Database | None
    name: str
    where: str | None
    params: Params
    order_by: str | None

    def to_arrow(self, columns: Columns = None, *, exact: bool = False, progress: bool = False) -> pa.Table:
        """Return a table of Arrow.

        Tensors of one dtype and shape are ``arrow.fixed_shape_tensor``; others, and dtypes that Arrow lacks, stand as
        `tensordb.exchange.columns` says, and come back as they were by `import_from`.

        Args:
            columns: Their names (default: record_id, tensor and all metadata fields).
            exact: Add the column ``tensordb.document`` with what typed columns cannot say of metadata, such as the
                difference between None and a missing field; `import_from` reads it.
            progress: Show a progress bar.
        """
        from tensordb.exchange import tabling  # loading pyarrow takes longer than all the rest of tensordb

        selected = self._selected()
        with self._bar(progress, selected) as bar:
            return tabling.to_table(selected, selected.columns(columns, exact=exact), bar)

    def to_pandas(self, columns: Columns = None, *, progress: bool = False) -> Any:
        """Return a pandas DataFrame, whose tensors are arrays in cells (tensors, where NumPy lacks the dtype)."""
        from tensordb.exchange import tabling

        selected = self._selected()
        with self._bar(progress, selected) as bar:
            return tabling.to_pandas(selected, selected.columns(columns), bar)

    def to_polars(self, columns: Columns = None, *, progress: bool = False) -> Any:
        """Return a polars DataFrame, whose tensors are of its type Array where they have one shape."""
        from tensordb.exchange import tabling

        selected = self._selected()
        with self._bar(progress, selected) as bar:
            return tabling.to_polars(selected, selected.columns(columns), bar)

    def to_numpy(self, *, progress: bool = False) -> np.ndarray[Any, Any]:
        """Return the tensors as one array ``[N, ...]``.

        Raises:
            InvalidInputError: They have different dtypes or shapes, or one that NumPy lacks.
        """
        selected = self._selected()
        with self._bar(progress, selected) as bar:
            return stacks.to_numpy(selected, bar)

    def to_parquet(
        self,
        path: str | os.PathLike[str],
        columns: Columns = None,
        *,
        overwrite: bool = False,
        progress: bool = False,
    ) -> Path:
        """Write a Parquet file, a row group at a time; it appears when it is whole. See `to_arrow` for its columns."""
        return self.export(path, format="parquet", columns=columns, overwrite=overwrite, progress=progress)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,  # noqa: A002
        columns: Columns = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> Path:
        """Write a file, or a folder of pictures, which appears when it is whole.

        Args:
            path: Its place; the ending says the format, of a folder `format` does.
            format: ``"parquet"``, ``"arrow"``, ``"npy"`` (the tensors alone), ``"npz"`` (an array a column),
                ``"safetensors"`` (a tensor a record, by its id) or ``"images"`` (a PNG a record, by its id in a
                folder of its ``label``).
            columns: As for `to_arrow`.
            overwrite: Replace a file that is there; a folder is never replaced.
            progress: Show a progress bar.

        Returns:
            The path.

        Raises:
            AlreadyExistsError: The path is there.
            InvalidInputError: The format cannot hold these records; the message says why. Nothing is left behind.
        """
        target = Path(path)
        kind = format_of(target, format)
        selected = self._selected()
        if columns is None and kind == "npy":
            columns = "tensor"
        with self._bar(progress, selected) as bar:
            if kind == "images":
                _write_folder(target, selected, columns, bar)
            else:
                _write_file(target, kind, selected, columns, overwrite, bar)
        return target

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        from tensordb.exchange import tabling

        selected = self._selected()
        layout = tabling.layout_of(selected, selected.columns(None))
        return tabling.reader_of(selected, layout).__arrow_c_stream__(requested_schema)

    def _selected(self) -> Selected:
        if self._db is None:
            raise ConflictError(f"{self.name!r} is a copy without a database, as workers have it; export the original")
        return selecting.select(self._db, self.name, self._selection())

    def _selection(self) -> Selection:
        return queries.selection(self.where, self.params, self.order_by)

    def _bar(self, wanted: bool, selected: Selected) -> Any:
        return progress_bar(wanted, len(selected), f"export {self.name}")


class Export(Exporting):
    """A selection of the records of a dataset, to be given out."""

    def __init__(
        self, db: Database, name: str, where: str | None = None, params: Params = None, order_by: str | None = None
    ) -> None:
        self._db = db
        self.name = name
        self.where = where
        self.params = params
        self.order_by = order_by


def _write_file(target: Path, kind: str, selected: Selected, columns: Columns, overwrite: bool, bar: Any) -> None:
    if target.name in ("", "..") or "\0" in str(target):
        raise InvalidInputError(f"{str(target)!r} is no name of a file; give the file's own path")
    with publication(target.parent, [target.name], overwrite=overwrite) as files, files.file(target.name) as file:
        _write(file, kind, selected, columns, bar)


def _write(file: BinaryIO, kind: str, selected: Selected, columns: Columns, bar: Any) -> None:
    if kind in ("parquet", "arrow"):
        from tensordb.exchange import tabling

        layout = tabling.layout_of(selected, selected.columns(columns, exact=True))
        (tabling.write_parquet if kind == "parquet" else tabling.write_ipc)(file, selected, layout, bar)
    elif kind == "safetensors":
        from tensordb.exchange.safetensors import write_safetensors

        write_safetensors(file, selected, selected.columns(columns, exact=True), bar)
    else:
        (stacks.write_npz if kind == "npz" else stacks.write_npy)(file, selected, selected.columns(columns), bar)


def _write_folder(target: Path, selected: Selected, columns: Columns, bar: Any) -> None:
    if os.path.lexists(target):
        raise AlreadyExistsError(f"{target} exists; give a new folder for pictures")
    if not len(selected):
        raise InvalidInputError(f"no record of {selected.name!r} matches, so that there is no picture to write")
    with publication(target, [], overwrite=False) as files:
        images.write_folder(files, selected, selected.columns(columns), bar)
