"""get_records_paginated: list-like pages in a stable order."""

import pytest
import torch

from tensordb import InvalidInputError, InvalidQueryError, Page, TensorStorage


def steps(page: Page) -> list[int]:
    return [record.metadata["step"] for record in page]


def test_pages_follow_each_other_without_gaps(runs: TensorStorage) -> None:
    seen, offset = [], 0
    while offset is not None:
        page = runs.get_records_paginated("data", offset, 3)
        assert page.total == 10
        assert page.offset == offset
        assert page.limit == 3
        seen += steps(page)
        offset = page.next
    assert seen == list(range(10))


def test_next_is_none_on_the_last_page(runs: TensorStorage) -> None:
    assert runs.get_records_paginated("data", 0, 5).next == 5
    assert runs.get_records_paginated("data", 5, 5).next is None
    assert runs.get_records_paginated("data", 0, 10).next is None
    assert runs.get_records_paginated("data").next is None
    beyond = runs.get_records_paginated("data", 50, 5)
    assert (list(beyond), beyond.total, beyond.next) == ([], 10, None)
    none = runs.get_records_paginated("data", 0, 0)
    assert (list(none), none.total, none.next) == ([], 10, None)


def test_a_page_is_like_a_list(runs: TensorStorage) -> None:
    page = runs.get_records_paginated("data", 2, 4)
    assert len(page) == 4
    assert page[0].id == "r2"
    assert page[-1].id == "r5"
    assert [record.id for record in page[1:3]] == ["r3", "r4"]
    assert page[1] in page
    assert next(reversed(page)).id == "r5"
    assert page
    assert not runs.get_records_paginated("data", 99)
    with pytest.raises(IndexError):
        page[4]


def test_where_and_order_by(runs: TensorStorage) -> None:
    page = runs.get_records_paginated("data", 1, 2, where="metadata.tag = ?", params=["odd"], order_by="metadata.loss")
    assert steps(page) == [7, 5]
    assert (page.total, page.next) == (5, 3)
    assert steps(runs.get_records_paginated("data", 0, 6, order_by="metadata.tag DESC")) == [1, 3, 5, 7, 9, 0]
    with pytest.raises(InvalidQueryError, match="nope"):
        runs.get_records_paginated("data", where="nope")


def test_the_order_is_stable_under_updates_and_deletes(runs: TensorStorage) -> None:
    for step in (8, 2, 5):
        runs.update_tensor_metadata("data", f"r{step}", {"step": step, "note": "x" * 500})
    assert steps(runs.get_records_paginated("data", 0, 10)) == list(range(10))
    runs.delete_tensor("data", "r4")
    assert steps(runs.get_records_paginated("data", 3, 3)) == [3, 5, 6]
    runs.insert("data", torch.zeros(4), {"step": 10})
    assert steps(runs.get_records_paginated("data", 8, 10)) == [9, 10]


def test_offsets_and_limits_that_make_no_sense_are_refused(runs: TensorStorage) -> None:
    for value in (-1, 1.5, "3", None, True):
        with pytest.raises(InvalidInputError, match="offset"):
            runs.get_records_paginated("data", value)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="limit"):
            runs.get_records_paginated("data", 0, value)  # type: ignore[arg-type]
