"""What is kept in memory of records that are read again: decoded tensors, and encoded payloads."""

from tensordb.engine.caching.accessor import Cache
from tensordb.engine.caching.cache import Place, TensorCache
from tensordb.engine.caching.config import CacheConfig, CacheStats

__all__ = ["Cache", "CacheConfig", "CacheStats", "Place", "TensorCache"]
