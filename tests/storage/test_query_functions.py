"""query with a function of tensor and metadata in place of SQL."""

import pytest
import torch

from tensordb import InvalidInputError, TensorStorage

from .test_query import steps


def test_a_function_sees_tensor_and_metadata(runs: TensorStorage) -> None:
    assert steps(runs, lambda tensor, metadata: tensor.sum() > 20 and metadata["tag"] == "odd") == [7, 9]
    assert steps(runs, lambda tensor, metadata: True, order_by="metadata.loss", limit=2) == [9, 8]
    assert steps(runs, lambda tensor, metadata: metadata["step"] > 3, limit=2) == [4, 5]
    assert steps(runs, lambda tensor, metadata: True, limit=0) == []
    with pytest.raises(InvalidInputError, match="params"):
        runs.query("data", lambda tensor, metadata: True, params=[1])


def test_a_function_s_own_exception_reaches_the_caller_and_nothing_breaks(runs: TensorStorage) -> None:
    class OwnError(Exception):
        pass

    for error in (OwnError("mine"), KeyError("mine"), ZeroDivisionError("mine")):

        def fails(tensor: torch.Tensor, metadata: dict, error: Exception = error) -> bool:
            raise error

        with pytest.raises(type(error)) as caught:
            runs.query("data", fails)
        assert caught.value is error
    with runs.transaction():
        with pytest.raises(OwnError):
            runs.query("data", lambda tensor, metadata: (_ for _ in ()).throw(OwnError()))
        runs.insert("data", torch.zeros(4), {"step": 10})
    assert runs.count("data") == 11


def test_a_function_may_use_the_database(runs: TensorStorage) -> None:
    def keep(tensor: torch.Tensor, metadata: dict) -> bool:
        return runs.count("data", "metadata.step > ?", params=[metadata["step"]]) < 2

    assert steps(runs, keep) == [8, 9]


def test_a_function_where_only_sql_can_be_given_is_refused_and_not_ignored(runs: TensorStorage) -> None:
    def keep(tensor: torch.Tensor, metadata: dict) -> bool:
        return False

    for call in (
        lambda: runs.count("data", keep),  # type: ignore[arg-type]
        lambda: list(runs.scan("data", keep)),  # type: ignore[arg-type]
        lambda: runs.sample_dataset("data", 3, where=keep),  # type: ignore[arg-type]
        lambda: runs.get_records_paginated("data", where=keep),  # type: ignore[arg-type]
        lambda: runs.delete_where("data", keep),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInputError, match="where"):
            call()
    assert runs.count("data") == 10
