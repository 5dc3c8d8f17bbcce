"""The one place where a tensor is written or read: binds encoding, payloads and catalog."""

from tensordb.engine.database import Database
from tensordb.engine.reader import Located, ObjectReader
from tensordb.engine.sources import ObjectSource, ObjectSources
from tensordb.engine.writer import BaseGoneError, ObjectWriter, Stored

__all__ = [
    "BaseGoneError",
    "Database",
    "Located",
    "ObjectReader",
    "ObjectSource",
    "ObjectSources",
    "ObjectWriter",
    "Stored",
]
