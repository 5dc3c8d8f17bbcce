"""scan: an iterator over many records in bounded memory."""

import itertools
import weakref

import pytest
import torch

from tensordb import DatasetNotFoundError, InvalidInputError, InvalidQueryError, TensorStorage

from .tensors import same


def test_scan_gives_what_query_gives_in_the_same_order(runs: TensorStorage) -> None:
    for options in (
        {},
        {"where": "metadata.step > 4"},
        {"where": "metadata.step > ?", "params": [4], "order_by": "metadata.loss", "limit": 3},
        {"order_by": "metadata.tag DESC"},
        {"limit": 0},
    ):
        scanned, queried = list(runs.scan("data", **options)), runs.query("data", **options)
        assert [record.id for record in scanned] == [record.id for record in queried]
        assert all(same(left.tensor, right.tensor) for left, right in zip(scanned, queried, strict=True))


def test_scan_over_thousands_of_records_of_mixed_sizes(data: TensorStorage) -> None:
    data.insert_many("data", torch.arange(2500).reshape(-1, 1))
    data.insert_many("data", [torch.full((30_000,), n) for n in range(2500, 2510)])
    data.insert("data", torch.tensor([2510]))
    assert [int(record.tensor[0]) for record in data.scan("data")] == list(range(2511))


def test_scan_holds_a_bounded_number_of_decoded_bytes(data: TensorStorage) -> None:
    data.insert_many("data", [torch.full((1 << 20,), float(n)) for n in range(24)])  # 4 MB each
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    for record in data.scan("data"):
        alive.append(weakref.ref(record.tensor))
        most = max(most, sum(reference() is not None for reference in alive))
    assert len(alive) == 24
    assert most <= 9, "about 32 MB of decoded tensors at a time"


def test_scan_may_be_left_early_and_the_database_written_meanwhile(runs: TensorStorage) -> None:
    scanned = runs.scan("data")
    assert [record.id for record in itertools.islice(scanned, 2)] == ["r0", "r1"]
    runs.insert("data", torch.zeros(4), {"step": 99})
    runs.delete_tensor("data", "r0")
    rest = [record.id for record in scanned]
    assert rest == [f"r{n}" for n in range(2, 10)]
    next(iter(runs.scan("data")))
    assert runs.count("data") == 10


def test_two_scans_interleave(runs: TensorStorage) -> None:
    pairs = zip(runs.scan("data"), runs.scan("data", order_by="metadata.loss"), strict=True)
    assert [(left.metadata["step"], right.metadata["step"]) for left, right in pairs] == [(n, 9 - n) for n in range(10)]


def test_bad_arguments_show_when_scan_is_called(runs: TensorStorage) -> None:
    with pytest.raises(InvalidQueryError, match="nope"):
        runs.scan("data", "metadata.nope = 1")
    with pytest.raises(InvalidInputError, match="limit"):
        runs.scan("data", limit=-1)
    with pytest.raises(DatasetNotFoundError):
        runs.scan("other")
