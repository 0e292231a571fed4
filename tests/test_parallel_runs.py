"""Parallel processes, with scripts instead of runs."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from cifarbn.cli import parallel_runs
from cifarbn.cli.parallel_runs import ParallelProcesses

# Creates a file once it runs; when it is stopped, it saves and exits.
SAVES = """
import signal, sys, time
from pathlib import Path
def save(*_):
    Path(sys.argv[1] + ".saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1]).touch()
time.sleep(60)
"""
IGNORES = SAVES.replace("signal.SIGTERM, save", "signal.SIGTERM, signal.SIG_IGN")


def python(script, *arguments):
    return [sys.executable, "-S", "-c", script, *map(str, arguments)]


def start(processes, key, script, *arguments):
    processes.start(key, python(script, *arguments), f"label {key}")
    return processes._running[-1].popen


def wait_for(*files):
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_at_most_one_process_runs_per_slot(tmp_path):
    script = """
import sys, time
began = time.monotonic()
time.sleep(0.3)
print(began, time.monotonic(), file=open(sys.argv[1], "w"))
"""
    with ParallelProcesses([{}, {}]) as processes:
        for key in range(5):
            assert processes.wait_for_slot()
            start(processes, key, script, tmp_path / str(key))
        processes.wait_for_all()
    spans = [tuple(map(float, (tmp_path / str(key)).read_text().split())) for key in range(5)]
    at_a_time = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(at_a_time) == 2 and not processes.stopped


def test_each_process_has_the_environment_of_its_slot(tmp_path, monkeypatch):
    monkeypatch.setenv("ALL", "shared")
    script = "import os, sys, time; print(os.environ['OWN'], os.environ['ALL'], file=open(sys.argv[1], 'w'))"
    with ParallelProcesses([{"OWN": "a"}, {"OWN": "b"}]) as processes:
        start(processes, 0, f"{script}; time.sleep(1)", tmp_path / "0")
        start(processes, 1, script, tmp_path / "1").wait()
        assert processes.wait_for_slot()
        start(processes, 2, script, tmp_path / "2")
        processes.wait_for_all()
    assert [(tmp_path / str(key)).read_text() for key in range(3)] == ["a shared\n", "b shared\n", "b shared\n"]


def test_lines_of_several_processes_are_whole_and_labelled(capfd):
    script = "import sys\nfor i in range(500): print('x' * 50, i)\nprint('oops', file=sys.stderr)"
    with ParallelProcesses([{}, {}]) as processes:
        for key in range(2):
            start(processes, key, script)
        processes.wait_for_all()
    out, err = capfd.readouterr()
    expected = [f"[label {key}] {'x' * 50} {i}" for key in range(2) for i in range(500)]
    assert sorted(out.splitlines()) == sorted([*expected, "[label 0] oops", "[label 1] oops"]) and not err


def test_a_single_process_writes_to_the_terminal_directly(capfd):
    with ParallelProcesses([{}]) as processes:
        start(processes, 0, "import sys; print('a\\n\\nb', end=''); print('c', file=sys.stderr)")
        processes.wait_for_all()
    assert capfd.readouterr() == ("a\n\nb", "c\n")


@pytest.mark.parametrize("waiting_for", ["a slot", "all"])
def test_at_the_deadline_all_save_and_end(tmp_path, waiting_for):
    files = [tmp_path / "0", tmp_path / "1"]
    with ParallelProcesses([{}, {}]) as processes:
        children = [start(processes, key, SAVES, file) for key, file in enumerate(files)]
        wait_for(*files)
        soon = time.monotonic() + 0.2
        if waiting_for == "a slot":
            assert not processes.wait_for_slot(soon)
        processes.wait_for_all(soon)
        assert processes.stopped == {0, 1}
        wait_for(*(tmp_path / f"{key}.saved" for key in range(2)))
        assert [child.returncode for child in children] == [143, 143]


def test_after_the_deadline_there_is_no_slot_and_ended_processes_are_not_stopped():
    with ParallelProcesses([{}, {}]) as processes:
        start(processes, 0, "pass")
        processes.wait_for_all()
        assert not processes.wait_for_slot(time.monotonic() - 1)
    assert not processes.stopped


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("slots", [1, 2])
def test_an_exception_propagates_after_all_processes_have_saved(tmp_path, error, slots):
    files = [tmp_path / str(key) for key in range(slots)]
    with pytest.raises(error), ParallelProcesses([{}] * slots) as processes:
        children = [start(processes, key, SAVES, file) for key, file in enumerate(files)]
        wait_for(*files)
        raise error
    assert all(file.with_suffix(".saved").exists() for file in files)
    assert [child.returncode for child in children] == [143] * slots


def test_a_second_interruption_kills_processes_that_do_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_runs, "SECONDS_TO_SAVE", 0.2)
    sleep, interruptions = time.sleep, [KeyboardInterrupt]

    def interrupted(seconds):
        if interruptions:
            raise interruptions.pop()
        sleep(seconds)

    files = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(KeyboardInterrupt), ParallelProcesses([{}, {}]) as processes:
        children = [start(processes, key, IGNORES, file) for key, file in enumerate(files)]
        wait_for(*files)
        monkeypatch.setattr(time, "sleep", interrupted)
        raise SystemExit
    assert not interruptions and [child.returncode for child in children] == [-signal.SIGKILL] * 2


def test_a_signal_during_the_start_of_a_process_ends_it_too(monkeypatch):
    children, real = [], subprocess.Popen

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        children.append(real(*args, **options))
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), ParallelProcesses([{}, {}]) as processes:
        start(processes, 0, "import time; time.sleep(60)")
    assert children[0].returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_does_not_affect_other_processes(tmp_path):
    with ParallelProcesses([{}, {}]) as processes:
        failed = start(processes, 0, "import sys; sys.exit(1)")
        other = start(processes, 1, "import time; time.sleep(0.5)")
        processes.wait_for_all()
    assert (failed.returncode, other.returncode) == (1, 0) and not processes.stopped


def test_a_process_counts_as_ended_even_if_its_child_still_runs(tmp_path):
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, file=open(sys.argv[1], 'w'))"
    with ParallelProcesses([{}, {}]) as processes:
        start(processes, 0, script, tmp_path / "pid")
        processes.wait_for_all()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # raises an error if the child has ended already


def test_a_closed_output_does_not_block_processes(monkeypatch):
    def broken(text):
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=broken, flush=broken))
    with ParallelProcesses([{}, {}]) as processes:
        child = start(processes, 0, "for i in range(20000): print('x' * 50)")
        processes.wait_for_all()
    assert child.returncode == 0


def test_the_estimated_time_is_divided_by_the_number_of_slots(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    processes = ParallelProcesses([{}, {}])
    assert processes.seconds_left(4) is None
    processes._seconds = [20.0, 40.0]
    assert processes.seconds_left(4) == 60
    assert processes.seconds_left(1) == 30, "one run cannot be divided"
    processes._running = [SimpleNamespace(began=now - 10), SimpleNamespace(began=now - 50)]
    assert processes.seconds_left(0) == 10 and processes.seconds_left(2) == 40
