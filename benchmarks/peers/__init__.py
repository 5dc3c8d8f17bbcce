"""The competitors, each behind the same `Store` interface, in the order of the printed columns."""

from __future__ import annotations

import importlib.util

from peers.base import Store
from peers.lance_dataset import LanceByRow, LanceDataset
from peers.safetensors_folder import SafetensorsFolder
from peers.sqlite_rows import SQLiteRows
from peers.tensordb_storage import TensorDBStorage

STORES: tuple[type[Store], ...] = (TensorDBStorage, LanceDataset, SQLiteRows, SafetensorsFolder)


def installed_stores() -> tuple[type[Store], ...]:
    """The competitors whose packages are installed."""
    return tuple(store for store in STORES if importlib.util.find_spec(store.package))


__all__ = ["STORES", "LanceByRow", "LanceDataset", "Store", "installed_stores"]
