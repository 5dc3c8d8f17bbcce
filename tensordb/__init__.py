"""A tensor database for PyTorch, embedded like DuckDB or SQLite: open a folder, store tensors, ask in SQL."""

import gc as _gc

# Making some ten thousand functions and classes would set off a full collection of all that torch has made, which finds
# nothing and takes as long as all of this.
_collecting = _gc.isenabled()
_gc.disable()
try:
    from tensordb.checkpoints.background import PendingCheckpoint
    from tensordb.checkpoints.checkpoint import Checkpoint, CheckpointList
    from tensordb.checkpoints.diff import CheckpointDiff, TensorDiff
    from tensordb.checkpoints.lazy import LazyTensor
    from tensordb.checkpoints.restoring import LoadReport
    from tensordb.checkpoints.retention import PruneReport
    from tensordb.datasets.record import Page, Record
    from tensordb.datasets.showing import grid
    from tensordb.datasets.statistics import CompressionStats
    from tensordb.encoding.presets import COMPRESSION_PRESETS, CompressionConfig, get_compression_preset
    from tensordb.encoding.quantizers.granularity import PerChannel, PerGroup, PerRow, PerTensor
    from tensordb.encoding.rules import Rule
    from tensordb.engine import CacheConfig, CacheStats
    from tensordb.errors import (
        AlreadyExistsError,
        CheckpointNotFoundError,
        ConflictError,
        DatabaseBusyError,
        DatasetNotFoundError,
        FormatError,
        IntegrityError,
        InvalidInputError,
        InvalidQueryError,
        MissingCodecError,
        MissingDependencyError,
        NotFoundError,
        ReadOnlyError,
        SchemaValidationError,
        StorageFullError,
        StoreError,
        TensorDBError,
        TensorNotFoundError,
        UnknownPresetError,
        UnsupportedFormatError,
        WeightNotFoundError,
    )
    from tensordb.feeding import TensorDataset, TensorStream, collate
    from tensordb.maintenance import (
        DamagedRecord,
        DamagedTensor,
        DamagedWeight,
        ReclaimReport,
        RepairReport,
        Unreadable,
        VerifyReport,
    )
    from tensordb.model import Encoding, MeasuredError, TensorSpec
    from tensordb.search.result import Hit, SearchResult
    from tensordb.storage import TensorStorage
    from tensordb.weights.weight import Weight, WeightInfo, WeightStorageInfo
finally:
    if _collecting:
        if not _gc.get_freeze_count():
            # Counts it all as old, so that the collection is not made up for as soon as there may be one.
            _gc.freeze()
            _gc.unfreeze()
        _gc.enable()

__version__ = "0.1.0"

__all__ = [
    "COMPRESSION_PRESETS",
    "AlreadyExistsError",
    "CacheConfig",
    "CacheStats",
    "Checkpoint",
    "CheckpointDiff",
    "CheckpointList",
    "CheckpointNotFoundError",
    "CompressionConfig",
    "CompressionStats",
    "ConflictError",
    "DamagedRecord",
    "DamagedTensor",
    "DamagedWeight",
    "DatabaseBusyError",
    "DatasetNotFoundError",
    "Encoding",
    "FormatError",
    "Hit",
    "IntegrityError",
    "InvalidInputError",
    "InvalidQueryError",
    "LazyTensor",
    "LoadReport",
    "MeasuredError",
    "MissingCodecError",
    "MissingDependencyError",
    "NotFoundError",
    "Page",
    "PendingCheckpoint",
    "PerChannel",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PruneReport",
    "ReadOnlyError",
    "ReclaimReport",
    "Record",
    "RepairReport",
    "Rule",
    "SchemaValidationError",
    "SearchResult",
    "StorageFullError",
    "StoreError",
    "TensorDBError",
    "TensorDataset",
    "TensorDiff",
    "TensorNotFoundError",
    "TensorSpec",
    "TensorStorage",
    "TensorStream",
    "UnknownPresetError",
    "Unreadable",
    "UnsupportedFormatError",
    "VerifyReport",
    "Weight",
    "WeightInfo",
    "WeightNotFoundError",
    "WeightStorageInfo",
    "collate",
    "get_compression_preset",
    "grid",
]
