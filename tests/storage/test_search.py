"""search: the nearest records of a vector, exactly, whatever they are stored as."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.programs import in_forked_child

from tensordb import (
    DatasetNotFoundError,
    Hit,
    IntegrityError,
    InvalidInputError,
    InvalidQueryError,
    SearchResult,
    TensorStorage,
)
from tensordb.search.blocks import Block, BlockCache, block_of

from .tensors import DTYPES, same, sample

METRICS = ["cosine", "l2", "dot"]
EXACT = ["none", "fast", "lossless"]


def hits(db: TensorStorage, query: Any, k: int = 10, **options: Any) -> list[tuple[int, float]]:
    """Return the metadata field `i` and the score of each hit."""
    result = db.search("data", query, k, **options)
    assert isinstance(result, SearchResult)
    return [(hit.record.metadata["i"], hit.score) for hit in result]


def places(db: TensorStorage, query: Any, k: int = 10, **options: Any) -> list[int]:
    return [place for place, _ in hits(db, query, k, **options)]


def fill(db: TensorStorage, vectors: torch.Tensor | Sequence[torch.Tensor], start: int = 0) -> list[str]:
    return db.insert_many("data", vectors, [{"i": i, "tenth": i % 10} for i in range(start, start + len(vectors))])


def score(metric: str, vector: torch.Tensor, query: torch.Tensor) -> float:
    """Score one pair without NumPy or torch: the sums are exact."""
    x, q = vector.to(torch.float64).tolist(), query.to(torch.float64).tolist()
    pairs = list(zip(x, q, strict=True))
    if metric == "l2":
        return math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs))
    dot = math.fsum(a * b for a, b in pairs)
    if metric == "dot":
        return dot
    norms = math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(b * b for b in q))
    return dot / norms if norms else 0.0


def nearest(metric: str, vectors: Sequence[torch.Tensor], query: torch.Tensor, k: int) -> list[tuple[int, float]]:
    sign = 1 if metric == "l2" else -1
    scored = [(sign * score(metric, vector, query), i) for i, vector in enumerate(vectors)]
    return [(i, sign * value) for value, i in sorted(scored)[:k]]


def agree(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> bool:
    same_places = [place for place, _ in found] == [place for place, _ in wanted]
    return same_places and [s for _, s in found] == pytest.approx([s for _, s in wanted], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("preset", EXACT)
def test_the_nearest_are_those_that_comparing_with_every_record_gives(data: TensorStorage, preset: str) -> None:
    data.set_compression_preset(preset)
    vectors = torch.randn(700, 24, generator=torch.Generator().manual_seed(0))
    fill(data, vectors[:600])
    with data.transaction():
        for i in range(600, 700):  # not in pages
            data.insert("data", vectors[i], {"i": i})
    for metric in METRICS:
        for query, ks in zip(torch.randn(3, 24), [(1, 700), (10, 699), (1000,)], strict=True):
            wanted = nearest(metric, [*vectors], query, 1000)
            for k in ks:
                assert agree(hits(data, query, k, metric=metric), wanted[:k])


def test_differences_that_float32_cannot_tell_still_decide(data: TensorStorage) -> None:
    # All products differ in their last bits alone: sums in float32 are wrong by more than what tells them apart.
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(128, generator=generator) * 100
    vectors = base + torch.randn(1500, 128, generator=generator) * 1e-5
    query = torch.randn(128, generator=generator)
    fill(data, vectors)
    wanted = [i for i, _ in nearest("dot", [*vectors], query, 20)]
    assert places(data, query, 20, metric="dot") == wanted
    assert (vectors @ query).topk(20).indices.tolist() != wanted
    assert agree(hits(data, base, 20, metric="l2"), nearest("l2", [*vectors], base, 20))


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_have_equal_scores_and_come_in_the_order_of_their_insertion(
    data: TensorStorage, metric: str
) -> None:
    vector = torch.randn(37)
    others = -vector + torch.randn(200, 37) / 10
    for part in range(4):  # the same page twice, pages of other lengths, and whole tensors
        fill(data, torch.cat([vector.expand(5, 37), others[: 50 * (part // 2)]]), 1000 * part)
        data.insert("data", vector, {"i": 1000 * part + 500})
    wanted = [1000 * part + i for part in range(4) for i in (0, 1, 2, 3, 4, 500)]
    found = hits(data, vector + 0.01, 24, metric=metric)
    assert [place for place, _ in found] == wanted
    assert len({value for _, value in found}) == 1
    assert [place for place, _ in hits(data, vector + 0.01, 7, metric=metric)] == wanted[:7]


def test_a_stack_of_queries_gives_what_each_of_them_gives(data: TensorStorage) -> None:
    fill(data, torch.randn(3000, 20))
    for metric in METRICS:
        queries = torch.randn(40, 20)
        results = data.search("data", queries, 7, metric=metric)  # type: ignore[arg-type]
        assert isinstance(results, list)
        assert len(results) == 40
        for query, result in zip(queries[::4], results[::4], strict=True):
            alone = data.search("data", query, 7, metric=metric)  # type: ignore[arg-type]
            assert isinstance(alone, SearchResult)
            assert (result.scores, [hit.id for hit in result]) == (alone.scores, [hit.id for hit in alone])
    assert data.search("data", torch.empty(0, 20)) == []


@pytest.mark.parametrize("preset", EXACT)
def test_only_records_that_match_are_found(data: TensorStorage, preset: str) -> None:
    data.set_compression_preset(preset)
    vectors = torch.randn(900, 12)
    fill(data, vectors[:880])
    with data.transaction():
        for i in range(880, 900):
            data.insert("data", vectors[i], {"i": i, "tenth": i % 10})
    query = torch.randn(12)
    for where in ("metadata.tenth = 3", "metadata.i >= 40 AND metadata.i < 43", "metadata.i = 17"):
        data._searcher.cache.clear()
        matching = [record.metadata["i"] for record in data.query("data", where)]
        for _ in range(2):  # what is kept after one search must not widen the next
            found = hits(data, query, 1000, where=where)
            assert agree(sorted(found), sorted((i, score("cosine", vectors[i], query)) for i in matching))
            assert len(hits(data, query, 1000)) == 900
    assert places(data, query, 1000, where="metadata.tenth = ?", params=[3]) == places(
        data, query, 1000, where="metadata.tenth = 3"
    )
    assert hits(data, query, where="false") == []


def test_pages_without_a_record_that_matches_are_not_read(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "a.tdb", compression_preset="none") as db:
        db.create_dataset("data")
        fill(db, torch.randn(100, 64))
        fill(db, torch.randn(100, 64), 100)
    segment = next((tmp_path / "a.tdb" / "segments").glob("*"))
    content = bytearray(segment.read_bytes())
    middle = len(content) * 3 // 4  # in the second page
    content[middle : middle + 600] = bytes(byte ^ 255 for byte in content[middle : middle + 600])
    segment.write_bytes(content)
    with TensorStorage(tmp_path / "a.tdb") as db:
        damaged = {each.record_id for each in db.verify().damaged}
        whole = [record.id for record in db.scan("data", "metadata.i < 100")]
        assert damaged
        assert not damaged & set(whole)
        assert len(hits(db, torch.ones(64), 200, where="metadata.i < 100")) == 100
        with pytest.raises(IntegrityError, match=r"record '.*' of dataset 'data'"):
            db.search("data", torch.ones(64))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype.is_complex], ids=str)
def test_complex_records_are_refused(data: TensorStorage, dtype: torch.dtype) -> None:
    data.insert("data", sample(dtype, 8), record_id="odd")
    with pytest.raises(InvalidInputError, match=r"record 'odd' .* complex"):
        data.search("data", torch.ones(8))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if not dtype.is_complex], ids=str)
def test_every_real_dtype_is_compared_by_its_values(data: TensorStorage, dtype: torch.dtype) -> None:
    numbers = torch.randint(0, 2 if dtype == torch.bool else 100, (300, 8), generator=torch.Generator().manual_seed(2))
    numbers[:, 0] += 1
    vectors = [each.to(torch.float32).to(dtype) for each in numbers]
    fill(data, vectors)
    data.insert("data", vectors[0], {"i": 300})
    query = torch.tensor([3.0, -1.5, 2.0, 7.0, 0.25, 1.0, 1.0, 4.0])
    for metric in METRICS:
        wanted = nearest(metric, [*vectors, vectors[0]], query, 20)
        assert agree(hits(data, query, 20, metric=metric), wanted)
        assert agree(hits(data, query.double(), 20, metric=metric), wanted)


def test_large_integers_and_float64_keep_their_digits(data: TensorStorage) -> None:
    vectors = torch.tensor([[2**53 - 1, 1], [2**53 - 2, 1], [2**53 - 3, 1]])
    fill(data, vectors)
    fill(data, vectors.double() / 2**53, 3)
    assert places(data, [1, 0], 6, metric="dot") == [0, 1, 2, 3, 4, 5]
    assert places(data, [2.0**53 - 3, 1], 3, metric="l2") == [2, 1, 0]
    assert hits(data, [2.0**53 - 3, 1], 2, metric="l2") == [(2, 0.0), (1, 1.0)]
    assert places(data, [-1, 0], 6, metric="dot") == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("preset", ["balanced", "maximum", "q6"])
def test_quantized_records_are_compared_by_what_they_decode_to(data: TensorStorage, preset: str) -> None:
    data.set_compression_preset(preset)
    fill(data, torch.randn(400, 64))
    query = torch.randn(64)
    for metric in METRICS:
        assert agree(hits(data, query, metric=metric), nearest(metric, data.get_dataset("data"), query, 10))


def test_records_of_different_dtypes_are_compared_with_each_other(data: TensorStorage) -> None:
    vectors: list[torch.Tensor] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int8):
        vectors += [*(torch.randn(50, 16) * 10).to(dtype)]
    fill(data, vectors)
    for metric in METRICS:
        query = torch.randn(16)
        assert agree(hits(data, query, 30, metric=metric), nearest(metric, vectors, query, 30))


def test_records_of_another_shape_are_refused_by_name_unless_a_condition_leaves_them_out(data: TensorStorage) -> None:
    fill(data, torch.eye(4))
    for odd in (torch.ones(5), torch.ones(1, 4), torch.tensor(1.0), torch.ones(0), torch.ones(2, 2)):
        data.insert("data", odd, {"i": -1}, record_id="odd")
        with pytest.raises(InvalidInputError, match=r"record 'odd' .*shape = \[4\]"):
            data.search("data", torch.ones(4))
        assert places(data, [0, 1, 0, 0], 1, where="shape = [4]") == [1]
        assert places(data, [0, 1, 0, 0], 1, where="record_id != 'odd'") == [1]
        data.delete_tensor("data", "odd")
    with pytest.raises(InvalidInputError, match=r"float32\[4\].*query of 3"):
        data.search("data", torch.ones(3))


def test_a_record_of_zeros_has_the_cosine_0(data: TensorStorage) -> None:
    fill(data, torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [-0.0, 0.0]]))
    assert hits(data, [2, 0]) == [(0, 1.0), (1, 0.0), (3, 0.0), (2, -1.0)]
    assert hits(data, [2, 0], metric="l2") == [(0, 1.0), (1, 2.0), (3, 2.0), (2, 3.0)]
    assert hits(data, [0, 0], metric="dot") == [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)]


@pytest.mark.parametrize("metric", METRICS)
def test_records_that_are_not_finite_come_last_and_say_so(data: TensorStorage, metric: str) -> None:
    vectors = torch.randn(300, 6)
    for place, value in ((5, math.nan), (7, math.inf), (250, -math.inf)):
        vectors[place, place % 6] = value
    fill(data, vectors[:298])
    for i in (298, 299):
        data.insert("data", vectors[i] * (math.nan if i == 299 else 1), {"i": i})
    query = torch.randn(6)
    found = hits(data, query, 300, metric=metric)
    assert [place for place, value in found if math.isnan(value)] == [5, 7, 250, 299]
    assert [place for place, _ in found[-4:]] == [5, 7, 250, 299]
    sound = [i for i in range(299) if i not in (5, 7, 250)]
    wanted = nearest(metric, [vectors[i] for i in sound], query, 20)
    assert agree(found[:20], [(sound[i], value) for i, value in wanted])
    assert agree(hits(data, query, 20, metric=metric), found[:20])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_very_large_and_very_small_vectors_are_compared_like_others(data: TensorStorage, dtype: torch.dtype) -> None:
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    rows = [[largest, largest], [largest, -largest], [smallest, smallest], [smallest / 4, 0.0], [1.0, 2.0], [1e10, 3.0]]
    vectors = torch.tensor(rows, dtype=dtype)
    fill(data, vectors)
    assert places(data, vectors[0]) == [0, 2, 4, 5, 3, 1]
    assert dict(hits(data, vectors[3]))[3] == 1.0
    assert hits(data, vectors[2], 3)[:2] == [(0, pytest.approx(1.0)), (2, pytest.approx(1.0))]
    assert places(data, [1.0, 0.0], metric="dot") == [0, 1, 5, 4, 2, 3]
    assert hits(data, vectors[0], 1, metric="l2") == [(0, 0.0)]
    assert places(data, [0.0, 0.0], metric="l2") == [3, 2, 4, 5, 0, 1]


def test_vectors_larger_than_a_page_are_compared(data: TensorStorage) -> None:
    vectors = [torch.randn(70_000) for _ in range(5)]
    for i, vector in enumerate(vectors):
        data.insert("data", vector, {"i": i})
    query = vectors[3] + vectors[1] / 2
    assert places(data, query, 2) == [3, 1]
    for metric in METRICS:
        assert agree(hits(data, query, 3, metric=metric), nearest(metric, vectors, query, 3))


QUERIES = [
    [1, 0, 0],
    (1.0, 0.0, 0.0),
    np.array([1, 0, 0], np.int8),
    np.array([1, 0, 0], np.float16),
    np.array([1, 9, 0, 9, 0, 9])[::2],
    torch.tensor([1, 0, 0]),
    torch.tensor([True, False, False]),
    torch.tensor([1, 0, 0], dtype=torch.bfloat16),
    torch.tensor([1.0, 0, 0], requires_grad=True),
    torch.eye(3)[:, 0],
    np.array([1.0, 0, 0], ">f8"),
]


def test_a_query_is_any_row_of_real_numbers(data: TensorStorage) -> None:
    fill(data, torch.eye(3))
    for query in QUERIES:
        assert places(data, query, 1) == [0], query


NO_QUERIES = [
    (1.0, "shape"),
    ([], "shape"),
    (torch.ones(2, 2, 3), "shape"),
    (torch.empty(3, 0), "shape"),
    ("abc", "real numbers"),
    (None, "real numbers"),
    ([1, "a", 2], "real numbers"),
    ([[1, 2], [3]], "real numbers"),
    ([1j, 0, 0], "real numbers"),
    (torch.ones(3, dtype=torch.complex64), "complex"),
    ([1, math.nan, 0], "position 1"),
    (torch.tensor([[1, 2, 3], [0, 0, math.inf]]), r"query 1 has inf at position 2"),
    ([0, 0, 0], "all zeros"),
    ({"a": 1}, "real numbers"),
    (torch.ones(3).to_sparse(), "dense"),
]


def test_a_query_that_cannot_be_compared_is_refused(data: TensorStorage) -> None:
    fill(data, torch.eye(3))
    for query, message in NO_QUERIES:
        with pytest.raises(InvalidInputError, match=message):
            data.search("data", query)  # type: ignore[arg-type]


def test_other_arguments_that_make_no_sense_are_refused(data: TensorStorage) -> None:
    fill(data, torch.eye(3))
    for k in (-1, 1.5, "3", True, None):
        with pytest.raises(InvalidInputError, match="k is"):
            data.search("data", [1, 2, 3], k)  # type: ignore[arg-type]
    for metric in ("euclid", None, 3, ["l2"]):
        with pytest.raises(InvalidInputError, match="'cosine', 'l2', 'dot'"):
            data.search("data", [1, 2, 3], metric=metric)  # type: ignore[arg-type]
    with pytest.raises(InvalidQueryError, match="nothing"):
        data.search("data", [1, 2, 3], where="metadata.nothing = 3")
    with pytest.raises(InvalidInputError, match="where"):
        data.search("data", [1, 2, 3], where=lambda tensor, metadata: True)  # type: ignore[arg-type]
    with pytest.raises(DatasetNotFoundError):
        data.search("other", [1, 2, 3])
    assert list(data.search("data", [1, 2, 3], 0)) == []


def test_an_empty_dataset_has_no_hits(data: TensorStorage) -> None:
    assert list(data.search("data", torch.ones(3))) == []
    results = data.search("data", torch.ones(2, 3), where="metadata IS NULL")
    assert [list(each) for each in results] == [[], []]  # type: ignore[arg-type]


def test_a_search_sees_every_write_at_once(data: TensorStorage) -> None:
    ids = fill(data, torch.eye(5))
    query = [1.0, 0.1, 0.0, 0.0, 0.0]
    assert places(data, query, 2) == [0, 1]
    data.delete_tensor("data", ids[0])
    assert places(data, query, 2) == [1, 2]
    data.insert("data", torch.tensor(query), {"i": 9})
    assert places(data, query, 2) == [9, 1]
    data.update_tensor_metadata("data", ids[1], {"i": 8})
    assert places(data, query, 2) == [9, 8]
    data.maintenance.compact()
    assert places(data, query, 2) == [9, 8]
    with contextlib.suppress(ZeroDivisionError), data.transaction():
        data.insert("data", torch.tensor(query) * 2, {"i": 10})
        assert places(data, query, 2) == [9, 10]
        raise ZeroDivisionError
    assert places(data, query, 2) == [9, 8]
    data.delete_dataset("data")
    data.create_dataset("data")
    fill(data, -torch.eye(5), 20)
    assert places(data, query, 1) == [22]


def test_a_search_sees_what_another_process_wrote(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "a.tdb") as ours, TensorStorage(tmp_path / "a.tdb") as theirs:
        ours.create_dataset("data")
        fill(ours, torch.eye(3))
        assert places(theirs, [1, 0.5, 0], 2) == [0, 1]
        fill(ours, torch.tensor([[1.0, 0.5, 0.0]]), 3)
        assert places(theirs, [1, 0.5, 0], 2) == [3, 0]
        ours.delete_where("data", "metadata.i = 3")
        assert places(theirs, [1, 0.5, 0], 2) == [0, 1]


def test_the_hits_are_records_with_scores(data: TensorStorage) -> None:
    vectors = torch.randn(50, 8)
    ids = fill(data, vectors)
    result = data.search("data", vectors[7], 3)
    assert isinstance(result, SearchResult)
    first = result[0]
    assert isinstance(first, Hit)
    assert (first.id, first.score) == (ids[7], pytest.approx(1.0))
    assert same(first.tensor, vectors[7])
    assert first.record.metadata == {"i": 7, "tenth": 7}
    assert len(result) == len(result[:5]) == len(result.records) == 3
    assert [hit.score for hit in result] == result.scores == sorted(result.scores, reverse=True)
    assert "3 hits in 'data', cosine" in repr(result)
    assert ids[7] in result._repr_html_()
    assert "no hits" in repr(data.search("data", vectors[7], 0))


def test_threads_search_while_others_write(data: TensorStorage) -> None:
    fill(data, torch.randn(2000, 16) - 10)
    failures: list[BaseException] = []
    ready = threading.Barrier(4)

    def look() -> None:
        try:
            ready.wait()
            for _ in range(8):
                found = hits(data, torch.ones(16), 200)
                values = [value for _, value in found]
                assert values == sorted(values, reverse=True)
                assert len({place for place, _ in found}) == len(found)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    for i in range(30):
        data.insert("data", torch.ones(16) + i, {"i": 2000 + i})
        data.delete_where("data", f"metadata.i = {i}")
    for thread in threads:
        thread.join()
    assert not failures
    assert places(data, torch.ones(16), 1) == [2000]


def block(rows: int) -> Block:
    return block_of(torch.randn(rows, 256))


def test_kept_blocks_stay_within_their_bytes_and_a_large_set_keeps_a_part() -> None:
    each = block(100).nbytes
    cache = BlockCache(each * 3)
    keys = [bytes([number]) for number in range(6)]
    for _ in range(3):
        search = cache.begin(0)
        found = []
        for key in keys:
            found.append(cache.get(key, search) is not None)
            if not found[-1]:
                cache.put(key, block(100), search)
        assert cache.nbytes == each * 3
    assert found == [True, True, True, False, False, False], "each round keeps what the one before kept"
    for _ in range(3):  # another set takes over once the first is no longer asked for
        search = cache.begin(0)
        for key in (b"x", b"y"):
            if cache.get(key, search) is None:
                cache.put(key, block(100), search)
    assert cache.get(b"x", search) is not None
    cache.put(b"huge", block(1000), search)
    assert cache.get(b"huge", search) is None
    assert cache.nbytes <= each * 3
    cache.clear()
    assert cache.nbytes == 0


def test_what_is_stored_as_it_is_takes_no_memory_to_keep(tmp_path: Path) -> None:
    kept = {}
    for preset in ("none", "lossless"):
        with TensorStorage(tmp_path / preset, compression_preset=preset) as db:
            db.create_dataset("data")
            fill(db, torch.randn(2000, 128))
            hits(db, torch.ones(128))
            kept[preset] = db._searcher.cache.nbytes
    assert kept["none"] * 20 < kept["lossless"] < 2000 * 128 * 4 * 1.05


def test_a_file_that_is_cut_short_between_two_searches_is_an_error(tmp_path: Path) -> None:
    with TensorStorage(tmp_path, compression_preset="none") as db:
        db.create_dataset("data")
        fill(db, torch.randn(2000, 64))

    def search() -> None:  # in a child, as touching what is no longer there ends a process
        with TensorStorage(tmp_path, read_only=True) as db:
            assert len(hits(db, torch.ones(64))) == 10
            (file,) = (tmp_path / "segments").iterdir()
            os.truncate(file, 4096)
            with pytest.raises(IntegrityError, match=r"record .* of dataset 'data'.* cut short"):
                hits(db, torch.ones(64))

    in_forked_child(search)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at maps as Linux shows them")
def test_what_was_searched_keeps_no_removed_file_on_the_disk(tmp_path: Path) -> None:
    def removed() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line for line in lines if str(tmp_path) in line and line.endswith("(deleted)")]

    with TensorStorage(tmp_path, compression_preset="none") as db:
        db.create_dataset("data")
        fill(db, torch.randn(2000, 64))
        query = torch.ones(64)
        hits(db, query)
        db.delete_dataset("data")
        db.maintenance.compact()
        db.create_dataset("data")
        fill(db, torch.randn(50, 64))
        assert len(hits(db, query)) == 10
        gc.collect()
        assert removed() == []
