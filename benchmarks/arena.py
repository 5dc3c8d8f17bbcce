"""The filled stores that the cases of `records.py` race against each other.

Each kind of content is loaded once, on first use, into a fresh folder per competitor, checked bit for bit against the
originals, and shared by the cases that read it. Closing the arena removes every folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from data import Weights, embedding_rows, large_tensors, metadata
from measure import Timing, same_bytes, timed
from peers import LanceByRow, Store
from torch import Tensor

CHUNK = 100_000
CHECKED = 64
# Seconds: a load that takes longer is not repeated.
LONG_LOAD = 20.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a run does.

    Attributes:
        rows: Embedding rows of 1,536 bytes.
        large_count, large_elements: Number of the large tensors, and their float32 elements.
        filter_rows: Records of the metadata filter.
        loads: Repetitions of `insert_many`.
        rounds: Repetitions of everything short.
        subprocess_peers: Whether peers take part where each repetition starts a Python interpreter.
    """

    rows: int
    large_count: int
    large_elements: int
    filter_rows: int
    loads: int
    rounds: int
    subprocess_peers: bool


TINY = Sizes(2_000, 8, 16_384, 5_000, loads=1, rounds=5, subprocess_peers=False)
FULL = Sizes(100_000, 1_000, 262_144, 1_000_000, loads=3, rounds=300, subprocess_peers=True)


@dataclass
class Filled:
    """Every competitor's store with the same content.

    Attributes:
        stores: Open store by competitor.
        ids: Ids by competitor, in insertion order.
        loading: Time of `insert_many` by competitor.
        nbytes: Raw bytes of the tensors.
    """

    stores: dict[str, Store] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    loading: dict[str, Timing] = field(default_factory=dict)
    nbytes: int = 0

    def readers(self) -> dict[str, Store]:
        """The stores, and Lance once more for callers who know row numbers."""
        if "lance" not in self.stores:
            return dict(self.stores)
        return {**self.stores, LanceByRow.name: LanceByRow(self.stores["lance"].path)}

    def ids_of(self, reader: str) -> list[str]:
        """Ids as a reader knows them."""
        return self.ids["lance" if reader == LanceByRow.name else reader]

    def close(self) -> None:
        """Close every store."""
        for store in self.stores.values():
            store.close()


class Arena:
    """Competitors, sizes, data and folders of one run."""

    def __init__(self, folder: Path, sizes: Sizes, weights: Weights, competitors: Sequence[type[Store]]) -> None:
        self.folder = folder
        self.sizes = sizes
        self.weights = weights
        self.competitors = tuple(competitors)

    @cached_property
    def matrix(self) -> Tensor:
        """The embedding rows, float32 ``[rows, 384]``."""
        return embedding_rows(self.weights, self.sizes.rows)

    @cached_property
    def rows(self) -> Filled:
        """Stores that hold the embedding rows."""
        self._warm_up()
        return self._fill("rows", self.matrix, self.sizes.loads)

    @cached_property
    def large(self) -> Filled:
        """Stores that hold the large tensors."""
        return self._fill("large", large_tensors(self.weights, self.sizes.large_count, self.sizes.large_elements), 1)

    @cached_property
    def scored(self) -> Filled:
        """Stores that hold many small tensors, whose first element is their number, to be found by metadata."""
        tensors = torch.rand(self.sizes.filter_rows, 4)
        tensors[:, 0] = torch.arange(self.sizes.filter_rows)
        return self._fill("scored", tensors, 1, [store for store in self.competitors if store.filters])

    def close(self) -> None:
        """Close the stores that were filled; the folders go with the run's temporary folder."""
        for kind in ("rows", "large", "scored"):
            if kind in self.__dict__:
                self.__dict__[kind].close()

    def _warm_up(self) -> None:
        # First calls import, start threads and allocate: none of that belongs to a measured load.
        few = Arena(self.folder, TINY, self.weights, self.competitors)
        few._fill("warm-up", self.matrix[:1_000], 1).close()

    def _fill(
        self, kind: str, tensors: Tensor | list[Tensor], loads: int, competitors: Sequence[type[Store]] | None = None
    ) -> Filled:
        filled = Filled(nbytes=sum(tensor.nbytes for tensor in tensors))
        seconds: dict[str, list[float]] = {}
        for repetition in range(loads):
            for competitor in self.competitors if competitors is None else competitors:
                if competitor.name in filled.stores:
                    continue
                store = competitor(self.folder / f"{kind}-{competitor.name}-{repetition}")
                seconds.setdefault(store.name, []).append(sum(_load(store, tensors, filled.ids)))
                if repetition == loads - 1 or seconds[store.name][-1] > LONG_LOAD:
                    filled.stores[store.name] = store
                else:
                    store.close()
                    shutil.rmtree(store.path)
        filled.loading = {name: Timing(tuple(values)) for name, values in seconds.items()}
        # The order of columns, whoever finished loading first.
        filled.stores = {store.name: filled.stores[store.name] for store in self.competitors if store.name in seconds}
        for name, store in filled.stores.items():
            store.prepare_reads()
            _check(store, filled.ids[name], tensors)
        return filled


def _load(store: Store, tensors: Tensor | list[Tensor], ids: dict[str, list[str]]) -> Iterator[float]:
    """Insert in chunks whose metadata fits into memory; yield the seconds of each."""
    ids[store.name] = []
    for start in range(0, len(tensors), CHUNK):
        chunk = tensors[start : start + CHUNK]
        source = chunk if isinstance(chunk, Tensor) else iter(chunk)
        fields = metadata(start, len(chunk))
        yield timed(_insertion(store, source, fields, ids[store.name]))


def _insertion(
    store: Store, source: Tensor | Iterator[Tensor], fields: list[dict[str, object]], ids: list[str]
) -> Callable[[], None]:
    return lambda: ids.extend(store.insert_many(source, fields))


def _check(store: Store, ids: list[str], originals: Tensor | list[Tensor]) -> None:
    picks = torch.randint(len(originals), (CHECKED,), generator=torch.Generator().manual_seed(1)).tolist()
    many = store.get_many([ids[pick] for pick in picks])
    for pick, found in zip(picks, many, strict=True):
        if not (same_bytes(found, originals[pick]) and same_bytes(store.get(ids[pick]), originals[pick])):
            raise AssertionError(f"{store.name} returned other bytes for record {ids[pick]} than were stored")
    last = len(originals) - 5
    if not all(map(same_bytes, store.page(last, 5), originals[last:])):
        raise AssertionError(f"{store.name} returned other bytes for the page at {last} than were stored")
