"""Tables and JSON of any values."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import pytest

from tensordb.cli.output import printable, size, table, to_json


def test_numbers_stand_right_and_text_left() -> None:
    assert table(["name", "n"], [["a", 1], ["long name", 1000]]) == "name          n\na             1\nlong name  1000"


def test_a_table_is_cut_in_its_widest_column_to_fit() -> None:
    lines = table(["id", "text"], [["short", "x" * 200]], width=40).splitlines()
    assert max(map(len, lines)) == 40
    assert lines[1].startswith("short  xxx")
    assert lines[1].endswith("…")


def test_wide_characters_take_two_columns() -> None:
    lines = table(["name", "n"], [["重み", 1], ["ab", 2]]).splitlines()
    assert lines[1:] == ["重み  1", "ab    2"]


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202egnp", "\x00", "\ud800", "\r", "\u2028", "\x9b1m"])
def test_what_could_steer_a_terminal_is_escaped(text: str) -> None:
    assert printable(text).isprintable()
    assert "\\" in printable(text)


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes_have_the_unit_that_fits(nbytes: int, words: str) -> None:
    assert size(nbytes) == words


def test_json_is_valid_whatever_it_holds() -> None:
    value = {
        "nan": float("nan"),
        "inf": [float("inf"), 1.5],
        "day": dt.date(2024, 1, 2),
        "moment": dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC),
        "exact": Decimal("12"),
        "part": Decimal("0.5"),
        "big": 2**70,
        "bytes": b"ab",
        "surrogate": "\ud800",
        "pair": (1, 2),
        "span": dt.timedelta(seconds=90),
    }
    assert json.loads(to_json(value).encode("utf-8")) == {
        "nan": None,
        "inf": [None, 1.5],
        "day": "2024-01-02",
        "moment": "2024-01-02T03:00:00+00:00",
        "exact": 12,
        "part": 0.5,
        "big": 2**70,
        "bytes": "YWI=",
        "surrogate": "\\ud800",
        "pair": [1, 2],
        "span": "0:01:30",
    }
