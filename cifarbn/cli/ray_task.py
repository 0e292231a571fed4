"""What a worker of a Ray cluster executes; it imports neither Ray nor torch, so that a worker starts fast."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence


def run_process(arguments: Sequence[str], folder: str, variables: Mapping[str, str]) -> int:
    """Execute a Python program, print its output and return its exit code, -N after signal N.

    A cancelled task, or a worker that is told to end, sends the program SIGTERM and waits until it has saved. If the
    worker is killed, the program is killed too (on Linux), because Ray executes the task again elsewhere.

    Args:
        arguments: of Python.
        folder: working folder, shared by all machines.
        variables: environment variables to set.
    """
    # Ray cancels a task by SIGINT, which a worker ignores if Ray was started in the background of a script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    popen = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | dict(variables) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    assert popen.stdout
    try:
        for line in popen.stdout:
            if line.strip():
                print(line.rstrip(), flush=True)
        return popen.wait()
    except BaseException:
        popen.send_signal(signal.SIGTERM)
        popen.wait()
        raise


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
