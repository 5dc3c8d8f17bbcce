"""The façade: `TensorStorage`. Every body is a few lines; behaviour lives in the rooms below."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch

from tensordb.checkpoints.accessor import Checkpoints
from tensordb.datasets import changes, indexing, lookup, queries, statistics
from tensordb.datasets.insertion import Inserter
from tensordb.datasets.lookup import Params, Where
from tensordb.datasets.record import Page, Record
from tensordb.datasets.statistics import CompressionStats
from tensordb.display import html_table
from tensordb.encoding.presets import CompressionConfig, get_compression_preset
from tensordb.engine import Cache, CacheConfig, Database
from tensordb.errors import InvalidInputError, NotFoundError, StoreError
from tensordb.exchange import importing
from tensordb.feeding import TensorDataset
from tensordb.maintenance import Maintenance, VerifyReport
from tensordb.payloads.files import make_folders
from tensordb.search.result import SearchResult
from tensordb.search.searcher import Searcher
from tensordb.weights.accessor import Weights

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_PRESET = "lossless"


class TensorStorage:
    """A database of tensors in a folder, shared by threads and processes.

    Args:
        storage_path: Folder of the database, created when it is missing; None for one in memory.
        compression_preset: Name of the preset for what is written from now on (default ``"lossless"``).
        compression_config: A config instead of a preset; give one of the two at most.
        read_only: Refuse writes, and open nothing for writing.
        busy_timeout: Seconds to wait for other processes and threads before `DatabaseBusyError`.
        cache: Memory for records that are read again by their ids, such as ``CacheConfig(decoded_bytes=1 << 30)``;
            None (the default) for none, as it wins nothing for records that are read once.

    Attributes:
        checkpoints: States of training runs: `save`, `load`, `resume`, history and retention.
        weights: Single tensors by the hash of what they hold, and deltas between them.
        maintenance: `verify`, `gc` and `compact`.
        cache: `stats` and `clear` of what is held in memory.

    Raises:
        StoreError: The folder cannot be created or written, or file locks do not work there.
        NotFoundError: There is no database to open with `read_only`.
        FormatError: A newer release wrote it.
        UnknownPresetError: No preset has this name.

    >>> import torch
    >>> with TensorStorage(None) as db:
    ...     db.create_dataset("weights")
    ...     key = db.insert("weights", torch.ones(3, 4), {"epoch": 1, "loss": 0.5})
    ...     db.query("weights", "metadata.loss < 1")[0].tensor.sum().item()
    12.0
    """

    def __init__(
        self,
        storage_path: str | os.PathLike[str] | None,
        *,
        compression_preset: str | None = None,
        compression_config: CompressionConfig | None = None,
        read_only: bool = False,
        busy_timeout: float = 30.0,
        cache: CacheConfig | None = None,
    ) -> None:
        config = _config(compression_preset, compression_config)
        self._busy_timeout = _check_timeout(busy_timeout)
        self._folder = _folder(storage_path, read_only)
        self._db = Database(
            self._folder, read_only=read_only, busy_timeout=self._busy_timeout, cache=_check_cache(cache)
        )
        self._db.config = config or get_compression_preset(DEFAULT_PRESET)
        self._inserter = Inserter(self._db)
        self._searcher = Searcher(self._db)
        self.checkpoints = Checkpoints(self._db)
        self.weights = Weights(self._db)
        self.maintenance = Maintenance(self._db)
        self.cache = Cache(self._db.cache)

    def close(self) -> None:
        """Close the database, once what is saved in the background is written; doing it twice is fine."""
        try:
            self.checkpoints.wait()
        finally:
            self._db.close()

    def create_dataset(
        self,
        name: str,
        schema: Mapping[str, Any] | None = None,
        *,
        compression_preset: str | None = None,
        compression_config: CompressionConfig | None = None,
    ) -> None:
        """Create an empty dataset.

        Args:
            name: Any text; it is only a name, never a path. Names that differ only by case are refused.
            schema: ``{"shape": [None, 224, 224], "dtype": torch.float32, "metadata": {"label": "int"}}``, every part
                optional. None is any length. Metadata kinds: int, float, str, bool, datetime, list, dict; with a
                ``?`` behind it the field may be missing.
            compression_preset: Preset of this dataset, in place of the storage's.
            compression_config: A config instead.

        Raises:
            AlreadyExistsError: The name is taken.
            InvalidInputError: The name or the schema is malformed.
        """
        changes.create_dataset(self._db, name, schema, _config(compression_preset, compression_config))

    def list_datasets(self) -> list[str]:
        """Return the names of all datasets, oldest first."""
        return changes.list_datasets(self._db)

    def dataset_exists(self, name: str) -> bool:
        """Tell whether there is a dataset of this name."""
        return changes.dataset_exists(self._db, name)

    def count(self, name: str, where: str | None = None, *, params: Params = None) -> int:
        """Return how many records of a dataset match; see `query` for `where`."""
        return changes.count(self._db, name, queries.selection(where, params))

    def delete_dataset(self, name: str) -> None:
        """Delete a dataset with all its records; `maintenance.compact` gives the space back to the disk."""
        changes.delete_dataset(self._db, name)

    def insert(
        self,
        name: str,
        tensor: torch.Tensor,
        metadata: Mapping[str, Any] | None = None,
        *,
        record_id: str | None = None,
    ) -> str:
        """Insert one tensor; it is durable when this returns.

        Args:
            name: The dataset.
            tensor: Any dense tensor of any dtype, shape, strides and device, or an array: of NumPy, or whatever has
                ``__dlpack__``, ``__array_interface__`` or ``__array__``. The values of this moment are stored.
            metadata: JSON-like values, datetimes, and scalars of NumPy and torch, by text keys.
            record_id: An id of your own, the name that the config's rules go by; generated when None.

        Returns:
            The record id.

        Raises:
            AlreadyExistsError: The id is taken.
            SchemaValidationError: The tensor or metadata does not fit the dataset's schema.
            InvalidInputError: The tensor or metadata cannot be stored; the message has the path to the value.
        """
        return self._inserter.insert(name, tensor, metadata, record_id, self._db.config)

    def insert_many(
        self,
        name: str,
        tensors: torch.Tensor | Iterable[torch.Tensor],
        metadata: Any = None,
        *,
        record_ids: Sequence[str] | None = None,
        progress: bool = False,
    ) -> list[str]:
        """Insert many tensors in one atomic commit; small ones of the same dtype and shape share pages.

        Args:
            name: The dataset.
            tensors: A stacked tensor or array ``[N, ...]``, or an iterable of them, which may be larger than memory.
            metadata: One mapping a record: a sequence or iterable, an Arrow table or a DataFrame.
            record_ids: Ids of your own, the names that the config's rules go by; generated when None.
            progress: Show a progress bar.

        Returns:
            The record ids, in order.

        Raises:
            AlreadyExistsError: An id is taken or comes twice; nothing was inserted.
            InvalidInputError: Something cannot be stored or lengths differ; nothing was inserted.
        """
        return self._inserter.insert_many(name, tensors, metadata, record_ids, self._db.config, progress)

    def import_from(
        self,
        name: str,
        source: Any,
        *,
        tensor: str | None = None,
        record_id: str | None = None,
        metadata: Any = None,
        format: str | None = None,  # noqa: A002
        preset: str | CompressionConfig | None = None,
        create: bool = True,
        progress: bool = False,
    ) -> list[str]:
        """Insert what another library or a file holds, streamed, in one atomic commit.

        Args:
            name: The dataset.
            source: A stacked array or tensor (NumPy, DLPack); a dict of arrays of equal length; anything of Arrow
                (table, batches, reader, dataset, and what has ``__arrow_c_stream__``: polars, DuckDB, pandas); a
                dataset of Hugging Face; a torch Dataset or an iterable of tensors, ``(tensor, label)`` or dicts; or
                the path of an ``.npy``, ``.npz``, ``.safetensors``, ``.parquet`` (also a pattern) or ``.arrow`` file,
                or of a folder of pictures, whose subfolders are labels.
            tensor: Column of the tensors (default: the only one of lists of numbers; of several that named "tensor").
            record_id: Column, or metadata field, that becomes the record ids (default: they are generated).
            metadata: Columns that become metadata (default: all others); for a source without columns one mapping a
                record, as for `insert_many`.
            format: Format of a path whose name does not say it: npy, npz, safetensors, parquet, arrow or images.
            preset: What to encode with, a name or a config (default: the dataset's, or else the storage's).
            create: Create the dataset if there is none, in the same commit.
            progress: Show a progress bar.

        Returns:
            The record ids, in order.

        Raises:
            InvalidInputError: The source is damaged or does not say which column is the tensor; nothing was inserted.
            AlreadyExistsError: A record id is taken or comes twice; nothing was inserted.
            MissingDependencyError: A package that reads it is not installed.

        >>> with TensorStorage(None) as db:
        ...     keys = db.import_from("points", {"xyz": torch.ones(5, 3), "label": list("aabbb")})
        ...     db.count("points", "metadata.label = 'b'")
        3
        """
        return importing.import_from(
            self._inserter, name, source, tensor=tensor, record_id=record_id, metadata=metadata, format=format,
            preset=preset, create=create, progress=progress,
        )  # fmt: skip

    def get_tensor_by_id(
        self,
        name: str,
        record_id: str,
        *,
        index: Any = None,
        out: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        copy: bool = True,
    ) -> Record:
        """Return one record.

        Args:
            name: The dataset.
            record_id: The record.
            index: An int, slice, ``...`` or tuple of them: decode only what it picks.
            out: Tensor of the result's shape and dtype to decode into; it becomes the record's tensor.
            device: Where the tensor goes (default: the CPU).
            copy: False for a tensor that aliases what is stored, without reading it into memory of its own: only of
                what is stored as it is, as the preset ``"none"`` does. It stays valid when the record is deleted and
                the database closed. Never write to it: torch has no read-only tensors, so that writing ends the process
                (SIGSEGV) or, in memory, may damage the record. Checksums are verified before it is handed out.

        Raises:
            TensorNotFoundError: The dataset has no such record.
            IntegrityError: Its stored bytes are damaged.
            InvalidInputError: With ``copy=False``, when the record is compressed or quantized, the index runs
                backwards, or `out` or `device` is given.
        """
        return lookup.get(self._db, name, record_id, index=index, out=out, device=device, copy=copy)

    def get_many(self, name: str, record_ids: Sequence[str]) -> list[Record]:
        """Return records in the order asked for, decoded in parallel; one that is missing is an error.

        Small tensors that were inserted together are decoded together, and share memory without overlapping: clone one
        to keep it without the others.
        """
        return lookup.get_many(self._db, name, record_ids)

    def get_dataset(self, name: str) -> list[torch.Tensor]:
        """Return the tensors of a dataset in insertion order; `scan` goes through it in bounded memory."""
        return [record.tensor for record in lookup.everything(self._db, name)]

    def get_dataset_with_metadata(self, name: str) -> list[Record]:
        """Return the records of a dataset in insertion order."""
        return lookup.everything(self._db, name)

    def query(
        self,
        name: str,
        where: Where = None,
        *,
        params: Params = None,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> list[Record]:
        """Return the records that match.

        Args:
            name: The dataset.
            where: A DuckDB SQL condition over ``record_id, created_at, dtype, shape, nbytes, metadata, stats``, such as
                ``"metadata.loss < 0.5 AND stats.norm > 100"``; a missing field is NULL (`sql` says what ``stats`` has).
                Or a function of tensor and metadata, which decodes every record. None: all.
            params: Values for ``?`` (a sequence) or ``$name`` (a mapping) in the condition.
            order_by: SQL expressions, such as ``"metadata.loss DESC"`` (default: insertion order).
            limit: Largest number of records.

        Raises:
            InvalidQueryError: DuckDB refuses the condition, as for a field that no record has; the message names it.
        """
        return lookup.select(self._db, name, where, queries.decoding_selection(where, params, order_by, limit))

    def scan(
        self,
        name: str,
        where: str | None = None,
        *,
        params: Params = None,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Record]:
        """Iterate over the records that match now, like `query` but with about 32 MB of decoded tensors at a time."""
        return lookup.scan(self._db, name, queries.selection(where, params, order_by, limit))

    def search(
        self,
        name: str,
        query: Any,
        k: int = 10,
        *,
        metric: Literal["cosine", "l2", "dot"] = "cosine",
        where: str | None = None,
        params: Params = None,
    ) -> SearchResult | list[SearchResult]:
        """Return the records whose vectors are nearest to one or more query vectors, exactly.

        Every record that matches is compared, so that nothing is missed. Decoded vectors are kept for the next search,
        up to 256 MiB (`search.blocks.CACHE_NBYTES`); a larger dataset is decoded in part at each search, and never all
        in memory.

        Args:
            name: The dataset. Its records, or those that match, must all be vectors of the query's length; dtypes may
                differ. Quantized ones are compared by what they decode to.
            query: A vector ``[elements]`` or a stack ``[queries, elements]``: a tensor, an array or a list of real
                numbers, finite, and for ``"cosine"`` not all zeros.
            k: Number of hits; all records when there are fewer.
            metric: ``"cosine"``: of the angle, 0 for a record of zeros. ``"dot"``: dot product. ``"l2"``: Euclidean
                distance, nearest first.
            where: Condition as in `query`; pages without a record that matches are not read.
            params: Values for the condition.

        Returns:
            The hits, nearest first; of equal scores the one inserted first. For a stack a list with one such result a
            query. Scores are computed in float64 from the stored values. A record with NaN or infinities comes last,
            with the score NaN.

        Raises:
            InvalidInputError: The query cannot be compared, or a record that matches is of another shape or complex.

        >>> with TensorStorage(None) as db:
        ...     db.create_dataset("words")
        ...     _ = db.insert_many("words", torch.eye(3), [{"word": word} for word in ("a", "b", "c")])
        ...     for hit in db.search("words", [0.1, 0.9, 0.0], k=2):
        ...         print(hit.record.metadata["word"], round(hit.score, 3))
        b 0.994
        a 0.11
        """
        return self._searcher.search(name, query, k, metric, where, params)

    def sample_dataset(
        self,
        name: str,
        n_samples: int,
        *,
        seed: int | None = None,
        where: str | None = None,
        params: Params = None,
    ) -> list[Record]:
        """Return records drawn uniformly without replacement, in random order.

        Args:
            name: The dataset.
            n_samples: How many; more than there are gives all of them, shuffled.
            seed: The same seed on the same records draws the same.
            where: Condition as in `query`.
            params: Values for the condition.
        """
        return lookup.sample(self._db, name, n_samples, seed, queries.selection(where, params))

    def get_records_paginated(
        self,
        name: str,
        offset: int = 0,
        limit: int = 100,
        *,
        where: str | None = None,
        params: Params = None,
        order_by: str | None = None,
    ) -> Page:
        """Return the records from position `offset` on; the page knows the `total` and the `next` offset."""
        return lookup.page(self._db, name, offset, limit, queries.selection(where, params, order_by))

    def dataset(
        self,
        name: str,
        where: str | None = None,
        *,
        params: Params = None,
        columns: str | Sequence[str] = "tensor",
        transform: Callable[[Any], Any] | None = None,
        order_by: str | None = None,
    ) -> TensorDataset:
        """Return the records that match now for a `torch.utils.data.DataLoader`, map-style or by ``.stream()``.

        Args:
            name: The dataset.
            where: Condition as in `query`.
            params: Values for the condition.
            columns: ``"tensor"``, ``"record_id"``, ``"created_at"`` or a metadata field (``"a.b"`` of a nested one):
                one name makes items its values, several make them tuples. Numbers that every record has become
                tensors in batches; values have the type that SQL knows the field by.
            transform: What each item goes through; picklable where workers are spawned.
            order_by: As in `query`.

        Raises:
            InvalidInputError: No record has such a field.
            InvalidQueryError: DuckDB refuses the condition.
        """
        return TensorDataset(
            self._db, name, where, params=params, columns=columns, transform=transform, order_by=order_by
        )

    def update_tensor_metadata(
        self, name: str, record_id: str, metadata: Mapping[str, Any] | None, *, merge: bool = False
    ) -> None:
        """Replace a record's metadata, or with `merge` only the fields given; the tensor is not touched."""
        changes.update_metadata(self._db, name, record_id, metadata, merge=merge)

    def delete_tensor(self, name: str, record_id: str) -> None:
        """Delete one record; TensorNotFoundError when there is none."""
        changes.delete_record(self._db, name, record_id)

    def delete_where(self, name: str, where: str, *, params: Params = None) -> int:
        """Delete the records that match and return how many they were."""
        return changes.delete_where(self._db, name, queries.selection(where, params))

    def create_index(self, name: str, field: str) -> None:
        """Make an index on a metadata field of text, for conditions that need ``metadata.field = 'text'`` to be true.

        Worth while where few records of hundreds of thousands have the text. Numbers, ranges and `sql` would win
        nothing. Each insert, update and delete then takes some milliseconds more.

        Args:
            name: The dataset.
            field: Such as ``"label"`` or ``"model.name"``.

        Raises:
            InvalidInputError: No record has the field, or it is no text.
            AlreadyExistsError: It has an index.
        """
        indexing.create_index(self._db, name, field)

    def drop_index(self, name: str, field: str) -> None:
        """Drop the index on a metadata field; NotFoundError when it has none."""
        indexing.drop_index(self._db, name, field)

    def list_indexes(self, name: str) -> list[str]:
        """Return the metadata fields of a dataset that have an index."""
        return indexing.list_indexes(self._db, name)

    def transaction(self) -> AbstractContextManager[None]:
        """Return a ``with`` block whose writes are all or nothing, over any datasets; blocks nest.

        An exception that leaves the block undoes everything. DuckDB has no savepoints: after an error of SQL, even in a
        query, or one in the middle of a write, or one that left an inner block which had written, the whole transaction
        can only roll back. Other processes and threads wait meanwhile.
        """
        self.checkpoints.wait()  # which could not be written while this thread holds the catalog
        return self._db.catalog.transaction()

    def sql(self, query: str, params: Params = None) -> pa.Table:
        """Run one read-only SQL statement over datasets and the history of checkpoints; no payload is read.

        Each dataset is a view with one row a record: ``record_id, created_at`` (UTC)``, dtype, shape, nbytes,
        metadata`` (a struct)``, stats`` (a struct of what the values given at insert were, before any quantization:
        ``min, max, mean, std`` (of the population) and ``norm`` (L2), all of the finite values and NULL where there are
        none, but for the norm, then 0``; zeros, non_finite`` (how many values are zero; NaN or infinite). Complex
        numbers count by their magnitude. Records of releases before it have NULL.)

        ``history.runs`` has one row a run: ``run, created_at, checkpoints`` (how many)``, latest_step, latest_at,
        nbytes, added_nbytes``.

        ``history.checkpoints`` has one row a checkpoint: ``checkpoint_id, run, step, epoch, created_at`` (UTC)``,
        parent_id, tags`` (a list)``, metrics`` (a map of DOUBLE: ``metrics['loss']``, NULL where it is missing; NaN
        sorts as the largest)``, metadata`` (JSON: ``metadata->>'lr'`` is text)``, tensors`` (how many)``, nbytes``
        (raw)``, stored_nbytes`` (all that it names, shared or not)``, added_nbytes`` (what was new with it).

        ``history.tensors`` has one row a tensor of a checkpoint: ``checkpoint_id, run, step, position`` (its order)``,
        role`` (``'model'``, ``'optimizer'``, …)``, name, dtype, shape, nbytes, stored_nbytes, compression,
        quantization, relative_l2, max_abs`` (what quantizing lost)``, norm`` (L2, of floats)``, deltas`` (how many its
        chain has up to it, 0 when stored by itself; any is read with one base)``, content_id`` (equal for equal
        content).

        ``history.weights`` has one row a label of a weight or of a delta: ``hash, name, layer_type, model_name,
        metadata, dtype, shape, nbytes, stored_nbytes, compression, quantization, relative_l2, max_abs, base_hash`` (of
        a delta)``, max_error`` (that it was allowed)``, deltas`` (as above)``, created_at`` (UTC).

        >>> with TensorStorage(None) as db:
        ...     for step in range(3):
        ...         _ = db.checkpoints.save("a", {"w": torch.ones(4)}, step=step, metrics={"loss": (step - 1) ** 2})
        ...     best = "SELECT run, arg_min(step, metrics['loss']) AS step FROM history.checkpoints GROUP BY run"
        ...     db.sql(best).to_pylist()
        [{'run': 'a', 'step': 1}]

        Returns:
            An Arrow table; ``.to_pandas()`` and ``.to_pylist()`` are a step away.
        """
        return queries.sql(self._db, query, params)

    def set_compression_preset(self, name: str) -> None:
        """Write with this preset from now on; what is stored stays readable as it is."""
        self._db.config = get_compression_preset(name)

    def set_compression_config(self, config: CompressionConfig) -> None:
        """Write with this config from now on; what is stored stays readable as it is."""
        if not isinstance(config, CompressionConfig):
            raise InvalidInputError(f"config is a {type(config).__name__}; give a CompressionConfig")
        self._db.config = config

    def get_compression_stats(self, name: str | None = None) -> CompressionStats:
        """Return what is stored against what it would take raw, for one dataset or all."""
        return statistics.compression_stats(self._db, name)

    def verify(self, name: str | None = None) -> VerifyReport:
        """Read every stored byte back and report each damaged record."""
        return self.maintenance.verify(name)

    def __enter__(self) -> TensorStorage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., TensorStorage], tuple[Any, ...]]:
        if self._folder is None:
            raise InvalidInputError("a database in memory cannot be pickled; open one in a folder to share it")
        settings = self._db.read_only, self._busy_timeout, self.cache.config
        return _reopen, (str(self._folder), self._db.config.to_dict(), *settings)

    def __repr__(self) -> str:
        place = "in memory" if self._folder is None else repr(str(self._folder))
        return f"TensorStorage({place}{', read_only=True' if self._db.read_only else ''})"

    def _repr_html_(self) -> str:
        rows = queries.overview(self._db)
        return html_table(["dataset", "records", "raw bytes", "stored bytes", "ratio"], rows, caption=repr(self))


def _reopen(
    path: str, config: dict[str, Any], read_only: bool, busy_timeout: float, cache: CacheConfig | None
) -> TensorStorage:
    compression = CompressionConfig.from_dict(config)
    return TensorStorage(
        path, compression_config=compression, read_only=read_only, busy_timeout=busy_timeout, cache=cache
    )


def _config(preset: str | None, config: CompressionConfig | None) -> CompressionConfig | None:
    if preset is not None and config is not None:
        raise InvalidInputError("both compression_preset and compression_config were given; give one")
    if config is not None and not isinstance(config, CompressionConfig):
        raise InvalidInputError(f"compression_config is a {type(config).__name__}; give a CompressionConfig")
    return config if preset is None else get_compression_preset(preset)


def _check_timeout(seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 86400:
        raise InvalidInputError(f"busy_timeout is {seconds!r}; it is a number of seconds from 0 to 86400")
    return float(seconds)


def _check_cache(cache: Any) -> CacheConfig | None:
    if cache is not None and not isinstance(cache, CacheConfig):
        raise InvalidInputError(f"cache is {cache!r}; give a CacheConfig, or None for no cache")
    return cache


def _folder(storage_path: Any, read_only: bool) -> Path | None:
    if storage_path is None:
        return None
    path = os.fspath(storage_path) if isinstance(storage_path, str | os.PathLike) else storage_path
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise InvalidInputError(f"storage_path is {storage_path!r}; give the path of a folder, or None for memory")
    folder = Path(os.path.abspath(Path(path).expanduser()))
    if read_only:
        # Before anything is opened: the lock files of a database that is not there would be created.
        if not (folder / "catalog.duckdb").exists():
            raise NotFoundError(f"there is no database in {str(folder)!r}; open the folder for writing to create one")
        return folder
    try:
        if not folder.exists():
            make_folders(folder)
    except OSError as error:
        raise StoreError(f"the folder {str(folder)!r} cannot be created: {error}; choose another place") from error
    return folder
