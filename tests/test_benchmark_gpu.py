"""`benchmark gpu`: runs its parts one after another, each with a time limit, and saves the results after each."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from cifarbn.benchmark import gpu
from cifarbn.benchmark.gpu import Part, measure_gpu
from cifarbn.benchmark.harness import as_text
from cifarbn.errors import UserError
from cifarbn.runs.schema import Status

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Return a function that measures parts as if there were a GPU; it returns the results and the written files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")

    def measure(minutes=1.0, **parts):
        monkeypatch.setattr(gpu, "PARTS", parts)
        args = argparse.Namespace(minutes=minutes, only=None, peer=None, root=str(tmp_path))
        report = measure_gpu(args)
        return report["parts"], json.loads((gpu.FOLDER / "gpu.json").read_text()), (gpu.FOLDER / "gpu.md").read_text()

    return measure


def test_a_part_that_fails_or_times_out_keeps_the_others(measured, monkeypatch):
    monkeypatch.setattr(gpu, "KILL_AFTER", 1.0)
    Path("slow.py").write_text(SLEEP)
    parts, stored, table = measured(
        slow=Part("too slow", 1, ("slow",), ()),
        broken=Part("broken", 30, ("no_such_module",), ()),
        good=Part("good", 30, ("platform",), ()),
    )
    assert parts["slow"]["not measured"].startswith("stopped after 1 s")
    assert parts["broken"]["not measured"].startswith("exit code 1; last line: ") and "no_such" in str(parts["broken"])
    assert "not measured" not in parts["good"]
    assert stored["parts"].keys() == parts.keys() and stored["device"] == "a GPU"
    assert [line.split(" | ")[1] for line in table.splitlines()[4:]] == ["too slow", "broken", "good"]


def test_no_part_starts_after_the_time_limit(measured):
    parts, _, _ = measured(minutes=0.1, one=Part("one", 30, ("platform",), ()))
    assert parts == {"one": {"not measured": "out of time"}}


def test_a_suite_is_skipped_without_cifar10_and_its_runs_are_in_the_table(measured, tmp_path, monkeypatch):
    suite = Part("suite", 30, ("platform",), (), runs=Path("runs"), needs_cifar10=True)
    parts, _, _ = measured(suite=suite)
    assert "no CIFAR-10 in" in parts["suite"]["not measured"]
    for name, status in (("a", Status.DONE), ("b", Status.INTERRUPTED)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        result = {"status": status, "config": {}, "metrics": {"test/acc": 0.9123456}, "seconds": {"total": 3.0}}
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(gpu, "has_cifar10", lambda root: True)
    _, _, table = measured(suite=suite)
    assert "1 of 2 runs done" in table and "'test/acc': 0.9123" in table


def test_without_a_gpu_there_is_one_error_message(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA device"):
        measure_gpu(argparse.Namespace(minutes=1, only=None, peer=None, root="."))


def test_results_without_sides_are_printed_as_notes():
    assert as_text({"title": "checks", "device": "a GPU", "notes": ["2 of 3 held"]}) == "checks\na GPU\n2 of 3 held"


def test_a_part_gets_the_options_it_takes(measured, tmp_path):
    program = "import sys, json; json.dump({'arguments': sys.argv[1:]}, open(sys.argv[2], 'w'))"
    (tmp_path / "program.py").write_text(program)
    parts, _, _ = measured(one=Part("", 60, ("program",), ("json", "root", "overrides")))
    file = str(gpu.FOLDER / "one.json")
    drawn = ["data=shapes", "data.train_size=50000", "data.test_size=10000"]
    assert parts["one"]["arguments"] == ["--json", file, "--root", str(tmp_path), *drawn]
    assert "not measured" not in parts["one"]


def test_all_runs_lie_in_the_folder_of_the_benchmark():
    """None of the user's runs is replaced: with resume=false a run replaces the one in its folder."""
    parts = {name: part for name, part in gpu.PARTS.items() if "resume=false" in part.command}
    assert parts.keys() == {"vgg_a_bn", "course_report", "resnet18_200_epochs"}
    for name, part in parts.items():
        assert part.runs == gpu.FOLDER / name
        assert {f"hydra.run.dir={part.runs}", f"benchmark_gpu/{name}"} & set(part.command)


def test_every_option_is_taken_by_a_part():
    assert {key for part in gpu.PARTS.values() for key in part.takes} == {
        *("json", "root", "peer", "budget", "overrides")
    }
