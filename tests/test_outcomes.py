"""How one run of a sweep or a suite ended, as its folder says it."""

import json

import pytest

from cifarbn.cli.outcomes import End, Outcome, is_failure, not_made, read_outcome
from cifarbn.errors import RunConflict, RunLocked
from cifarbn.runs.result_file import write_result
from cifarbn.runs.schema import RESULT, Status, check_result


def outcome(folder, status="done", *, error=None, **how):
    result = {"status": status, "config": {}, "error": error, "metrics": {"test/acc": 0.5}, "seconds": {"total": 3.0}}
    (folder / RESULT).write_text(json.dumps(result))
    return read_outcome(folder, ["seed=0"], **how)


def test_a_finished_run(tmp_path):
    assert outcome(tmp_path, found=True) == Outcome(tmp_path.name, ["seed=0"], End.DONE, 0.5, 3.0, None, True)


@pytest.mark.parametrize(
    ("status", "how", "end", "why"),
    [
        ("diverged", {}, End.DIVERGED, "the first line"),
        ("failed", {}, End.FAILED, "the first line"),
        ("running", {}, End.FAILED, "its process was killed"),
        ("running", {"stopped": True}, End.INTERRUPTED, None),
        ("done", {"why": "no memory"}, End.FAILED, "no memory"),
    ],
)
def test_the_result_and_its_process_say_how_it_ended(tmp_path, status, how, end, why):
    found = outcome(tmp_path, status, error="the first line\nand the second", **how)
    assert found.status is end and found.why == why


def test_a_missing_or_damaged_result_is_a_failure(tmp_path):
    assert read_outcome(tmp_path, [], missing="it is gone").why == "it is gone"
    (tmp_path / RESULT).write_text("{")
    found = read_outcome(tmp_path, [])
    assert found.status is End.FAILED and str(tmp_path) not in str(found.why) and RESULT in str(found.why)


def test_a_run_that_was_not_made(tmp_path):
    refused = not_made(tmp_path, [], RunConflict(f"{tmp_path} holds another run"))
    elsewhere = not_made(tmp_path, [], RunLocked("another process"))
    assert (refused.status, refused.why) == (End.REFUSED, "holds another run") and elsewhere.status is End.ELSEWHERE
    assert is_failure([refused]) and not is_failure([elsewhere])


def test_a_status_is_its_value_in_json_and_in_text(tmp_path):
    write_result(tmp_path / RESULT, {"status": Status.DONE, "config": {}})
    stored = json.loads((tmp_path / RESULT).read_text())
    assert stored["status"] == "done" and check_result(stored)["status"] is Status.DONE
    assert f"{Status.DONE:>6} {End.REFUSED}" == "  done refused"
