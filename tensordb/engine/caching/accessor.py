"""What a user sees of the cache: ``db.cache``."""

from __future__ import annotations

from tensordb.engine.caching.cache import TensorCache
from tensordb.engine.caching.config import CacheConfig, CacheStats


class Cache:
    """The cache of an open database, which has none unless it was opened with a `CacheConfig`."""

    def __init__(self, cache: TensorCache | None) -> None:
        self._cache = cache

    @property
    def config(self) -> CacheConfig | None:
        """What it was opened with; None without a cache."""
        return None if self._cache is None else self._cache.config

    def stats(self) -> CacheStats:
        """Return hits by tier, bytes and evictions since the database was opened or the cache cleared."""
        return CacheStats() if self._cache is None else self._cache.stats()

    def clear(self) -> None:
        """Drop everything that is held, and count from zero."""
        if self._cache is not None:
            self._cache.clear()

    def __repr__(self) -> str:
        return "Cache(none)" if self._cache is None else f"Cache({self._cache.config}, {self.stats()})"
