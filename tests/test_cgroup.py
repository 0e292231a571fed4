"""The limits of the control group, read from the files of a fake system."""

import pytest

from cifarbn.fast.cgroup import cpu_limit, memory_left, memory_limit


def write(root, **files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def in_group(root, line, files, limit=cpu_limit):
    write(root, **{"proc/self/cgroup": line, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}})
    return limit(root)


def test_no_control_groups_are_no_limit(tmp_path):
    assert cpu_limit(tmp_path) is memory_limit(tmp_path) is memory_left(tmp_path) is None


def test_a_limit_of_version_2(tmp_path):
    assert in_group(tmp_path, "0::/job\n", {"job/cpu.max": "150000 100000\n"}) == 1.5


def test_the_smallest_limit_of_a_group_and_its_ancestors_counts(tmp_path):
    files = {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "400000 100000\n", "a/b/c/cpu.max": "max 100000\n"}
    assert in_group(tmp_path, "0::/a/b/c\n", files) == 1


def test_max_is_no_limit(tmp_path):
    assert in_group(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"}) is None


@pytest.mark.parametrize("folder", ["cpu/job", "cpu,cpuacct/job"])
def test_a_limit_of_version_1(tmp_path, folder):
    files = {f"{folder}/cpu.cfs_quota_us": "200000\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert in_group(tmp_path, "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n", files) == 2


def test_minus_1_is_no_limit_of_version_1(tmp_path):
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert in_group(tmp_path, "4:cpu:/\n", files) is None


def test_in_a_container_the_groups_files_are_at_the_root(tmp_path):
    files = {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert in_group(tmp_path, "4:cpu:/docker/0123\n", files) == 0.5


def test_the_limit_of_another_group_is_not_ours(tmp_path):
    assert in_group(tmp_path, "0::/ours\n", {"theirs/cpu.max": "100000 100000\n"}) is None


@pytest.mark.parametrize(("limit", "expected"), [(memory_limit, 4000), (memory_left, 2500)])
def test_the_memory_of_version_2(tmp_path, limit, expected):
    """Of the group or an ancestor, and without the page cache, which is freed on demand."""
    files = {"a/memory.max": "4000\n", "a/memory.stat": "anon 1000\nfile 2900\n"}
    files |= {"a/b/memory.max": "4500\n", "a/b/memory.stat": "anon 2000\nfile 0\n", "memory.max": "max\n"}
    assert in_group(tmp_path, "0::/a/b\n", files, limit) == expected


@pytest.mark.parametrize(("limit", "expected"), [(memory_limit, 4000), (memory_left, 3000)])
def test_the_memory_of_version_1(tmp_path, limit, expected):
    files = {"memory/job/memory.limit_in_bytes": "4000\n", "memory/job/memory.stat": "rss 10\ntotal_rss 1000\n"}
    assert in_group(tmp_path, "5:memory:/job\n0::/\n", files, limit) == expected


def test_a_huge_number_is_no_limit_of_version_1(tmp_path):
    files = {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.stat": "total_rss 1000\n"}
    assert in_group(tmp_path, "5:memory:/\n", files, memory_limit) is None


def test_a_group_that_uses_more_memory_than_its_limit_has_none_left(tmp_path):
    assert in_group(tmp_path, "0::/\n", {"memory.max": "5\n", "memory.stat": "anon 6\n"}, memory_left) == 0
