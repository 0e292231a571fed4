"""A server that starts a command such as `python -m cifarbn.train` quickly: it imports its module once, and then forks.

Imports take several seconds, most of the time of a short run. A forked process has them already; everything else is as
with `python -m`: its own process id, arguments, environment, output and exit code.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cifarbn.runs.code_hash import read_imported

NUMBER = struct.Struct("i")
LONGEST_REQUEST = 2**20  # bytes; Linux allows 200 kB
# Signals that all processes of a terminal or a job may receive. The server blocks them, because it ends when its client
# does, and each forked process unblocks them. SIGTERM is blocked after the imports only, so that it can end them.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class ForkServer:
    """The client's side: start a command in processes that are forked from a server.

    Args:
        module: the module that the command executes.
        environment: variables of the server, in addition to those of this process. Some are read by an import, such as
            OMP_NUM_THREADS, so they must be those of every command.
        imports: modules that the command imports later.
    """

    def __init__(self, module: str, environment: Mapping[str, str], imports: Sequence[str] = ()) -> None:
        self._state = _state(module, environment)
        self._socket, self._server = connect([module, *imports], environment)
        self._started: list[ForkedProcess] = []

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], stdout: int = 1, stderr: int = 2
    ) -> "ForkedProcess":
        """Start the command, and return without waiting for the server.

        Args:
            arguments: of its command line.
            environment: variables of the process, in addition to those of the server.
            stdout: descriptor of its output.
            stderr: descriptor of its standard error.
        """
        reader, writer = os.pipe()
        try:
            request = json.dumps([list(arguments), dict(environment)]).encode()
            socket.send_fds(self._socket, [request], [stdout, stderr, writer])
        except (BrokenPipeError, ConnectionResetError):  # the server has just ended, and with it the process
            pass
        finally:
            os.close(writer)
        self._started.append(ForkedProcess(reader, self._server))
        return self._started[-1]

    @property
    def has_ended(self) -> bool:
        """Whether the server failed to import, or was killed. Its processes continue, but their exit codes are lost."""
        return self._server.poll() is not None

    def serves(self, module: str, environment: Mapping[str, str]) -> bool:
        """Whether it starts the same processes as a new server with these arguments."""
        return not self.has_ended and self._state == _state(module, environment)

    @property
    def is_idle(self) -> bool:
        """Whether all of its processes have ended."""
        return all(process.poll() is not None for process in self._started)

    def close(self) -> None:
        """End the server at once; its processes continue."""
        self._socket.close()
        self._server.kill()
        self._server.wait()


_shared: list[ForkServer] = []


def shared_server(module: str, environment: Mapping[str, str], imports: Sequence[str]) -> ForkServer:
    """Return a server that this process keeps, since a search starts runs several times.

    One that would start other processes, because the environment has changed, is closed once it is idle.

    The arguments are those of `ForkServer`.
    """
    for server in list(_shared):
        if server.serves(module, environment):
            return server
        if server.is_idle:
            server.close()
            _shared.remove(server)
    _shared.append(ForkServer(module, environment, imports))
    return _shared[-1]


def _state(module: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str], str]:
    return module, os.environ | environment, os.getcwd()


def connect(modules: Sequence[str], environment: Mapping[str, str]) -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """Start a server as an interpreter of its own; return the connection to it and its process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "cifarbn.cli.fork_server", str(theirs.fileno()), *modules]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS} - {signal.SIGTERM})  # the server inherits it
    try:
        with theirs:
            return ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ | environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForkedProcess:
    """A process that the server forked, with the methods and attributes of `subprocess.Popen`.

    Args:
        status: descriptor from which the process id and then the exit code are read. It ends once both the server and
            the process have ended.
        server: the server.

    Attributes:
        returncode: the exit code; -N after signal N, None while the process runs. That of the server if it ended first.
    """

    def __init__(self, status: int, server: "subprocess.Popen[bytes]") -> None:
        self._status, self._server = status, server
        self._pid: int | None = None
        self.returncode: int | None = None

    @property
    def pid(self) -> int | None:
        """The process id, once the server has forked; None if it has ended before."""
        while self._pid is None and self.returncode is None:
            self._receive()
        return self._pid

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        while self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._receive()
        return self.returncode

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        while self.returncode is None:
            self._receive()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended; a server that still imports ends instead."""
        if self._pid is None and self.returncode is None:
            self._server.terminate()
        pid = self.pid
        if pid is not None and self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def _receive(self) -> None:
        """Wait for the process id or the exit code."""
        message = os.read(self._status, NUMBER.size)
        if message and self._pid is None:
            (self._pid,) = NUMBER.unpack(message)
            return
        self.returncode = NUMBER.unpack(message)[0] if message else self._server.wait()
        os.close(self._status)


def serve(connection: socket.socket) -> list[str]:
    """Fork for each request. Return its arguments in the forked process; the server itself does not return.

    Args:
        connection: to the client. The server ends when the client closes it or ends.
    """
    children: dict[int, int] = {}  # process id -> descriptor for the exit code
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # threads that were started by imports do not block it
    while True:
        ready, _, _ = select.select([connection.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(children)
        if connection.fileno() not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 3, socket.MSG_CMSG_CLOEXEC)
        if not request:
            sys.exit()
        stdout, stderr, status = descriptors
        with warnings.catch_warnings():
            # Python 3.12 warns of threads. Those of OpenBLAS, which imports start, are started again after a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if not process:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, handler)
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            connection.close()
            for descriptor in (stdout, stderr, woken, wake, *children.values()):  # `status` is open until the end
                os.close(descriptor)
            arguments: list[str]
            arguments, environment = json.loads(request)
            os.environ.update(environment)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # those since the fork arrive now
            return arguments
        os.close(stdout)
        os.close(stderr)
        _tell(status, process)
        children[process] = status


def _reap(children: dict[int, int]) -> None:
    """Send the exit codes of the processes that have ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = children.pop(ended[0])
            _tell(status, os.waitstatus_to_exitcode(ended[1]))
            os.close(status)


def _tell(status: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the client has ended
        os.write(status, NUMBER.pack(number))


def execute(module: str, connection: socket.socket) -> None:
    """Serve; in each forked process, execute the module, which has been imported."""
    sys.argv[1:] = serve(connection)
    for output in (sys.stdout, sys.stderr):
        output.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    sys.modules.pop(module, None)  # so that it is only loaded as `__main__`
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    read_imported()
    gc.freeze()
    execute(sys.argv[2], socket.socket(fileno=int(sys.argv[1])))
