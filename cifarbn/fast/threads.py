"""The number of CPU threads of a run: chosen at its start from the free cores, and adapted while it trains.

Every parallel operation waits for its slowest thread. A thread on a core that another process uses has to wait for its
turn, while the others spin: two threads on two busy cores are several times slower than one. A run therefore uses at
most as many threads as there are free cores.

The number of threads changes the order of some sums, and with it the last bits of results. If it is given
(`trainer.threads=N` or OMP_NUM_THREADS) it never changes, and the same command gives bit-identical results. `auto` uses
all cores of an idle machine; on a busy machine, two runs may differ by rounding.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cifarbn.errors import UserError
from cifarbn.fast.cgroup import cpu_limit
from cifarbn.fast.cores import OtherProcesses, usable_cpus

LARGEST = 1024  # OpenMP ends the program if it cannot create as many threads as requested
LOOK_SECONDS = 0.25  # duration of the measurement of core use at the start: 25 of the kernel's ticks
WINDOW_SECONDS = 1.0  # shortest time of training between two decisions
WINDOW_STEPS = 3  # fewest steps between two decisions, so that one slow step, such as a probe, does not move the median
LONG_WINDOW_SECONDS = 3.0  # with fewer steps than that, decide after this time
MARGIN = 0.6  # change the number of threads only if the number of free cores differs by more than this
SLOWER = 1.8  # react if a step takes this many times its usual time
PATIENCE = 10.0  # seconds before a change that did not help, or was undone, is tried again; doubled each time
LONGEST_PATIENCE = 120.0
FREE = "the cores are free"
IN_USE = "other processes use the cores"
MORE_FREE = "cores have become free"
SLOWER_STEPS = "steps have become slower"


@dataclass(frozen=True)
class Threads:
    """A number of threads and the reason for it.

    Attributes:
        count: number of threads.
        most: number of threads that this process would use on an idle machine.
        reason: the reason for `count`, in a few words.
        watched: whether the run may change the number.
    """

    count: int
    most: int
    reason: str
    watched: bool = False

    def __str__(self) -> str:
        return f"{self.count} of {counted(self.most)}: {self.reason}"


def choose_threads(
    requested: int | str = "auto",
    *,
    gpu: bool = False,
    processes: int = 1,
    environment: Mapping[str, str] = os.environ,
) -> Threads:
    """Return the number of threads that a run should compute with; does not set it.

    `requested` takes precedence, then OMP_NUM_THREADS, then the number of free cores, measured for `LOOK_SECONDS`.

    Args:
        requested: trainer.threads, a number or "auto".
        gpu: whether the model is on a GPU. CPU threads then matter little, and torch's default is kept.
        processes: number of processes of this run on this machine.
        environment: the environment variables.

    Raises:
        UserError: If `requested` or OMP_NUM_THREADS is not a valid number of threads.
    """
    most = torch.get_num_threads()  # the physical cores of the affinity, or MKL_NUM_THREADS
    if requested != "auto":
        return Threads(_number(requested, "trainer.threads must be auto or"), most, "trainer.threads")
    if variable := environment.get("OMP_NUM_THREADS"):
        first = variable.split(",")[0].strip()  # the others are for nested parallel regions
        number = int(first) if first.isdecimal() else variable
        return Threads(_number(number, "OMP_NUM_THREADS must be unset or"), most, "OMP_NUM_THREADS")
    if gpu:
        return Threads(most, most, "the model is on a GPU")
    limit = cpu_limit()
    if limit is not None and round(limit) < most:
        most, reason = max(1, round(limit)), f"the CPU limit is {limit:g} cores"
    else:
        reason = FREE
    if processes > 1:
        return Threads(max(1, most // processes), most, f"{processes} processes share the cores")
    cpus = usable_cpus()
    others = OtherProcesses(cpus)
    if most > 1:
        time.sleep(LOOK_SECONDS)
    count = fitting(most, len(cpus), others.cores())
    return Threads(count, most, IN_USE if count < most else reason, watched=most > 1)


def fitting(most: int, cores: int, others: float | None) -> int:
    """Return the number of threads for which there are free cores.

    Args:
        most: largest number to return.
        cores: number of cores that this process may use.
        others: how many of them other processes use, such as 1.3; None, if unknown, counts as 0.
    """
    return min(most, max(1, math.floor(cores - (others or 0.0) + 0.5)))


def _number(value: Any, rule: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise UserError(f"{rule} a whole number from 1 to {LARGEST}, not {value!r}")
    return value


def set_threads(count: int) -> None:
    """Set torch's number of threads, unless it already has this value."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Restore torch's number of threads at the end of the block, so that a sweep's next run chooses its own."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)


class Decision:
    """Decides when a run changes its number of threads, from its step times and the cores that other processes use.

    A change is undone if the steps after it are slower than those before or, with more threads, not faster. To avoid
    oscillation, the number is not increased for `PATIENCE` seconds after a decrease, and a change that was undone is
    not tried again for `PATIENCE` seconds; both times double at each repetition.

    Args:
        count: current number of threads.
        most: largest number of threads.
        cores: number of cores that this process may use.
    """

    def __init__(self, count: int, most: int, cores: int) -> None:
        self.count, self.most, self.cores = count, most, cores
        self._usual: float | None = None  # seconds of a step with the current number of threads
        self._hint = 0  # the change that the previous window suggested: -1 fewer threads, 1 more
        self._before: tuple[int, float] | None = None  # while a change is tried: the previous number and step seconds
        self._not_before = {-1: -math.inf, 1: -math.inf}  # the earliest time of a change in each direction
        self._patience = {-1: PATIENCE, 1: PATIENCE}

    def after(self, seconds: float, others: float | None, now: float) -> str | None:
        """Update `count` after a window of training; returns the reason if it changed, else None.

        Args:
            seconds: median time of the steps in the window.
            others: number of cores that other processes used meanwhile; None if unknown.
            now: time of a monotonic clock.
        """
        if self._before is not None:
            (count, earlier), self._before = self._before, None
            undone = seconds >= earlier / 1.1 if self.count > count else seconds > earlier
            if undone:
                self._block(1 if self.count > count else -1, now)
                self.count, self._usual = count, None
                return f"steps took {earlier:.3g} s with {counted(count)}, {seconds:.3g} s now"
        target = self._target(seconds, others)
        direction, hint = (target > self.count) - (target < self.count), self._hint
        self._hint = direction
        # Wait for two windows in a row: the load may have changed late in the first one, affecting few of its steps.
        if direction == 0 or direction != hint or now < self._not_before[direction]:
            if direction == 0:
                self._usual = min(seconds, self._usual or math.inf)
            return None
        if direction < 0:
            self._block(1, now)
        self._before, self._usual, self._hint = (self.count, seconds), None, 0
        self.count = target
        if direction > 0:
            return MORE_FREE
        return SLOWER_STEPS if others is None or self.cores - others >= self._before[0] - MARGIN else IN_USE

    def _target(self, seconds: float, others: float | None) -> int:
        slower = self._usual is not None and seconds > SLOWER * self._usual
        if others is None:
            # Step times alone do not show when cores become free, so try more threads.
            return max(1, self.count // 2) if slower else min(self.most, 2 * self.count)
        free = self.cores - others
        if free < self.count - MARGIN:
            return fitting(self.most, self.cores, others)
        if free >= self.count + MARGIN:
            return max(self.count, fitting(self.most, self.cores, others))
        return max(1, self.count // 2) if slower else self.count

    def _block(self, direction: int, now: float) -> None:
        self._not_before[direction] = now + self._patience[direction]
        self._patience[direction] = min(2 * self._patience[direction], LONGEST_PATIENCE)


def counted(count: int) -> str:
    """Return "1 thread", "2 threads"."""
    return f"{count} thread{'' if count == 1 else 's'}"
