"""Salvaging a database that cannot be opened: what can still be read goes into a new folder.

Invariants: the damaged database is only read; nothing is left out in silence. What the catalog knows (names, metadata,
checkpoints) is kept as long as any part of the catalog opens: what its checksums tell to be wrong is put right, it is
written anew from its rows, and rows that are lost from whatever else tells them. Tensors whose names are lost are kept
without; where no part opens, all that are found in the segment files, those of deleted records that were not reclaimed
yet among them. Errors of the system cost nothing: they are raised, and the salvage can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import duckdb

from tensordb import files
from tensordb.catalog.block_mending import damaged_metadata, mend, trust
from tensordb.catalog.blocks import check
from tensordb.catalog.failures import is_damage
from tensordb.catalog.locks import CatalogLocks
from tensordb.catalog.proving import mend_headers, mend_padding
from tensordb.catalog.rebuilding_apart import rebuild_apart
from tensordb.catalog.reconciling import Reconciled, reconcile
from tensordb.catalog.remaking import REMADE, remake, remake_specs
from tensordb.encoding import PayloadReader
from tensordb.engine.chaining import UNREADABLE, readers_of
from tensordb.engine.recovering import database_id_in, objects_in, spec_in
from tensordb.engine.scanning import Place, payloads_in
from tensordb.errors import AlreadyExistsError, IntegrityError, NotFoundError, StoreError
from tensordb.maintenance import RepairReport
from tensordb.payloads.files import make_folders, store_error, write_all
from tensordb.payloads.writer import segment_of
from tensordb.storage import TensorStorage
from tensordb.tensors import nbytes_of

DATASET = "salvaged"
"""Where tensors go whose names are lost."""
_AGAIN = REMADE | {"specs", "objects", "deltas"}
"""Tables whose rows are made anew from what else there is."""
_NAMING = frozenset({"checkpoints", "checkpoint_tensors", "weights"})
"""Tables that name objects, beside those of records."""
_WITH_IT = "with names, metadata, checkpoints and the smallest tensors"
_UNPROVEN = "the proof that the names, types and numbers of rows in block {} of the catalog are right: some byte is not"
_PIECE = 1 << 20
"""Bytes that are copied at once, and given up together where the disk returns an error."""


def salvage(source: Path, target: Path, *, busy_timeout: float = 30.0) -> RepairReport:
    """Copy what can still be read of a database into a new one, whose damaged parts are removed.

    Args:
        source: Folder of the damaged database; it is not changed.
        target: Folder of the new one; it must not exist.
        busy_timeout: Seconds to wait for those who use the source.

    Returns:
        What was left out. When no part of the catalog opens, the tensors that segments hold are in the dataset
        ``"salvaged"``, with their place in the metadata, and small ones, which only the catalog held, are lost.

    Raises:
        AlreadyExistsError: `target` exists.
        NotFoundError: `source` is no folder of a database.
        StorageFullError: The disk of `target` is full; nothing is left there.
        FormatError: The catalog is of a newer release.
        StoreError: The system fails in another way, such as for want of memory; nothing is left there.
    """
    if not (source / "catalog.duckdb").exists() and not (source / "segments").is_dir():
        raise NotFoundError(f"{str(source)!r} holds neither a catalog nor segments; give the folder of a database")
    _make_new(target)
    try:
        lost = _copied(source, target, busy_timeout)
        found = _with_catalog(target)
    except OSError as error:
        files.remove_tree(target)
        raise store_error("salvaging a database to", target, error) from error
    except BaseException:
        files.remove_tree(target)  # ours alone, and nothing in it that the source has not
        raise
    return replace(found, not_salvaged=(*lost, *found.not_salvaged))


def _make_new(target: Path) -> None:
    try:
        make_folders(target.parent)
        files.make_folder(target)
        files.sync_directory(target.parent)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{str(target)!r} exists; give the path of a new folder") from error
    except OSError as error:
        raise store_error("copying a database to", target, error) from error


def _copied(source: Path, target: Path, busy_timeout: float) -> list[str]:
    """Copy a database that nobody writes to meanwhile; return what cannot be read."""
    try:
        locks = CatalogLocks(source, read_only=True)
        locks.acquire(exclusive=False, deadline=time.monotonic() + busy_timeout)
        try:
            return _copy(source, target)
        finally:
            locks.release()
            locks.close()
    except OSError as error:
        raise store_error("copying a database to", target, error) from error


def _copy(source: Path, target: Path) -> list[str]:
    """Copy the files of a database; return which cannot be read."""
    lost = []
    make_folders(target / "segments")
    segments = sorted((source / "segments").glob("*.seg"))
    for file in [source / "catalog.duckdb", source / "catalog.duckdb.wal", *segments]:
        if file.exists():
            try:
                content = file.open("rb")
            except OSError as error:
                lost.append(f"{file.relative_to(source)} cannot be read: {error.strerror}")
                continue
            with content:
                lost += _copy_file(content, target / file.relative_to(source))
    files.sync_directory(target / "segments")
    files.sync_directory(target)
    return lost


def _copy_file(content: BinaryIO, place: Path) -> list[str]:
    """Copy a file to the disk; return what of it cannot be read, in whose place there are zeros."""
    lost = []
    descriptor = files.open_file(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        nbytes = os.fstat(content.fileno()).st_size
        for begin in range(0, nbytes, _PIECE):
            try:
                piece = os.pread(content.fileno(), _PIECE, begin)
            except OSError as error:
                end = min(begin + _PIECE, nbytes)
                lost.append(f"bytes {begin} to {end} of {place.name} cannot be read: {error.strerror}")
                piece = bytes(end - begin)
            write_all(descriptor, [memoryview(piece)])
        files.sync_file(descriptor)
    finally:
        os.close(descriptor)
    return lost


def _with_catalog(target: Path) -> RepairReport:
    """Repair the copy, if need be without its write-ahead log, if need be from its segments alone."""
    catalog, log = target / "catalog.duckdb", target / "catalog.duckdb.wal"
    lost, unproven = [] if catalog.exists() else [f"the catalog, which is missing, {_WITH_IT}"], list[str]()
    mended = _mended(catalog) if catalog.exists() else []
    while catalog.exists():
        try:
            found = _repaired(target, _rebuilt(target))
            told = (*lost, *unproven, *found.not_salvaged)
            return replace(found, not_salvaged=told, mended_catalog=tuple(mended))
        except Exception as error:
            if not _is_damage(error):
                raise
            if damaged := damaged_metadata(catalog):
                trust(catalog, damaged)
                unproven += [_UNPROVEN.format(block) for block in damaged]
                continue
            if log.exists():
                lost.append(f"the catalog's write-ahead log, with what was written last: {error}")
                files.unlink(log)
                continue
            lost.append(f"the catalog, {_WITH_IT}: {error}")
            break
    return _from_segments(target, lost)


def _mended(catalog: Path) -> list[str]:
    """Put right what the catalog's checksums tell; return what that was."""
    told = mend_headers(catalog) + mend(catalog)
    return told + mend_padding(catalog) if check(catalog).damaged else told


def _is_damage(error: Exception) -> bool:
    """Whether the catalog cannot be read because of what it holds: all else passes, and must cost nothing."""
    if isinstance(error, StoreError):
        return isinstance(error.__cause__, duckdb.Error) and is_damage(error.__cause__)
    return isinstance(error, IntegrityError)


def _rebuilt(target: Path) -> Reconciled:
    """Write the catalog anew; return what of it is lost, and whose names are."""
    catalog, segments = target / "catalog.duckdb", target / "segments"
    rows = rebuild_apart(catalog)
    lost = [f"up to {n:,} rows of the catalog's table {name!r}" for name, n in rows.items() if name not in _AGAIN]
    if rows.keys() & REMADE:
        lost += remake(catalog, database_id_in(segments))
    if "runs" in rows:
        lost.append("runs without checkpoints, if there were any")
    # Whether all of these are found, the records that name them tell.
    found = reconcile(catalog, list(objects_in(segments)) if rows.keys() & {"objects", "deltas"} else [])
    lost += found.lost
    if "specs" in rows:
        lost += remake_specs(catalog, lambda sample: spec_in(segments, sample), nbytes_of)
        lost += reconcile(catalog).lost  # of the objects that lose their names by it no payload can be read
    names_are_lost = any(name in _NAMING or name.startswith("records_") for name in rows)
    if names_are_lost and "objects" in rows:
        lost.append("which tensors were deleted: some of them may be among those whose names are lost")
    return Reconciled(lost, found.unnamed if names_are_lost else {})


def _repaired(target: Path, rebuilt: Reconciled) -> RepairReport:
    """Repair the copy, whose catalog was written anew, and keep the tensors whose names are lost."""
    lost = rebuilt.lost
    with TensorStorage(target) as db:
        for name in db.list_datasets():
            for each in db.list_indexes(name):
                db.drop_index(name, each)
                db.create_index(name, each)
        if rebuilt.unnamed:  # before segments are written anew, without what nothing names
            lost += _keep_unnamed(db, target / "segments", rebuilt.unnamed)
        found = db.maintenance.repair()
    return replace(found, not_salvaged=tuple(lost))


def _keep_unnamed(db: TensorStorage, segments: Path, unnamed: Mapping[tuple[int, int], str | None]) -> list[str]:
    """Insert the tensors at these places into a dataset of their own; return what is lost."""
    dataset = DATASET
    while db.dataset_exists(dataset):
        dataset += "-"
    db.create_dataset(dataset)
    kept = set[tuple[int, int]]()
    told = list(_keep(db, dataset, segments, unnamed, kept))
    if kept:
        told.append(f"the names of {db.count(dataset):,} tensors, which are in the dataset {dataset!r} now")
    else:
        db.delete_dataset(dataset)
    if missing := len(unnamed) - len(kept):
        told.append(f"{missing:,} payloads that nothing names any more, and that cannot be read")
    return told


def _from_segments(target: Path, lost: list[str]) -> RepairReport:
    """Make the database anew of the tensors in its segments, one after the other."""
    old = target / "segments.old"
    files.rename(target / "segments", old)
    for name in ("catalog.duckdb", "catalog.duckdb.wal", "catalog.duckdb.new", "catalog.duckdb.rebuilt"):
        with contextlib.suppress(FileNotFoundError):
            files.unlink(target / name)
    with TensorStorage(target) as db:
        db.create_dataset(DATASET)
        lost += _keep(db, DATASET, old, None, set())
        count = db.count(DATASET)
    files.remove_tree(old)
    return RepairReport(dry_run=False, records=count, not_salvaged=tuple(lost))


def _keep(
    db: TensorStorage,
    dataset: str,
    segments: Path,
    only: Mapping[tuple[int, int], str | None] | None,
    kept: set[tuple[int, int]],
) -> Iterator[str]:
    """Insert tensors of segments into a dataset, all or those at the places given; yield what cannot be read."""
    places: list[Place] = []
    for file in sorted(segments.iterdir()):
        for found in payloads_in(file):
            if isinstance(found, Place):
                places.append(found)
            elif only is None:
                yield found
    for place, reader in readers_of(places):
        key = (segment_of(place.file.name) or 0, place.begin)
        if only is None or key in only:
            try:
                _insert(db, dataset, place, reader, only[key] if only is not None else None)
                kept.add(key)
            except UNREADABLE as error:
                yield f"the tensor in {place.file.name} at byte {place.begin}: {error}"


def _insert(db: TensorStorage, dataset: str, place: Place, reader: PayloadReader | Exception, name: str | None) -> None:
    if isinstance(reader, Exception):
        raise reader
    told = {"segment": place.file.stem, "offset": place.begin, "base": (reader.base_id or b"").hex()}
    tensor = reader.decode()
    if reader.is_page:
        db.insert_many(dataset, tensor, [{**told, "row": row} for row in range(len(tensor))])
    else:
        db.insert(dataset, tensor, told if name is None else {**told, "name": name})
