"""sample_dataset: uniform without replacement, reproducible with a seed."""

from collections import Counter

import numpy as np
import pytest
import torch

from tensordb import InvalidInputError, InvalidQueryError, TensorStorage


def drawn(db: TensorStorage, n: int, **options: object) -> list[int]:
    return [record.metadata["step"] for record in db.sample_dataset("data", n, **options)]  # type: ignore[arg-type]


def test_each_record_is_drawn_equally_often_in_every_place(runs: TensorStorage) -> None:
    seeds, size = 250, 3
    samples = [drawn(runs, size, seed=seed) for seed in range(seeds)]
    assert all(len(set(each)) == size for each in samples), "without replacement"
    for counts, expected in (
        (Counter(step for each in samples for step in each), seeds * size / 10),
        (Counter(each[0] for each in samples), seeds / 10),
        (Counter(each[-1] for each in samples), seeds / 10),
    ):
        chi_square = sum((counts[step] - expected) ** 2 / expected for step in range(10))
        assert chi_square < 30, "p = 0.0004 at 9 degrees of freedom"


def test_a_seed_gives_the_same_records_and_without_one_they_change(runs: TensorStorage) -> None:
    assert drawn(runs, 5, seed=7) == drawn(runs, 5, seed=7) == drawn(runs, 5, seed=np.int64(7))
    assert len({tuple(drawn(runs, 5, seed=seed)) for seed in range(10)}) > 1
    assert len({tuple(drawn(runs, 5)) for _ in range(10)}) > 1
    state = np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    drawn(runs, 5, seed=7)
    assert state == (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())


def test_more_than_there_are_gives_all_shuffled(runs: TensorStorage) -> None:
    for n in (10, 11, 10**9):
        sample = drawn(runs, n, seed=1)
        assert sorted(sample) == list(range(10))
        assert sample != list(range(10))


def test_zero_and_empty_datasets_give_none(runs: TensorStorage) -> None:
    assert drawn(runs, 0) == []
    assert drawn(runs, 3, where="metadata.step > 100") == []
    runs.create_dataset("empty")
    assert runs.sample_dataset("empty", 5) == []


def test_where_restricts_the_draw(runs: TensorStorage) -> None:
    assert set(drawn(runs, 20, where="metadata.tag = 'odd'")) == {1, 3, 5, 7, 9}
    assert set(drawn(runs, 3, where="metadata.step < 3", seed=0)) == {0, 1, 2}
    with pytest.raises(InvalidQueryError, match="nope"):
        drawn(runs, 3, where="metadata.nope = 1")


def test_the_tensors_belong_to_their_records(runs: TensorStorage) -> None:
    assert all(record.tensor[0] == record.metadata["step"] for record in runs.sample_dataset("data", 10))


def test_counts_and_seeds_that_make_no_sense_are_refused(runs: TensorStorage) -> None:
    for n in (-1, 1.5, "3", None, True):
        with pytest.raises(InvalidInputError, match="n_samples"):
            drawn(runs, n)  # type: ignore[arg-type]
    for seed in (-1, 1.5, "x", True):
        with pytest.raises(InvalidInputError, match="seed"):
            drawn(runs, 1, seed=seed)
