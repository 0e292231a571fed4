"""The number of threads: detection of free cores, the choice at the start, and changes during training."""

import os
import time
from types import SimpleNamespace

import pytest
import torch
from in_process import make_run

from cifarbn.errors import UserError
from cifarbn.fast import cores, threads
from cifarbn.fast.cores import OtherProcesses, usable_cpus
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.threads import FREE, IN_USE, SLOWER_STEPS, Decision, Threads, choose_threads, fitting, threads_kept
from cifarbn.training.callbacks import thread_watch
from cifarbn.training.callbacks.thread_watch import ThreadWatch

HERTZ = os.sysconf("SC_CLK_TCK")


# Files of the operating system


def test_the_cpus_are_those_of_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5})
    assert usable_cpus() == {2, 5}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Fake /proc/stat, clock and CPU time of this process, which tests set."""
    now = SimpleNamespace(clock=100.0, own=7.0, stat=tmp_path / "stat")
    monkeypatch.setattr(cores.time, "monotonic", lambda: now.clock)
    monkeypatch.setattr(cores.time, "process_time", lambda: now.own)

    def show(*cpus):
        """Write the seconds of each CPU: user, nice, system, idle, iowait, irq, softirq, steal."""
        lines = [f"cpu{i} {' '.join(str(round(s * HERTZ)) for s in cpu)} 0 0" for i, cpu in enumerate(cpus)]
        now.stat.write_text("\n".join(["cpu  1 0 0 1 0 0 0 0 0 0", *lines, "intr 1 2 3", ""]))

    now.show = show
    return now


def test_other_processes_use_the_busy_time_minus_our_own(machine):
    machine.show((1, 0, 0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0, 0, 0))
    others = OtherProcesses(frozenset({0, 1}), machine.stat)
    machine.clock, machine.own = machine.clock + 2, machine.own + 1
    machine.show((2, 0, 0.5, 0.5, 0, 0, 0, 0), (1.5, 0, 0, 0.75, 0.25, 0, 0, 0.5))  # steal counts as used by others
    assert others.cores() == pytest.approx((1.5 + 1 - 1) / 2)


def test_only_the_cpus_of_the_affinity_count(machine):
    machine.show((0,) * 8, (1,) * 8)
    others = OtherProcesses(frozenset({1}), machine.stat)
    machine.clock += 1
    machine.show((1, 0, 0, 0, 0, 0, 0, 0), (1, 1, 1, 2, 1, 1, 1, 1))
    assert others.cores() == 0


@pytest.mark.parametrize(("priority", "used"), [(0, 0.0), (5, 1.0)])
def test_niced_processes_do_not_count_unless_we_are_niced(machine, monkeypatch, priority, used):
    monkeypatch.setattr(os, "getpriority", lambda which, who: priority)
    machine.show((1,) * 8)
    others = OtherProcesses(frozenset({0}), machine.stat)
    machine.clock += 1
    machine.show((1, 2, 1, 1, 1, 1, 1, 1))
    assert others.cores() == used


@pytest.mark.parametrize("text", ["", "cpu0 0 0 0 0 0 0 0 0 0 0\n", "cpu0 a b\n", "cpu7 1 1 1 1 1 1 1 1 1 1\n"])
def test_an_invalid_stat_file_is_unknown_load(machine, text):
    machine.stat.write_text(text)
    others = OtherProcesses(frozenset({0}), machine.stat)
    machine.clock += 1
    assert others.cores() is None


def test_a_busy_process_is_seen_on_this_machine():
    if not os.path.exists("/proc/stat"):
        pytest.skip("this system has no /proc/stat")
    others = OtherProcesses(usable_cpus())
    time.sleep(0.1)
    assert 0 <= others.cores() <= len(usable_cpus())


# The choice


@pytest.mark.parametrize(
    ("most", "cores", "others", "count"),
    [
        (2, 2, 0.0, 2),
        (2, 2, None, 2),
        (2, 2, 0.4, 2),
        (2, 2, 0.6, 1),
        (2, 2, 2.0, 1),  # no core is free, but a run needs one
        (8, 16, 4.0, 8),  # two CPUs per core
        (8, 8, 3.2, 5),
        (4, 64, 60.7, 3),  # a limit of 4 cores
    ],
)
def test_as_many_threads_as_there_are_free_cores(most, cores, others, count):
    assert fitting(most, cores, others) == count


@pytest.fixture
def two_cores(monkeypatch):
    """Fake a machine with two cores, of which other processes use `used`."""
    now = SimpleNamespace(used=0.0, limit=None)

    class Others:
        def __init__(self, cpus):
            pass

        def cores(self):
            return now.used

    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 2)
    for module in (threads, thread_watch):
        monkeypatch.setattr(module, "OtherProcesses", Others)
        monkeypatch.setattr(module, "usable_cpus", lambda: frozenset({0, 1}))
    monkeypatch.setattr(threads, "cpu_limit", lambda: now.limit)
    monkeypatch.setattr(threads, "LOOK_SECONDS", 0)
    return now


def test_an_idle_machine_gives_all_its_cores(two_cores):
    assert choose_threads(environment={}) == Threads(2, 2, FREE, watched=True)


def test_on_busy_cores_fewer_threads_are_chosen_and_the_reason_is_printed(two_cores):
    two_cores.used = 1.9
    chosen = choose_threads(environment={})
    assert chosen == Threads(1, 2, IN_USE, watched=True)
    assert str(chosen) == "1 of 2 threads: other processes use the cores"


def test_a_cpu_limit_bounds_the_number(two_cores):
    two_cores.limit = 1.2
    assert choose_threads(environment={}) == Threads(1, 1, "the CPU limit is 1.2 cores")


@pytest.mark.parametrize("used", [0.0, 2.0])
def test_explicit_numbers_take_precedence_and_never_change(two_cores, used):
    two_cores.used = used
    assert choose_threads(5, environment={"OMP_NUM_THREADS": "3"}) == Threads(5, 2, "trainer.threads")
    assert choose_threads(environment={"OMP_NUM_THREADS": "3"}) == Threads(3, 2, "OMP_NUM_THREADS")
    assert choose_threads(environment={"OMP_NUM_THREADS": "4,2"}).count == 4
    assert choose_threads(4, gpu=True, environment={}).count == 4


def test_with_a_gpu_torchs_default_is_kept(two_cores):
    two_cores.used = 2.0
    assert choose_threads(gpu=True, environment={}) == Threads(2, 2, "the model is on a GPU")


def test_processes_of_one_run_share_the_cores(two_cores):
    assert choose_threads(processes=2, environment={}) == Threads(1, 2, "2 processes share the cores")
    assert choose_threads(processes=3, environment={}).count == 1


@pytest.mark.parametrize("value", [0, -1, 1025, 1.5, True, None, "2", "all"])
def test_an_invalid_number_of_threads_is_an_error(value):
    with pytest.raises(UserError, match=r"^trainer\.threads must be auto or a whole number from 1 to 1024, not "):
        choose_threads(value, environment={})


@pytest.mark.parametrize("value", ["0", "-2", "many", "9999"])
def test_an_invalid_environment_variable_is_an_error(value):
    with pytest.raises(UserError, match="^OMP_NUM_THREADS must be unset or a whole number from 1 to 1024, not "):
        choose_threads(environment={"OMP_NUM_THREADS": value})


def test_a_compiled_model_keeps_its_number_of_threads(two_cores, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Hardware.choose("cpu", compile=False).threads.watched
    assert not Hardware.choose("cpu", compile=True).threads.watched


# Changes during training


def decisions(decision, windows):
    """Return the number of threads after each window (seconds of a step, cores used by others), one every 2 s."""
    counts, now = [], 0.0
    for seconds, others in windows:
        now += 2
        decision.after(seconds, others, now)
        counts.append(decision.count)
    return counts


def test_steady_steps_change_nothing():
    assert decisions(Decision(2, 2, 2), [(0.1, 0.1), (0.13, 0.3), (0.1, 0.2)] * 20) == [2] * 60


def test_busy_processes_take_a_thread_until_they_end():
    # Next to two busy processes on two cores, two threads get one core, and one thread gets 0.67.
    busy = [(0.2, 0.8), (0.9, 1.0)] + [(0.3, 1.33)] * 10
    windows = [(0.1, 0.0)] * 3 + busy + [(0.2, 0.2), (0.2, 0.0), (0.1, 0.0), (0.1, 0.0)]
    assert decisions(Decision(2, 2, 2), windows) == [2] * 4 + [1] * 12 + [2] * 3


def test_a_change_that_slows_steps_is_undone_and_retried_ever_later():
    decision, now, tried = Decision(2, 2, 2), 0.0, []
    for _ in range(200):
        now += 1
        before = decision.count
        decision.after(0.1 if decision.count == 2 else 0.15, 0.7, now)
        if decision.count < before:
            tried.append(now)
    waits = [later - earlier for earlier, later in zip(tried, tried[1:], strict=False)]
    assert tried[0] == 2 and waits[0] >= 10 and all(b >= 1.5 * a for a, b in zip(waits, waits[1:], strict=False))


def test_changing_load_does_not_make_the_number_oscillate():
    decision, now, changes = Decision(2, 2, 2), 0.0, 0
    for busy in ([True] * 3 + [False] * 3) * 100:  # 20 minutes
        now += 2
        seconds = (0.5 if busy else 0.1) if decision.count == 2 else (0.3 if busy else 0.2)
        changes += decision.after(seconds, (1.0 if busy else 0.0), now) is not None
    assert 2 <= changes <= 30


def test_more_threads_that_are_not_faster_are_undone():
    assert decisions(Decision(1, 2, 2), [(0.2, 0.0), (0.2, 0.0), (0.19, 0.0), (0.2, 0.0)]) == [1, 2, 1, 1]


def test_without_a_reading_slower_steps_reduce_the_threads():
    decision = Decision(8, 8, 8)
    assert decisions(decision, [(0.1, None)] * 3 + [(0.25, None)] * 2 + [(0.15, None)]) == [8, 8, 8, 8, 4, 4]
    assert decisions(Decision(8, 8, 8), [(0.1, None)] * 3 + [(0.17, None)] * 2) == [8] * 5


def test_the_reason_of_a_change():
    for others, reason in [(1.0, IN_USE), (0.1, SLOWER_STEPS), (None, SLOWER_STEPS)]:
        decision = Decision(2, 2, 2)
        assert [decision.after(*window) for window in [(0.1, 0.0, 1), (0.5, others, 2)]] == [None, None]
        assert decision.after(0.5, others, 3) == reason


def test_without_a_reading_more_threads_are_retried():
    decision = Decision(2, 2, 2)
    counts = decisions(decision, [(0.1, None), (0.5, None), (0.5, None)] + [(0.3, None)] * 6)
    assert counts == [2, 2, 1, 1, 1, 1, 1, 2, 1]  # retried after 10 s, and undone because it does not help yet


def test_on_many_cores_the_number_follows_the_free_cores():
    assert decisions(Decision(16, 16, 16), [(1.0, 6.0), (1.0, 6.0), (0.8, 6.0), (0.8, 6.0)]) == [16] + [10] * 3


@pytest.fixture
def watch(two_cores, monkeypatch):
    """Watch two threads with a fake clock that steps advance; torch's number of threads is not changed."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(threads.time, "monotonic", lambda: now.seconds)
    now.set = []
    monkeypatch.setattr(thread_watch, "set_threads", now.set.append)
    now.watch, now.said = ThreadWatch(Threads(2, 2, FREE, watched=True)), []

    def steps(count, seconds):
        for _ in range(count):
            now.seconds += seconds
            now.taken = getattr(now, "taken", 0) + 1
            now.watch.step(seconds, now.taken, now.said.append)

    now.steps = steps
    return now


def test_a_change_is_applied_printed_and_recorded(watch, two_cores):
    watch.steps(9, 0.125)
    two_cores.used = 1.0
    watch.steps(6, 0.5)
    assert watch.set == [1] and watch.said == [f"from step 15: 1 of 2 threads ({IN_USE})"]
    assert watch.watch.changes == [{"step": 15, "threads": 1, "reason": IN_USE}]


def test_one_slow_step_is_not_a_slow_window(watch):
    watch.steps(20, 0.1)
    watch.steps(1, 2.0)
    watch.steps(20, 0.1)
    assert watch.set == []


def test_very_slow_steps_shorten_the_window(watch, two_cores):
    watch.steps(1, 3.5)
    two_cores.used = 1.0
    watch.steps(2, 3.5)
    assert watch.set == [1]


def test_the_changes_survive_a_checkpoint(watch, two_cores):
    two_cores.used = 1.0
    watch.steps(10, 0.5)
    later = ThreadWatch(Threads(2, 2, FREE))
    later.load_state_dict(watch.watch.state_dict())
    assert later.changes == watch.watch.changes != []


# Whole runs


def test_a_run_records_its_threads_and_restores_the_process(tmp_path):
    before = torch.get_num_threads()
    made = make_run(tmp_path / "run", "trainer.threads=3", "epochs=1")
    assert (made["threads"], made["threads_reason"], made["thread_changes"]) == (3, "trainer.threads", [])
    assert made["device"].endswith("3 threads") and made["starts"][0]["threads"] == 3
    assert "threads" not in made["config"]["trainer"]
    assert torch.get_num_threads() == before


def test_the_number_of_threads_does_not_identify_a_run(tmp_path):
    make_run(tmp_path / "run", "trainer.threads=1", "epochs=1")
    again = make_run(tmp_path / "run", "trainer.threads=2", "epochs=1")
    assert again["status"] == "done" and again["threads"] == 1


def test_threads_kept_restores_the_number():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads_kept():
        torch.set_num_threads(before + 1)
        raise KeyError
    assert torch.get_num_threads() == before
