"""How a machine is divided among parallel runs."""

import os
import subprocess

import pytest
import torch

from cifarbn.cli import slots
from cifarbn.cli.slots import gpu_names, make_slots, parse_jobs, usable_cores
from cifarbn.errors import UserError


@pytest.fixture
def without_threads(monkeypatch):
    """Unset the environment variables for the number of threads and the visible GPUs."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("12", 12), ("auto", None)])
def test_numbers_of_jobs(text, expected):
    assert parse_jobs(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "", "²", "AUTO"])
def test_bad_numbers_of_jobs(text):
    with pytest.raises(UserError, match="--jobs takes a whole number of at least 1, or auto, not"):
        parse_jobs(text)


def test_cores_are_divided(without_threads, monkeypatch):
    monkeypatch.setattr(slots, "usable_cores", lambda: 16)
    assert make_slots(4, ["cpu"] * 19) == [{"OMP_NUM_THREADS": "4"}] * 4
    assert make_slots(8, ["cpu"] * 3) == [{"OMP_NUM_THREADS": "5"}] * 3, "no more slots than runs"
    assert make_slots(20, ["cpu"] * 20) == [{"OMP_NUM_THREADS": "1"}] * 20
    assert make_slots(1, ["cpu"] * 19) == [{}], "same as without --jobs"
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert make_slots(4, ["cpu"] * 19) == [{}] * 4, "the user's own number is kept"


def test_usable_cores_respect_the_cpu_affinity():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("cores", "gigabytes", "jobs"), [(1, 64, 1), (2, 64, 1), (16, 64, 4), (16, 15, 2), (16, 1, 1)])
def test_automatic_jobs_on_a_cpu(without_threads, monkeypatch, cores, gigabytes, jobs):
    monkeypatch.setattr(slots, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**30, "SC_PHYS_PAGES": gigabytes}.get)
    assert len(make_slots(None, ["cpu"] * 19)) == jobs


H100, T4 = (80 * 10**9, 132), (15 * 10**9, 40)


@pytest.mark.parametrize(
    ("gpus", "cores", "devices"),
    [
        ([H100], 16, [None] * 4),
        ([H100], 6, [None] * 2),
        ([H100], 2, [None]),
        ([(7 * 10**9, 132)], 16, [None]),  # another process uses the rest of its memory
        ([T4], 16, [None]),
        ([H100, T4], 64, ["0", "1", "0", "0", "0"]),
        ([H100, H100], 2, ["0", "1"]),
    ],
)
def test_automatic_jobs_on_gpus(without_threads, monkeypatch, gpus, cores, devices):
    answer = subprocess.CompletedProcess([], 0, stdout=f"a warning\n{list(map(list, gpus))}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(slots, "usable_cores", lambda: cores)
    divided = make_slots(None, ["auto"] * 19)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in divided] == devices


def test_jobs_are_spread_over_the_visible_gpus(without_threads, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_names() == ["0", "1"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(3, ["auto"] * 19)] == ["0", "1", "0"]
    assert make_slots(1, ["auto"] * 19) == [{}]
    assert all("CUDA_VISIBLE_DEVICES" not in slot for slot in make_slots(3, ["cpu"] * 19))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5a")
    assert gpu_names() == ["3", "GPU-5a"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(2, ["auto"] * 19)] == ["3", "GPU-5a"]


def test_two_jobs_per_gpu(without_threads, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    divided = make_slots(8, ["gpu"] * 19)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in divided] == list("01230123")


@pytest.mark.parametrize(
    ("accelerators", "jobs", "devices"),
    [
        (["cpu", "cpu"], 2, [None, None]),
        (["cpu", "gpu"], 2, ["0", "1"]),
        (["auto", "cpu", "cpu"], 3, ["0", "1", "0"]),
        (["gpu"] * 9, None, ["0", "1", "0", "1", "0", "1", "0", "1"]),
        (["gpu"] * 8 + ["cpu"], None, ["0", "1", "0"]),  # the CPU has room for three
    ],
)
def test_slots_fit_every_run(without_threads, monkeypatch, accelerators, jobs, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(slots, "_rooms_on_gpus", lambda: [4, 4])
    monkeypatch.setattr(slots, "_room_on_cpu", lambda: 3)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in make_slots(jobs, accelerators)] == devices


def test_runs_on_the_cpu_fit_the_memory_limit(monkeypatch):
    monkeypatch.setattr(slots, "usable_cores", lambda: 5 * slots.CORES)
    for limit, runs in ((3 * slots.BYTES, 3), (slots.BYTES // 2, 1)):
        monkeypatch.setattr(slots, "memory_limit", lambda limit=limit: limit)
        monkeypatch.setattr("os.sysconf", lambda name: 2**30)
        assert len(make_slots(None, ["cpu"] * 9)) == runs


def test_a_failed_gpu_query_is_one_error(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stderr="Traceback\nRuntimeError: no driver\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"cannot query the GPUs \(RuntimeError: no driver\); give a number"):
        make_slots(None, ["auto"] * 19)


@pytest.mark.gpu
def test_a_gpu_is_queried():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert len(make_slots(None, ["auto"] * 19)) >= 1
