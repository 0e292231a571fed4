import doctest

import pytest

from cifarbn import formatting
from cifarbn.formatting import duration, interval, number, percent, plus_minus, points, text_row, text_table


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(formatting) == (0, 2)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((0.928, 2, 100), "92.80"),
        ((-8.534,), "−8.53"),
        ((1234567, 0), "1,234,567"),
        ((0.0, 0), "0"),
        ((None, 0, 100), ""),
        ((float("nan"),), "nan"),
    ],
)
def test_numbers(args, expected):
    assert number(*args) == expected


def test_missing_values_give_empty_cells():
    assert [points(None), plus_minus(None, None), interval(None, 1.0), interval(0.5, None)] == [""] * 4


def test_means_intervals_and_differences():
    assert plus_minus(0.92, 0.02, scale=100) == "92.00 ± 2.00" and plus_minus(0.125, None, 4) == "0.1250"
    assert interval(0.55, 0.6353, scale=100) == "−8.53 to 118.53"
    assert [points(0.0125), points(-0.0081), points(0.0)] == ["+1.25", "−0.81", "+0.00"]
    assert percent(0.9731) == "97.3 %"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 05 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_columns_of_a_text_table_are_aligned_and_no_line_ends_in_spaces():
    rows = [("status", "seconds", "reason"), ("done", "12", ""), ("failed before", "1,234", "no memory")]
    assert text_table(rows, "<><").splitlines() == [
        "status         seconds  reason",
        "done                12",
        "failed before    1,234  no memory",
    ]
    assert text_row(("a", "b"), "><", (3, 3)) == "  a  b"
    with pytest.raises(ValueError):
        text_table([("a", "b"), ("c",)], "<<")
