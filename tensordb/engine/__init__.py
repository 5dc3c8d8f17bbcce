"""The one place where a tensor is written or read: binds encoding, payloads and catalog."""

from tensordb.engine.database import Database
from tensordb.engine.reader import Located, ObjectReader
from tensordb.engine.writer import ObjectWriter, Stored

__all__ = ["Database", "Located", "ObjectReader", "ObjectWriter", "Stored"]
