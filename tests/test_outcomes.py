"""Outcomes of the runs of a sweep or suite, read from their folders."""

import json

import pytest

from cifarbn.cli.outcomes import End, Outcome, error_outcome, is_failure, read_outcome
from cifarbn.errors import RunConflict, RunLocked
from cifarbn.runs.result_file import write_result
from cifarbn.runs.schema import RESULT, Status, check_result


def outcome(folder, status="done", *, stored_error=None, **options):
    result = {
        "status": status,
        "config": {},
        "error": stored_error,
        "metrics": {"test/acc": 0.5},
        "seconds": {"total": 3.0},
    }
    (folder / RESULT).write_text(json.dumps(result))
    return read_outcome(folder, ["seed=0"], **options)


def test_a_finished_run(tmp_path):
    assert outcome(tmp_path, ended_before=True) == Outcome(tmp_path.name, ["seed=0"], End.DONE, 0.5, 3.0, None, True)


@pytest.mark.parametrize(
    ("status", "options", "end", "reason"),
    [
        ("diverged", {}, End.DIVERGED, "the first line"),
        ("failed", {}, End.FAILED, "the first line"),
        ("running", {}, End.FAILED, "its process was killed"),
        ("running", {"stopped": True}, End.INTERRUPTED, None),
        ("done", {"error": "no memory"}, End.FAILED, "no memory"),
    ],
)
def test_the_outcome_follows_from_the_result_and_the_error_of_the_process(tmp_path, status, options, end, reason):
    ended = outcome(tmp_path, status, stored_error="the first line\nand the second", **options)
    assert ended.status is end and ended.reason == reason


def test_a_missing_or_damaged_result_is_a_failure(tmp_path):
    assert read_outcome(tmp_path, [], missing="it is gone").reason == "it is gone"
    (tmp_path / RESULT).write_text("{")
    ended = read_outcome(tmp_path, [])
    assert ended.status is End.FAILED and str(tmp_path) not in str(ended.reason) and RESULT in str(ended.reason)


def test_a_run_that_could_not_start(tmp_path):
    conflict = error_outcome(tmp_path, [], RunConflict(f"{tmp_path} holds another run"))
    locked = error_outcome(tmp_path, [], RunLocked("another process"))
    assert (conflict.status, conflict.reason) == (End.CONFLICT, "holds another run") and locked.status is End.LOCKED
    assert is_failure([conflict]) and not is_failure([locked])
    assert error_outcome(tmp_path, [], PermissionError("not yours")).status is End.FAILED


def test_a_status_is_its_value_in_json_and_in_text(tmp_path):
    write_result(tmp_path / RESULT, {"status": Status.DONE, "config": {}})
    stored = json.loads((tmp_path / RESULT).read_text())
    assert stored["status"] == "done" and check_result(stored)["status"] is Status.DONE
    assert f"{Status.DONE:>6} {End.CONFLICT}" == "  done conflict"
