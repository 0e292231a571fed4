"""The cores that this process may use, and the load on them by other processes."""

import os
import time
from pathlib import Path

from cifarbn.fast.cgroup import cpu_limit


def usable_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs that this process may run on: its affinity, if the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, given its affinity and the container's limit."""
    cores, limit = len(usable_cpus()), cpu_limit()
    return cores if limit is None else max(1, min(cores, round(limit)))


class OtherProcesses:
    """Measures how many cores other processes use, from the kernel's counters of busy time.

    Works over any interval from about 0.2 s; the load average reacts only after a minute. Time stolen by a hypervisor
    counts as used. Time of niced processes does not, unless this process is niced too, because they yield to it.

    Args:
        cpus: numbers of the CPUs to measure.
        stat: the kernel's file of counters; for tests.
    """

    def __init__(self, cpus: frozenset[int], stat: Path = Path("/proc/stat")) -> None:
        self._cpus, self._stat = cpus, stat
        self._last = self._read()

    def cores(self) -> float | None:
        """Return the mean number of cores used by others since the last call; None if the system does not report it."""
        last, self._last = self._last, self._read()
        if last is None or self._last is None or self._last[0] <= last[0]:
            return None
        elapsed, busy, own = (now - before for now, before in zip(self._last, last, strict=True))
        return min(max((busy - own) / elapsed, 0.0), float(len(self._cpus)))

    def _read(self) -> tuple[float, float, float] | None:
        """Return the current time, the CPUs' busy time and this process's CPU time, in seconds."""
        try:
            lines = [line.split() for line in self._stat.read_text().splitlines()]
            rows = {
                line[0]: [int(value) for value in line[1:9]] for line in lines if line and line[0].startswith("cpu")
            }
            busy = sum(_busy(rows[f"cpu{number}"]) for number in self._cpus)
        except (OSError, ValueError, KeyError):
            return None
        if not any(map(sum, rows.values())):  # some sandboxes report only zeros
            return None
        return time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def _busy(ticks: list[int]) -> int:
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    niced_ourselves = os.getpriority(os.PRIO_PROCESS, 0) > 0
    return user + system + irq + softirq + steal + (nice if niced_ourselves else 0)
