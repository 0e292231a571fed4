"""The cores that this process may use, and the load on them by other processes."""

import os
import time
from pathlib import Path


def usable_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs that this process may run on: its affinity, if the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, given its affinity and the container's limit."""
    cores, limit = len(usable_cpus()), cgroup_limit()
    return cores if limit is None else max(1, min(cores, round(limit)))


def cgroup_limit(root: Path = Path("/")) -> float | None:
    """Return the CPU limit of this process's control group in cores, such as 1.5, or None if there is no limit.

    Reads `cpu.max` (cgroup v2) or `cpu.cfs_quota_us` (v1) of the group and its ancestors and returns the smallest
    limit. In a container, the group's path may be the host's, which is not visible inside; the container's own files
    are then at the root of the mount.

    Args:
        root: root of the file system; for tests.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    mount, limits = root / "sys/fs/cgroup", []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [mount / "cpu", mount / controllers]
        else:
            continue
        group = Path(path.lstrip("/"))
        limits += [_limit(each / folder) for each in mounts for folder in (group, *group.parents)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: "max", which means no limit
        return None


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
