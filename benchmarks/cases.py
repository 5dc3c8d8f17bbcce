"""The measures of `records.py`: each case yields rows with every competitor side by side.

Every read ends with an owned tensor whose elements were all read. Cases that change a store come last in `CASES`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

from arena import Arena, Filled
from data import metadata
from measure import Timing, folder_bytes, race, seconds_in_subprocess, timed, touch
from memory import peak_beyond_rows
from peers import Store
from report import US, Row

MANY = 256
PAGE = 100
SCORE = 0.001


def loading(arena: Arena) -> Iterator[Row]:
    """Bulk insert rates of the rows and of the large tensors."""
    rates = {name: arena.sizes.rows / timing.p50 for name, timing in arena.rows.loading.items()}
    yield Row("insert_many", f"insert_many of {arena.sizes.rows:,} rows", "records/s", "higher", rates)
    rates = {name: arena.large.nbytes / timing.p50 / 1e6 for name, timing in arena.large.loading.items()}
    yield Row("insert_large", f"insert_many of {arena.sizes.large_count:,} large tensors", "MB/s", "higher", rates)


def stored(arena: Arena) -> Iterator[Row]:
    """Bytes on disk over raw bytes, with every store closed and whole; the reopening is what `opening` measures."""
    for kind, filled in (("", arena.rows), ("large_", arena.large)):
        what = "large tensors" if kind else "rows"
        payloads = {name: store.payload_bytes() for name, store in filled.stores.items()}
        shares = {name: nbytes / filled.nbytes for name, nbytes in payloads.items() if nbytes is not None}
        if shares:
            yield Row(f"{kind}payloads", f"stored payloads / raw, {what}", "", "lower", shares)
        sizes = {}
        for name, store in filled.stores.items():
            store.close()
            sizes[name] = [size / filled.nbytes for size in folder_bytes(store.path)]
            filled.stores[name] = type(store)(store.path)
        files = {name: size[0] for name, size in sizes.items()}
        blocks = {name: size[1] for name, size in sizes.items()}
        yield Row(f"{kind}stored", f"whole folder / raw, {what}", "", "lower", files)
        yield Row(f"{kind}blocks", f"disk blocks / raw, {what}", "", "lower", blocks)


def opening(arena: Arena) -> Iterator[Row]:
    """Opening a closed store until its first tensor is there."""
    filled = arena.rows
    seconds: dict[str, list[float]] = {name: [] for name in filled.stores}
    for turn in range(min(arena.sizes.rounds, 15) + 1):
        for name, store in list(filled.stores.items()):
            store.close()
            seconds[name].append(timed(partial(_reopen, filled, name, turn)))
    values = {name: Timing(tuple(samples[1:])).p50 * 1e3 for name, samples in seconds.items()}
    yield Row("open", "open and get one row", "ms", "lower", values)


def point_gets(arena: Arena) -> Iterator[Row]:
    """One row at a time, by id, warm."""
    yield from _percentiles("get", "get one row", _gets(arena, arena.rows))


def large_gets(arena: Arena) -> Iterator[Row]:
    """One large tensor at a time, by id, warm."""
    yield from _percentiles(
        "large", f"get one tensor of {arena.sizes.large_elements * 4:,} bytes", _gets(arena, arena.large)
    )


def many_gets(arena: Arena) -> Iterator[Row]:
    """256 random rows in one call."""
    filled, picks = arena.rows, random.Random(2)
    wanted = [picks.sample(range(arena.sizes.rows), MANY) for _ in range(arena.sizes.rounds)]

    def action(name: str, store: Store) -> Callable[[int], object]:
        ids = filled.ids_of(name)
        return lambda turn: touch(store.get_many([ids[pick] for pick in wanted[turn]]))

    yield _median_row("get_many", f"get {MANY} random rows in one call", _race(arena, filled.readers(), action, 5))


def pages(arena: Arena) -> Iterator[Row]:
    """The first page and the last."""
    last = arena.sizes.rows - PAGE
    for key, offset in (("page_first", 0), ("page_last", last)):

        def action(_: str, store: Store, offset: int = offset) -> Callable[[int], object]:
            return lambda _turn: touch(store.page(offset, PAGE))

        yield _median_row(key, f"page of {PAGE} at offset {offset:,}", _race(arena, arena.rows.stores, action, 10))


def filtering(arena: Arena) -> Iterator[Row]:
    """A condition on an unindexed metadata field that matches 0.1 %: counted, and with the tensors."""
    filled = arena.scored
    expected = [field["token"] for field in metadata(0, arena.sizes.filter_rows) if field["score"] < SCORE]
    for store in filled.stores.values():
        found = sorted(int(tensor[0]) for tensor in store.query_below(SCORE))
        if found != expected or store.count_below(SCORE) != len(expected):
            raise AssertionError(
                f"{store.name} found {len(found)} records by metadata, not the {len(expected)} that match"
            )
    what = f"filter {arena.sizes.filter_rows:,} records"
    counts = _race(arena, filled.stores, lambda _, store: lambda _turn: store.count_below(SCORE), 10)
    yield _median_row("filter_count", f"{what}, counted", counts)
    queries = _race(arena, filled.stores, lambda _, store: lambda _turn: touch(store.query_below(SCORE)), 10)
    yield _median_row("filter_query", f"{what}, with {len(expected):,} tensors", queries)


def imports(arena: Arena) -> Iterator[Row]:
    """Import time beyond torch, each in a fresh interpreter."""
    repetitions = 7 if arena.sizes.subprocess_peers else 1
    values = {
        store.name: seconds_in_subprocess("import torch", store.import_statement, repetitions=repetitions).p50 * 1e3
        for store in _subprocess_competitors(arena)
    }
    yield Row("import", "import beyond torch", "ms", "lower", values)


def peak_memory(arena: Arena) -> Iterator[Row]:
    """Peak memory of the bulk insert, beyond a fresh process and the rows themselves."""
    values = {
        store.name: peak_beyond_rows(store.name, arena.folder / f"memory-{store.name}", arena.sizes.rows)
        for store in _subprocess_competitors(arena)
    }
    yield Row("peak_memory", "insert_many, peak memory beyond the rows", "MB", "lower", values)


def single_inserts(arena: Arena) -> Iterator[Row]:
    """One durable insert at a time into the filled stores."""
    filled = arena.rows
    # Content that is nowhere stored yet, a tensor for each turn of each competitor.
    fresh = {name: iter(arena.matrix[: arena.sizes.rounds + 3] * 1.0001) for name in filled.stores}
    fields = metadata(arena.sizes.rows, 1)[0]

    def action(name: str, store: Store) -> Callable[[int], object]:
        return lambda _turn: store.insert(next(fresh[name]), fields)

    yield from _percentiles("insert", "durable insert of one row", _race(arena, filled.stores, action, 1))


def _gets(arena: Arena, filled: Filled) -> dict[str, Timing]:
    picks = random.Random(1)
    wanted = [picks.randrange(len(next(iter(filled.ids.values())))) for _ in range(arena.sizes.rounds)]

    def action(name: str, store: Store) -> Callable[[int], object]:
        ids = filled.ids_of(name)
        return lambda turn: touch(store.get(ids[wanted[turn]]))

    return _race(arena, filled.readers(), action, 1)


def _race(
    arena: Arena, stores: Mapping[str, Store], action: Callable[[str, Store], Callable[[int], object]], cost: int
) -> dict[str, Timing]:
    """Race with as many rounds as the run allows, fewer for actions of a higher `cost`."""
    rounds = max(arena.sizes.rounds // cost, min(arena.sizes.rounds, 5))
    return race({name: action(name, store) for name, store in stores.items()}, rounds=rounds)


def _reopen(filled: Filled, name: str, turn: int) -> None:
    store = type(filled.stores[name])(filled.stores[name].path)
    filled.stores[name] = store
    touch(store.get(filled.ids[name][turn]))


def _percentiles(key: str, label: str, timings: Mapping[str, Timing]) -> Iterator[Row]:
    better: Literal["lower"] = "lower"
    yield Row(f"{key}_p50", f"{label}, p50", "ms", better, {name: t.p50 * 1e3 for name, t in timings.items()})
    yield Row(f"{key}_p99", f"{label}, p99", "ms", better, {name: t.p99 * 1e3 for name, t in timings.items()})


def _median_row(key: str, label: str, timings: Mapping[str, Timing]) -> Row:
    return Row(key, label, "ms", "lower", {name: timing.p50 * 1e3 for name, timing in timings.items()})


def _subprocess_competitors(arena: Arena) -> list[type[Store]]:
    return [store for store in arena.competitors if arena.sizes.subprocess_peers or store.name == US]


CASES: dict[str, Callable[[Arena], Iterator[Row]]] = {
    "load": loading,
    "stored": stored,
    "open": opening,
    "get": point_gets,
    "many": many_gets,
    "page": pages,
    "large": large_gets,
    "filter": filtering,
    "import": imports,
    "memory": peak_memory,
    "insert": single_inserts,
}
