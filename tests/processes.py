"""Run the package's commands in separate processes, forked from a server that has done the imports.

Imports take most of the CPU time of a short `python -m cifarbn.train`. Here the server of multiprocessing's
"forkserver" does them once per pytest process, and everything in tests/warm_start.py. A command still has its own
process id, working folder, environment, output and exit code, and its module runs as `__main__`, as with `python -m`.

Use `subprocess` instead to test the start of an interpreter: which modules are imported, and variables that are read at
the start, such as PYTHONPATH, MPLBACKEND and OMP_NUM_THREADS. One start of every command is tested that way, too.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from unittest.mock import patch

from lightning_fabric.utilities.rank_zero import _get_rank, rank_zero_only

from cifarbn.cli import fork_server

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("CIFARBN")} | {"OMP_NUM_THREADS": "1"}
TESTS = str(Path(__file__).parent)


@cache
def fork_context():
    """Start the server, and return the context of multiprocessing that has its processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cifarbn.train", "cifarbn.cli.sweep", "cifarbn.reproduce", "warm_start"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([TESTS, *sys.path])):
        forkserver.ensure_running()
    return context


class Command:
    """A running `python -m module argument ...`, with the methods of `subprocess.Popen` that tests use.

    Attributes:
        stdout: the command's output, a text stream.
    """

    def __init__(self, module, *arguments, cwd, env=ENVIRONMENT):
        reader, writer = fork_context().Pipe(duplex=False)
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        self._stderr = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        args = (module, arguments, str(cwd), dict(env), writer, self._stderr.name)
        self._process = fork_context().Process(target=_run_as_main, args=args)
        self._process.start()
        reader.close(), writer.close()

    @property
    def pid(self):
        """The process id."""
        return self._process.pid

    @property
    def returncode(self):
        """The exit code; -N after signal N, None while the command runs."""
        return self._process.exitcode

    def send_signal(self, number):
        """Send a signal to a command that may have ended."""
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def communicate(self, timeout=600):
        """Wait for the command to end; return the output that was not read yet, and the whole standard error.

        The test may have closed `stdout`, as a reader that has ended.
        The command is killed after `timeout` seconds.
        """
        timer = threading.Timer(timeout, self._process.kill)
        timer.start()
        with self._stderr:
            out, _ = "" if self.stdout.closed else self.stdout.read(), self._process.join()
            timer.cancel()
            self.stdout.close()
            return out, self._stderr.read()


def run(module, *arguments, cwd, env=ENVIRONMENT):
    """Run a command to its end, like `subprocess.run(capture_output=True, text=True)`."""
    command = Command(module, *arguments, cwd=cwd, env=env)
    out, err = command.communicate()
    return CompletedProcess([module, *arguments], command.returncode, out, err)


def _run_as_main(module, arguments, cwd, env, stdout, stderr):
    """Run the module in the forked process."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = [module, *arguments]
    rank_zero_only.rank = _get_rank() or 0  # which Lightning reads from the environment when it is imported
    sys.path[:] = [cwd, *(path for path in sys.path if path != TESTS)]
    _provide_fork_server()
    sys.modules.pop(module, None)  # so that it is only loaded as `__main__`
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _provide_fork_server():
    """Fork the server of parallel runs now, from a process that has only done its imports, in case one is needed.

    tests/test_fork_server.py and a test of `reproduce` start it as an interpreter of its own.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = os.fork()
    if not process:
        ours.close()
        fork_server.execute("cifarbn.train", theirs)
        sys.exit()
    theirs.close()

    server = SimpleNamespace(
        poll=lambda: None,
        terminate=lambda: None,  # it has imported
        kill=lambda: os.kill(process, signal.SIGKILL),
        wait=cache(lambda: os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])),
    )
    prepared, connect = [(ours, server)], fork_server.connect
    fork_server.connect = lambda *arguments: prepared.pop() if prepared else connect(*arguments)
