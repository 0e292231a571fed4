"""The package's commands as processes of their own, forked from one that has imported what they import.

Imports are most of the CPU time of a short `python -m cifarbn.train`. Here they are made once for all tests of a pytest
process, by the server of multiprocessing's "forkserver". A command still has a process id, working folder, environment,
output and exit code of its own, and its module runs as `__main__`, as with `python -m`.

What belongs to the start of an interpreter is tested with `subprocess`: what a module imports, and variables that are
read then, such as PYTHONPATH, MPLBACKEND and OMP_NUM_THREADS. So is one start of every command.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import threading
from pathlib import Path
from subprocess import CompletedProcess

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("CIFARBN")} | {"OMP_NUM_THREADS": "1"}
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["cifarbn.train", "cifarbn.cli.sweep", "cifarbn.reproduce"])


class Command:
    """`python -m module argument ...`, with the part of `subprocess.Popen` that tests use.

    Attributes:
        stdout: what the command prints, as text, while it runs.
    """

    def __init__(self, module, *arguments, cwd, env=ENVIRONMENT):
        reader, writer = FORKSERVER.Pipe(duplex=False)
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        self._stderr = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        how = (module, arguments, str(cwd), dict(env), writer, self._stderr.name)
        self._process = FORKSERVER.Process(target=_run_as_main, args=how)
        self._process.start()
        reader.close(), writer.close()

    @property
    def returncode(self):
        """The exit code, -N after signal N; None while the command runs."""
        return self._process.exitcode

    def send_signal(self, number):
        """Send a signal to a command that may have ended."""
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def communicate(self, timeout=600):
        """Wait for the end; returns what the command has printed since it was last read, and all of its errors.

        A command that takes longer than the timeout in seconds is killed.
        """
        timer = threading.Timer(timeout, self._process.kill)
        timer.start()
        with self.stdout, self._stderr:
            out, _ = self.stdout.read(), self._process.join()
            timer.cancel()
            return out, self._stderr.read()


def run(module, *arguments, cwd, env=ENVIRONMENT):
    """Run a command to its end, as `subprocess.run` with its output captured as text."""
    command = Command(module, *arguments, cwd=cwd, env=env)
    out, err = command.communicate()
    return CompletedProcess([module, *arguments], command.returncode, out, err)


def _run_as_main(module, arguments, cwd, env, stdout, stderr):
    """What the forked process does."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = [module, *arguments]
    tests = str(Path(__file__).parent)
    sys.path[:] = [cwd, *(path for path in sys.path if path != tests)]
    sys.modules.pop(module, None)  # so that it is loaded as `__main__` alone
    runpy.run_module(module, run_name="__main__", alter_sys=True)
