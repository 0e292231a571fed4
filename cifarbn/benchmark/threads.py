"""`threads`: the number of threads chosen by `auto` against one and all, idle or with busy processes."""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager

import torch

from cifarbn.benchmark.harness import Results, in_turn, median_ratio
from cifarbn.benchmark.step import MODELS, TrainingStep
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.cores import OtherProcesses, usable_cpus
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.threads import FREE, Threads, choose_threads, counted, set_threads
from cifarbn.training.callbacks.thread_watch import ThreadWatch

BUSY = 2  # number of busy processes
OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

# Runs until its parent is gone, which may have been killed.
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"

_step: TrainingStep  # set in the processes of the sides only
_most: int  # torch's default number of threads


def measure_threads(args: argparse.Namespace) -> Results:
    """Train one model on a CPU for some steps with the number of threads chosen by `auto`, with one, and with all.

    Each is measured alone and next to `BUSY` busy processes. `auto` chooses before each measurement, which is not
    timed, and may change the number during it. In "auto, surprised", the busy processes start after `auto` has chosen
    all threads, so the measurement includes its change. "passive" is OMP_WAIT_POLICY=passive: waiting threads sleep at
    once, where by default they spin for some milliseconds.

    The notes state the number of cores that other programs use: if it is not 0, "alone" is not quite alone.
    """
    with _unset(OPENMP), ExitStack() as stack:
        default = stack.enter_context(_process(args))
        most = default.submit(_all_threads).result()
        with _unset((), OMP_WAIT_POLICY="passive"):
            passive = stack.enter_context(_process(args))
            passive.submit(_all_threads).result()
        used = [_cores_used()]
        numbers: dict[str, list[int]] = {}

        def side(
            name: str, pool: ProcessPoolExecutor, number: int | None, watched: bool = False
        ) -> Callable[[], float]:
            busy = BUSY if name.startswith("busy") else 0

            def run() -> float:
                with busy_processes(busy):
                    seconds, last = pool.submit(_train, args.steps, number, watched).result()
                numbers.setdefault(name, []).append(last)
                return seconds

            return run

        sides = {}
        for state in ("alone", "busy"):
            sides[f"{state}: auto"] = side(f"{state}: auto", default, None)
            for number in dict.fromkeys((1, most)):
                for kind, pool in (("", default), (", passive", passive)) if number > 1 else (("", default),):
                    name = f"{state}: {counted(number)}{kind}"
                    sides[name] = side(name, pool, number)
        sides["busy: auto, surprised"] = side("busy: auto, surprised", default, most, watched=True)
        seconds = in_turn(args.rounds, sides)
        used.append(_cores_used())
    return {
        "title": f"{args.steps} steps of {args.model}, batch {args.batch_size}, alone and next to {BUSY} busy "
        f"processes, on {len(usable_cpus())} CPUs",
        "unit": "images/s",
        "amount": args.steps * args.batch_size,
        "seconds": seconds,
        "threads_at_the_end": numbers,
        "cores_used_by_others": used,
        "notes": [
            *(_against_best(seconds, state, [counted(1), counted(most)]) for state in ("alone", "busy")),
            f"auto's threads at the end of each round: alone {numbers['alone: auto']}, busy {numbers['busy: auto']}, "
            f"surprised {numbers['busy: auto, surprised']}",
            "other programs used {} cores before the measurement and {} after it".format(
                *("an unknown number of" if cores is None else f"{cores:.1f}" for cores in used)
            ),
        ],
    }


def _against_best(seconds: dict[str, list[float]], state: str, fixed: list[str]) -> str:
    best = min((f"{state}: {name}" for name in fixed), key=lambda name: statistics.median(seconds[name]))
    return f"{state}: auto reaches {median_ratio(seconds[best], seconds[f'{state}: auto']):.0%} of {best}"


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `count` busy processes, with this process's priority, until the end of the block."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", _BUSY]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def _unset(names: tuple[str, ...], **values: str) -> Iterator[None]:
    """Unset some environment variables and set others in the block, for the processes that it starts."""
    before = dict(os.environ)
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _process(args: argparse.Namespace) -> ProcessPoolExecutor:
    """Return an executor with a new process, because OpenMP reads its environment only once, when it is loaded."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, _prepare, (args.model, args.batch_size))


def _prepare(model: str, batch_size: int) -> None:
    global _step, _most
    _most = torch.get_num_threads()
    hardware = Hardware.choose("cpu", compile=False)
    dtype = torch.bfloat16 if hardware.precision == "bf16-mixed" else torch.float32
    module = accelerate(MODELS[model](), hardware)
    _step = TrainingStep(module, batch_size, torch.device("cpu"), dtype, torch.channels_last)


def _all_threads() -> int:
    return _most


def _train(steps: int, number: int | None, watched: bool) -> tuple[float, int]:
    """Return the seconds of `steps` steps after the first, and the number of threads at the end.

    Args:
        steps: number of timed steps.
        number: number of threads; None for `auto`.
        watched: whether the given number may change.
    """
    set_threads(_most)  # as in a new process
    threads = Threads(number, _most, FREE, watched) if number else choose_threads(environment={})
    set_threads(threads.count)
    watch = ThreadWatch(threads)
    start = 0.0
    for taken in range(steps + 1):
        began = time.perf_counter()
        _step()
        now = time.perf_counter()
        if taken == 0:
            start = now
        if threads.watched:
            watch.step(now - began, taken + 1, lambda line: None)
    return time.perf_counter() - start, torch.get_num_threads()


def _cores_used() -> float | None:
    others = OtherProcesses(usable_cpus())
    time.sleep(1)
    return others.cores()
