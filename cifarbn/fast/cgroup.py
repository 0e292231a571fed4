"""The limits of this process's control group, which a container or a cluster's job sets."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
_NO_LIMIT = 2**62  # bytes; version 1 states a number near 2**63 instead of "max"
# The limit in version 2 and 1, and what the group uses without the page cache, which is freed on demand.
_MEMORY = (("memory.max", "anon"), ("memory.limit_in_bytes", "total_rss"))


def cpu_limit(root: Path = ROOT) -> float | None:
    """Return the CPU limit of this process's control group in cores, such as 1.5, or None if there is no limit.

    Reads `cpu.max` (cgroup v2) or `cpu.cfs_quota_us` (v1) of the group and its ancestors and returns the smallest
    limit.

    Args:
        root: root of the file system; for tests.
    """
    return min((limit for group in _groups("cpu", root) if (limit := _cores(group)) is not None), default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the memory limit of this process's control group in bytes, or None if there is no limit.

    Args:
        root: root of the file system; for tests.
    """
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path = ROOT) -> int | None:
    """Return how many bytes this process's control group may still allocate, or None if there is no limit.

    Args:
        root: root of the file system; for tests.
    """
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def _groups(controller: str, root: Path) -> list[Path]:
    """Return the folders of this process's group and its ancestors for a controller, of version 2 and 1.

    In a container, the group's path may be the host's, which is not visible inside; the container's own files are then
    at the root of the mount.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mount, groups = root / "sys/fs/cgroup", []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            mounts = [mount / controller, mount / controllers]
        else:
            continue
        group = Path(path.lstrip("/"))
        groups += [each / folder for each in mounts for folder in (group, *group.parents)]
    return groups


def _cores(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: "max", which means no limit
        return None


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and used bytes of each group that has a limit."""
    for group in _groups("memory", root):
        for name, used in _MEMORY:
            with suppress(OSError, ValueError, KeyError):  # ValueError: "max", which means no limit
                limit = int((group / name).read_text())
                usage = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                if limit < _NO_LIMIT:
                    yield limit, int(usage[used])
