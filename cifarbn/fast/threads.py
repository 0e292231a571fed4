"""The number of threads of a run on a CPU: chosen at the start from the free cores, and watched while it trains.

Every parallel operation waits for its slowest thread. On a core that another process uses, that thread waits for its
turn, and the others spin until it is done: two threads on two busy cores are several times slower than one. So a run
takes no more threads than there are free cores.

The number of threads changes the order in which some sums are taken, and so the last bits of a result. Where it is
given (`trainer.threads=N`, or OMP_NUM_THREADS) it never changes, and the same command gives the same bits. `auto` takes
all cores of a machine that does nothing else, each time; on a busy machine two runs may differ by rounding.
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
from cifarbn.fast.cores import OtherProcesses, cgroup_limit, usable_cpus

LARGEST = 1024  # threads; OpenMP ends the program where it cannot make as many as it was asked for
LOOK_SECONDS = 0.25  # at the start, at the cores in use: 25 of the kernel's ticks
WINDOW_SECONDS = 1.0  # of training between two looks, at the least
WINDOW_STEPS = 3  # ... so that a median is not moved by one step that does more, such as a probe's
LONG_WINDOW_SECONDS = 3.0  # ... or where steps are very slow
MARGIN = 0.6  # cores: how far the free ones must be from the number of threads before it changes
SLOWER = 1.8  # a step that takes so many times its usual time is looked into
PATIENCE = 10.0  # seconds before a change that did not help, or was undone, is tried again; doubled each time
LONGEST_PATIENCE = 120.0
FREE = "the cores are free"
IN_USE = "other processes use the cores"
MORE_FREE = "cores have become free"
SLOWER_STEPS = "steps have become slower"


@dataclass(frozen=True)
class Threads:
    """A number of threads, and where it comes from.

    Attributes:
        count: the number.
        most: the largest number that this process would use on a machine of its own.
        reason: why this number, in a few words.
        watched: whether the run may change it.
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
    """Return the number of threads that a run is to compute with; nothing is set yet.

    `requested` comes first, then OMP_NUM_THREADS, then the free cores, at which this looks for `LOOK_SECONDS`.

    Args:
        requested: trainer.threads, a number or "auto".
        gpu: whether the model is on a GPU: the CPU's threads then matter little, and torch's default stays.
        processes: of this run, on this machine.
        environment: where OMP_NUM_THREADS may be set.

    Raises:
        UserError: if `requested` or OMP_NUM_THREADS is not a number of threads.
    """
    most = torch.get_num_threads()  # the physical cores among those of the affinity, or what MKL_NUM_THREADS says
    if requested != "auto":
        return Threads(_number(requested, "trainer.threads must be auto or"), most, "trainer.threads")
    if said := environment.get("OMP_NUM_THREADS"):
        first = said.split(",")[0].strip()  # the others are for parallel regions within parallel regions
        number = int(first) if first.isdecimal() else said
        return Threads(_number(number, "OMP_NUM_THREADS must be unset or"), most, "OMP_NUM_THREADS")
    if gpu:
        return Threads(most, most, "the model is on a GPU")
    limit = cgroup_limit()
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
    """Return the number of threads that find a free core.

    Args:
        most: at the most so many.
        cores: that this process may use.
        others: how many of them other processes use, such as 1.3; None: unknown, taken for none.
    """
    return min(most, max(1, math.floor(cores - (others or 0.0) + 0.5)))


def _number(value: Any, rule: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise UserError(f"{rule} a whole number from 1 to {LARGEST}, not {value!r}")
    return value


def set_threads(count: int) -> None:
    """Let torch compute with so many threads; nothing is touched where it does already."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give the process its number of threads back when the block ends: a sweep's next run chooses anew."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)


class Decision:
    """Decides when a run changes its number of threads, from its step times and the cores that others use.

    A change is an experiment: the steps after it are compared with those before, and if they are slower (or, for more
    threads, not faster) it is undone. It never flaps: after a change downwards none goes up for `PATIENCE` seconds,
    and after a change that was undone the same is not tried for as long; both double each time.

    Args:
        count: the number of threads now.
        most: the largest.
        cores: that this process may use.
    """

    def __init__(self, count: int, most: int, cores: int) -> None:
        self.count, self.most, self.cores = count, most, cores
        self._usual: float | None = None  # seconds of a step with this many threads
        self._hint = 0  # the direction in which the window before pointed: -1 fewer, 1 more
        self._before: tuple[int, float] | None = None  # while a change is tried: the number and the seconds before
        self._not_before = {-1: -math.inf, 1: -math.inf}  # the earliest time of a change in each direction
        self._patience = {-1: PATIENCE, 1: PATIENCE}

    def after(self, seconds: float, others: float | None, now: float) -> str | None:
        """Take in a window of training; returns why `count` has changed, or None if it has not.

        Args:
            seconds: the median time of its steps.
            others: cores that other processes used meanwhile; None if unknown.
            now: on a monotonic clock.
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
        # Twice in a row: in the first window the change may have come late, and most of its steps not know of it.
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
            # Nothing but the steps' own times to go by, and they do not say when the cores are free again: try.
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
