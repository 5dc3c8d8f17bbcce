"""The one place where a tensor is written or read: binds encoding, payloads and catalog."""

from tensordb.engine.caching import Cache, CacheConfig, CacheStats, Place, TensorCache
from tensordb.engine.database import Database
from tensordb.engine.reader import Located, ObjectReader
from tensordb.engine.sources import ObjectSource, ObjectSources
from tensordb.engine.writer import BaseGoneError, ObjectWriter, Stored

__all__ = [
    "BaseGoneError",
    "Cache",
    "CacheConfig",
    "CacheStats",
    "Database",
    "Located",
    "ObjectReader",
    "ObjectSource",
    "ObjectSources",
    "ObjectWriter",
    "Place",
    "Stored",
    "TensorCache",
]
