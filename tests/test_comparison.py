"""The table of published and measured accuracies, and comparison.csv."""

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


def test_a_comparable_row_has_a_gap(tmp_path, rows):
    section = comparison(rows, gather(tmp_path), "", comparable=True)
    a, b, c = lines(section)
    assert [row["experiment"] for row in (a, b, c)] == ["s/a", "s/b", "s/c"]
    assert (a["published, %"], a["measured, %"], a["gap"], a["n"]) == ("78.00", "81.00 ± 1.41", "+3.00", "2")
    assert a["95 % interval"] == "68.29 to 93.71" and a["changes"] == "none" and a["excluded or missing"] == ""
    assert (b["measured, %"], b["gap"], b["n"]) == ("85.00", "+2.00", "1")
    assert b["excluded or missing"] == "1 failed: no memory; 1 not started" and b["changes"] == "epochs: 9 -> 6"
    assert (c["published, %"], c["measured, %"], c["n"], c["excluded or missing"]) == ("", "", "0", "1 not started")
    assert [row["source"] for row in (a, b, c)] == ["table 1", "table 2", "table 3"]
    assert all(list(cells) == [row[heading] for row in (a, b, c)] for heading, cells in section.table.items())


def test_rows_of_another_scale_have_gains_instead_of_a_gap(tmp_path, rows):
    a, b, _ = lines(comparison(rows, gather(tmp_path), "", comparable=False))
    assert "gap" not in a
    assert (b["modifies"], b["gain, published"], b["gain, measured"]) == ("s/a", "+5.00", "+4.00")


def test_a_run_folder_of_another_run_is_excluded(tmp_path, rows):
    conflicts = {"x=b,seed=0": "holds a run of a different config"}
    _, b, _ = lines(comparison(rows, gather(tmp_path), "", comparable=True, conflicts=conflicts))
    assert b["n"] == "0" and b["excluded or missing"].startswith("1 conflict: holds a run of a different config")
