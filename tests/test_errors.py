"""Messages for errors of the machine, and removal of local folders from messages."""

import errno
import os
from pathlib import Path

import pytest
import torch

from cifarbn.errors import machine_fault, without_folders


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read '/home/jane/my data/cat.png'", "cannot read 'cat.png'"),
        ("[Errno 2] No such file: /var/lib/x/data_batch_1: gone", "[Errno 2] No such file: data_batch_1: gone"),
        ("data.root=/srv/cifar/data has none", "data.root=data has none"),
        ("from file:///home/u/x.tar.gz", "from x.tar.gz"),
        ('File "/usr/lib/python3/x.py", line 3 (/a/b)', 'File "x.py", line 3 (b)'),
        ("see https://pytorch.org/docs/stable", "see https://pytorch.org/docs/stable"),
        ("train/loss 1/2 and/or 3 /s ../a/b ~/c/d", "train/loss 1/2 and/or 3 /s ../a/b ~/c/d"),
        ("\udcff", "?"),
        ("No such file: '/home/me/my data/x.bin'", "No such file: 'x.bin'"),
        ("in /home/me/a.py, line 3", "in a.py, line 3"),
        ("(/tmp/a/b)", "(b)"),
        ("experiment=course_report/l2 ./data/x a/b N/A 1/2", "experiment=course_report/l2 ./data/x a/b N/A 1/2"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("data.root=/somewhere/shared/cifar", "data.root=cifar"),
    ],
)
def test_absolute_paths_lose_their_folders(text, expected):
    assert without_folders(text) == expected


def test_a_known_folder_may_have_spaces_in_its_name(tmp_path):
    text = without_folders(f"cannot read {tmp_path}/my runs/a: no", tmp_path / "my runs")
    assert text == "cannot read a: no"


def test_messages_for_system_errors_include_the_remedy():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert machine_fault(full, Path("out/run")) == (
        "cannot read or write a file in out/run: No space left on device; free some space, then run the same "
        "command again to continue from the last checkpoint"
    )
    denied = PermissionError(errno.EACCES, "Permission denied", "out/x")
    assert machine_fault(denied) == (
        "cannot read or write out/x: Permission denied; check the path and its permissions, or write "
        "elsewhere (a run: name=OTHER; a report: --out FOLDER)"
    )


def test_other_errors_are_not_machine_faults():
    for error in (ValueError("x"), OSError("could not get source code"), RuntimeError("shape"), KeyError("x")):
        assert machine_fault(error) is None
    chained = ValueError("a bug in the code that handles a full disk")
    chained.__context__ = OSError(errno.ENOSPC, "full")
    assert machine_fault(chained) is None


def test_the_exception_that_torch_raises_on_a_full_disk():
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            pass

    with pytest.raises((RuntimeError, OSError)) as raised:
        torch.save({"weights": torch.zeros(1000)}, Full())
    assert "No space left on device" in machine_fault(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:21141: Connection reset",
        "[pair.cc:561] Connection closed by peer [127.0.0.1]:30396. This is typically caused by a remote worker",
        "NCCL error in: ProcessGroupNCCL.cpp:2271, remote process exited or there was a network error, NCCL 2.27",
    ],
)
def test_a_lost_process_is_a_machine_fault(text):
    assert "another process of this command ended" in machine_fault(RuntimeError(text))
