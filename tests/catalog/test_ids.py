"""Sequence numbers order a dataset; generated ids carry them."""

import time

import duckdb
from hypothesis import given
from hypothesis import strategies as st

from tensordb.catalog.ids import (
    first_sequence,
    generated_id,
    generated_id_sql,
    generated_ids,
    sequence_of,
    sequences_of,
)

SEQUENCES = st.integers(0, 2**52 - 1)


@given(first=st.integers(0, 2**52 - 50), count=st.integers(1, 50), nonce=st.integers(0, 255))
def test_ids_are_distinct_sort_like_their_numbers_and_give_them_back(first: int, count: int, nonce: int) -> None:
    made = [generated_id(number, nonce) for number in range(first, first + count)]
    assert len(set(made)) == count
    assert made == sorted(made)
    assert all(len(each) == 15 and each.isalnum() and each.isascii() for each in made)
    assert [sequence_of(each, nonce) for each in made] == list(range(first, first + count))
    assert sequence_of(made[0], (nonce + 1) % 256) is None
    assert generated_ids(first, first + count - 1, nonce) == made


@given(
    texts=st.lists(
        st.text(max_size=16)
        | st.text("0123456789abcdefABCDEF_ é", min_size=15, max_size=15)
        | st.text("07f", min_size=13, max_size=17)
        | SEQUENCES.map(lambda number: generated_id(number, 7))
    )
)
def test_many_ids_are_read_as_each_is_by_itself(texts: list[str]) -> None:
    expected = [sequence_of(text, 7) for text in texts]
    assert sequences_of(texts, 7).tolist() == [-1 if number is None else number for number in expected]


def test_pieces_of_ids_that_would_join_to_ids_are_none() -> None:
    first, second = generated_id(16, 7), generated_id(33, 7)
    assert sequences_of([first[:-1], "0" + second], 7).tolist() == [-1, -1]


@given(text=st.text(max_size=16) | st.text("0123456789abcdefABCDEF_x", min_size=15, max_size=15))
def test_other_text_is_taken_for_no_number_or_for_one_that_gives_the_same_text(text: str) -> None:
    for nonce in (0, 7, 255):
        number = sequence_of(text, nonce)
        assert number is None or generated_id(number, nonce) == text


def test_sql_makes_the_same_ids() -> None:
    numbers = [0, 1, 255, 1_700_000_000_000_000, 2**52 - 1]
    with duckdb.connect() as con:
        for nonce in (0, 9, 171, 255):
            query = f"SELECT {generated_id_sql('n', nonce)} FROM (SELECT unnest(?::BIGINT[]) AS n)"
            made = [row[0] for row in con.execute(query, [numbers]).fetchall()]
            assert made == [generated_id(number, nonce) for number in numbers]


def test_numbers_go_up_by_the_clock_and_never_back() -> None:
    now = time.time_ns() // 1000
    assert now <= first_sequence(None) <= now + 10_000_000
    assert now <= first_sequence(5) <= now + 10_000_000
    ahead = now + 10**12
    assert first_sequence(ahead) == ahead + 1
