"""The table beside a source: what it and comparison.csv promise."""

import csv

import pytest
from test_report import make_run

from cifarbn.report import gather
from cifarbn.report.comparison import Row, comparison


def lines(section):
    return list(csv.DictReader(section.files["comparison.csv"].splitlines()))


@pytest.fixture
def rows(tmp_path):
    for seed, accuracy in enumerate((0.80, 0.82)):
        make_run(tmp_path, "x=a", f"seed={seed}", accuracy=accuracy)
    make_run(tmp_path, "x=b", "seed=0", accuracy=0.85)
    make_run(tmp_path, "x=b", "seed=1", status="failed", error="no memory")
    return [
        Row("s/a", "table 1", 0.78, None, [], ["x=a,seed=0", "x=a,seed=1"]),
        Row("s/b", "table 2", 0.83, "s/a", ["epochs: 9 -> 6"], ["x=b,seed=0", "x=b,seed=1", "x=b,seed=2"]),
        Row("s/c", "table 3", None, None, [], ["x=c,seed=0"]),
    ]


def test_a_comparable_row_has_its_gap(tmp_path, rows):
    section = comparison(rows, gather(tmp_path), "", comparable=True)
    a, b, c = lines(section)
    assert [row["experiment"] for row in (a, b, c)] == ["s/a", "s/b", "s/c"]
    assert (a["the source's, %"], a["measured here, %"], a["gap"], a["n"]) == ("78.00", "81.00 ± 1.41", "+3.00", "2")
    assert a["95 % interval"] == "68.29 to 93.71" and a["changed"] == "nothing" and a["does not count"] == ""
    assert (b["measured here, %"], b["gap"], b["n"]) == ("85.00", "+2.00", "1")
    assert b["does not count"] == "1 failed: no memory; 1 not begun" and b["changed"] == "epochs: 9 -> 6"
    assert (c["the source's, %"], c["measured here, %"], c["n"], c["does not count"]) == ("", "", "0", "1 not begun")
    assert [row["where in the source"] for row in (a, b, c)] == ["table 1", "table 2", "table 3"]
    assert all(list(cells) == [row[heading] for row in (a, b, c)] for heading, cells in section.table.items())


def test_rows_of_another_scale_have_no_gap_but_a_difference(tmp_path, rows):
    a, b, _ = lines(comparison(rows, gather(tmp_path), "", comparable=False))
    assert "gap" not in a
    assert (b["builds on"], b["points more: the source"], b["points more: here"]) == ("s/a", "+5.00", "+4.00")


def test_a_refused_folder_does_not_count(tmp_path, rows):
    refused = {"x=b,seed=0": "holds a run of a different config"}
    _, b, _ = lines(comparison(rows, gather(tmp_path), "", comparable=True, refused=refused))
    assert b["n"] == "0" and b["does not count"].startswith("1 refused: holds a run of a different config")
