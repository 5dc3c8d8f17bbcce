"""What is open while a database is open: its catalog, its payloads, and the two that move tensors between them."""

from __future__ import annotations

from pathlib import Path

from tensordb.catalog import schema
from tensordb.catalog.failures import translated
from tensordb.catalog.generation import Generation
from tensordb.catalog.lease import CatalogLease
from tensordb.catalog.session import Catalog
from tensordb.encoding.presets import CompressionConfig
from tensordb.engine.caching import CacheConfig, TensorCache
from tensordb.engine.reader import ObjectReader
from tensordb.engine.sources import ObjectSources
from tensordb.engine.writer import ObjectWriter
from tensordb.payloads import MemorySegments, PayloadStore, SegmentStore


class Database:
    """One open database folder, or one in memory.

    Attributes:
        folder: The folder, None in memory.
        read_only: Whether writes are refused.
        config: What is written with from now on, where nothing else is asked for.
        catalog: Blocks that read and write the catalog.
        payloads: Where payloads outside the catalog are.
        reader: From catalog rows to tensors.
        sources: From object ids to tensors.
        writer: From tensors to catalog rows.
        cache: What is kept of records that are read again, None without one.
    """

    def __init__(
        self, folder: Path | None, *, read_only: bool, busy_timeout: float, cache: CacheConfig | None = None
    ) -> None:
        """Open the database in `folder`, or one in memory for None; create it when it may be written."""
        self.folder = folder
        self.read_only = read_only
        self.config = CompressionConfig()
        lease = CatalogLease(folder, read_only=read_only, busy_timeout=busy_timeout, on_connect=schema.prepare)
        try:
            self.payloads = self._open_payloads(lease)
        except BaseException:
            lease.close()
            raise
        generation = Generation(folder, read_only=read_only)
        self.catalog = Catalog(
            lease,
            read_only=read_only,
            writing=self.payloads.writing,
            before_commit=self.payloads.flush,
            generation=generation,
        )
        self.cache = None if cache is None else TensorCache(cache, generation, self.payloads.check)
        self.reader = ObjectReader(self.catalog, self.payloads)
        self.sources = ObjectSources(self.payloads)
        self.writer = ObjectWriter(self.catalog, self.payloads, forget=self.reader.forget)

    def close(self) -> None:
        """Let go of everything; closing twice is fine."""
        self.catalog.close()
        self.payloads.close()
        self.reader.forget()
        if self.cache is not None:
            self.cache.clear()

    def _open_payloads(self, lease: CatalogLease) -> PayloadStore:
        database_id = self._database_id(lease)
        if self.folder is None:
            return MemorySegments()
        return SegmentStore(self.folder / "segments", read_only=self.read_only, database_id=database_id)

    def _database_id(self, lease: CatalogLease) -> bytes:
        # Reading first: opening a database does not wait for those that read it, and a newer one is not touched.
        with translated(f"opening {self.folder}"):
            if self.read_only or (self.folder is not None and (self.folder / "catalog.duckdb").exists()):
                try:
                    with lease.connection(write=False) as con:
                        return schema.database_id(con)
                except schema.UpgradeNeededError:
                    if self.read_only:
                        raise
            with lease.connection(write=True) as con:
                return schema.database_id(con)
