"""Locks are held by one process at a time; a file system without locks causes a warning only."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from cifarbn.runs.locks import Held, Lock, OpenPath, is_held


def test_one_holds_it_until_it_is_released_or_forgotten(tmp_path):
    file = tmp_path / ".locks" / "run.lock"
    assert not is_held(file)
    lock = Lock(file)
    assert lock.works and lock.in_place and is_held(file)
    with pytest.raises(Held):
        Lock(file)
    lock.release()
    lock.release()
    assert not is_held(file)
    again = Lock(file)
    del again
    assert not is_held(file)


def test_it_ends_with_its_process(tmp_path):
    script = "import sys, pathlib, os\nfrom cifarbn.runs.locks import Lock\nlock = Lock(pathlib.Path(sys.argv[1]))\n"
    script += "print('held', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert is_held(tmp_path / "lock")
        process.kill()
    assert not is_held(tmp_path / "lock")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_said_once_and_done_without(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert not first.works and not second.works and not is_held(tmp_path / "lock")
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and f"does not support locks ({os.strerror(number)})" in output


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_held_by_another_machine(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(Held):
        Lock(tmp_path / "lock")


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_is_told_from_another_of_its_name(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    held = OpenPath(folder)
    assert held.in_place
    folder.rename(tmp_path / "moved")
    assert not held.in_place
    folder.mkdir()
    assert not held.in_place
    held.close()
