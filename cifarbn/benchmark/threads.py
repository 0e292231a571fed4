"""`threads`: the number of threads that a run chooses, against one and against all, alone and beside busy processes."""

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

from cifarbn.benchmark.harness import Report, in_turn, median_ratio
from cifarbn.benchmark.step import NETS, TrainingStep
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.cores import OtherProcesses, usable_cpus
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.threads import FREE, Threads, choose_threads, counted, set_threads
from cifarbn.training.callbacks.thread_watch import ThreadWatch

BUSY = 2  # processes, each of which keeps a core busy if it finds one
OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

# Until its parent is gone, which may have been killed.
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"

_step: TrainingStep  # in the sides' processes only
_most: int  # threads that torch takes by itself


def measure_threads(chosen: argparse.Namespace) -> Report:
    """Train one net on a CPU for some steps with the number of threads that a run chooses, with one, and with all.

    Each is measured alone and beside `BUSY` busy processes. `auto` chooses before each stretch, which does not count,
    and may change the number within it. In "auto, surprised" the busy processes come when it has chosen all threads:
    the stretch contains its change. "passive" is OMP_WAIT_POLICY=passive: a thread that waits for others sleeps at
    once, where by default it spins for some milliseconds.

    What other programs do is in the notes: where they use cores, "alone" is not alone.
    """
    with _unset(OPENMP), ExitStack() as stack:
        default = stack.enter_context(_process(chosen))
        most = default.submit(_all_threads).result()
        with _unset((), OMP_WAIT_POLICY="passive"):
            passive = stack.enter_context(_process(chosen))
            passive.submit(_all_threads).result()
        used = [_cores_used()]
        numbers: dict[str, list[int]] = {}

        def side(
            name: str, pool: ProcessPoolExecutor, number: int | None, watched: bool = False
        ) -> Callable[[], float]:
            busy = BUSY if name.startswith("busy") else 0

            def run() -> float:
                with busy_processes(busy):
                    seconds, last = pool.submit(_train, chosen.steps, number, watched).result()
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
        seconds = in_turn(chosen.rounds, sides)
        used.append(_cores_used())
    return {
        "what": f"{chosen.steps} steps of {chosen.net}, batch {chosen.batch_size}, alone and beside {BUSY} busy "
        f"processes, on {len(usable_cpus())} CPUs",
        "unit": "images/s",
        "amount": chosen.steps * chosen.batch_size,
        "seconds": seconds,
        "threads_at_the_end": numbers,
        "cores_used_by_others": used,
        "notes": [
            *(_against_best(seconds, state, [counted(1), counted(most)]) for state in ("alone", "busy")),
            f"auto's threads at the end of each stretch: alone {numbers['alone: auto']}, busy {numbers['busy: auto']}, "
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
    """Keep as many cores busy as long as the block lasts, with processes of this one's priority."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def _unset(names: tuple[str, ...], **values: str) -> Iterator[None]:
    """Let processes that are started in the block find an environment without some variables, and with others."""
    before = dict(os.environ)
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _process(chosen: argparse.Namespace) -> ProcessPoolExecutor:
    """A process of its own: OpenMP reads its environment once, when it is loaded."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, _prepare, (chosen.net, chosen.batch_size))


def _prepare(net: str, batch_size: int) -> None:
    global _step, _most
    _most = torch.get_num_threads()
    hardware = Hardware.choose("cpu", compile=False)
    dtype = torch.bfloat16 if hardware.precision == "bf16-mixed" else torch.float32
    module = accelerate(NETS[net](), hardware)
    _step = TrainingStep(module, batch_size, torch.device("cpu"), dtype, torch.channels_last)


def _all_threads() -> int:
    return _most


def _train(steps: int, number: int | None, watched: bool) -> tuple[float, int]:
    """Seconds of `steps` steps after the first, and the number of threads at their end.

    Args:
        steps: that count.
        number: of threads; None lets the run choose.
        watched: whether the number may change though it is given.
    """
    set_threads(_most)  # as at the start of a process
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
