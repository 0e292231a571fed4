"""Run several processes in parallel, and manage their output and termination."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from omegaconf import DictConfig

from cifarbn.cli.command_line import exit_after
from cifarbn.cli.composition import resolved
from cifarbn.cli.fork_server import ForkedProcess, shared_server
from cifarbn.cli.slots import Slot
from cifarbn.errors import Interrupted
from cifarbn.runs.code_hash import sources
from cifarbn.runs.folder import Run
from cifarbn.terminal import leave_closed_output

RUN = [sys.executable, "-m", "cifarbn.train"]
"""The command of a run, without its overrides."""
IMPORTS = ("cifarbn.cli.prepared_run",)
"""What its server imports in addition."""

SECONDS_TO_SAVE = 5  # after a second Ctrl-C or SIGTERM, before processes are killed
POLL_SECONDS = 0.1


def ended_run(folder: Path, cfg: DictConfig, overrides: Sequence[str]) -> Run | None:
    """Return the run in a folder if it has ended, so that it needs no process; None if it is to be executed.

    Args:
        folder: the run folder.
        cfg: the composed config, without Hydra's own part.
        overrides: of the command line.

    Raises:
        UserError: if the run cannot start in this folder.
    """
    if not cfg.resume:
        return None
    config = resolved(cfg)
    policy = {"retry": cfg.retry, "on_code_change": cfg.on_code_change}
    run = Run.open(folder, config, list(overrides), sources(config), **policy)
    return run if run.finished else None


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that this process stops its runs first; keep SIGHUP ignored.

    Raises:
        SystemExit: after such a signal, and the message of `exit_after`. Libraries let it pass.
    """
    received: list[int] = []
    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def leave(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # the shell and the system may both send it
            leave_closed_output()
        sys.exit(128 + number)

    for number, handler in earlier.items():
        if number == signal.SIGTERM or handler is not signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield
    except SystemExit:
        if received:
            exit_after(Interrupted(received[0]))
        raise
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Process:
    key: int
    slot: int
    popen: "subprocess.Popen[bytes] | ForkedProcess"
    began: float
    output: threading.Thread | None


class ParallelProcesses:
    """Parallel processes, at most one per slot at a time. All of them end before the `with` block ends.

    An exception in the block, such as Ctrl-C or the SystemExit of a SIGTERM handler, sends SIGTERM to all processes and
    waits until they have saved and ended. A second exception kills them after `SECONDS_TO_SAVE` seconds.

    With one slot, a process writes to the terminal directly. With several, every line of output is printed as a whole,
    prefixed with the label of its process.

    Args:
        slots: from `make_slots`.

    Attributes:
        stopped: keys of the processes that were sent SIGTERM.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self.stopped: set[int] = set()
        self._running: list[_Process] = []
        self._ended: list[tuple[int, int]] = []
        self._seconds: list[float] = []  # durations of the processes that were not stopped

    def __enter__(self) -> "ParallelProcesses":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
            self._wait()
        except BaseException:
            try:
                self._wait(time.monotonic() + SECONDS_TO_SAVE)
            finally:
                for process in self._running:
                    process.popen.kill()
                    process.popen.wait()
            raise

    def wait_for_slot(self, deadline: float | None = None) -> bool:
        """Wait until a slot is free and return True; at the deadline, stop all processes and return False.

        Args:
            deadline: in the time of time.monotonic().
        """
        while not _has_passed(deadline):
            if self._reap() < len(self.slots):
                return True
            time.sleep(POLL_SECONDS)
        self.stop()
        return False

    def start(self, key: int, arguments: Sequence[str], label: str) -> None:
        """Start a process in a free slot.

        Args:
            key: identifies the process in `stopped`.
            arguments: the command line, including the program.
            label: a short text, printed in front of each line of output.
        """
        slot = min(set(range(len(self.slots))) - {process.slot for process in self._running})
        with _signals_held():  # a signal between start and entry in the list would leave the process running
            if len(self.slots) == 1:
                popen, output = self._start(arguments, self.slots[slot]), None
            else:
                reader, writer = os.pipe()
                popen = self._start(arguments, self.slots[slot] | {"PYTHONUNBUFFERED": "1"}, writer)
                os.close(writer)
                lines = open(reader, errors="replace")  # noqa: SIM115  # the thread closes it
                output = threading.Thread(target=_print_lines, args=(lines, label), daemon=True)
                output.start()
            self._running.append(_Process(key, slot, popen, time.monotonic(), output))

    def _start(
        self, arguments: Sequence[str], environment: Slot, output: int | None = None
    ) -> "subprocess.Popen[bytes] | ForkedProcess":
        """Start a process whose output goes to the descriptor `output`, or to the terminal.

        On Linux, runs are forked from a server, which has done their imports.
        """
        if sys.platform != "linux" or list(arguments[:3]) != RUN:
            return subprocess.Popen(arguments, env=os.environ | environment, stdout=output, stderr=output)
        of_imports = {key: value for key, value in environment.items() if key == "OMP_NUM_THREADS"}
        sys.stdout.flush()
        return shared_server(RUN[-1], of_imports, IMPORTS).start(
            arguments[len(RUN) :], environment, *(() if output is None else (output, output))
        )

    def wait_for_all(self, deadline: float | None = None) -> None:
        """Wait until all processes have ended; at the deadline, stop them and wait until they have saved."""
        if not self._wait(deadline):
            self.stop()
            self._wait()

    def stop(self) -> None:
        """Send SIGTERM once to each running process."""
        for process in self._running:
            if process.key not in self.stopped and process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
                self.stopped.add(process.key)  # after the signal: an exception in between must not leave it running

    def ended(self) -> list[tuple[int, int]]:
        """Return key and exit code of each process that has ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def seconds_left(self, waiting: int) -> float | None:
        """Estimate the time until the running and `waiting` more processes end, from the mean duration so far.

        None until one process has ended without being stopped.
        """
        if not self._seconds:
            return None
        each, now = sum(self._seconds) / len(self._seconds), time.monotonic()
        running = sum(max(0.0, each - (now - process.began)) for process in self._running)
        at_a_time = max(1, min(len(self.slots), waiting + len(self._running)))
        return (running + each * waiting) / at_a_time

    def _wait(self, deadline: float | None = None) -> bool:
        """Wait until all processes have ended, or until the deadline; return whether all have ended."""
        while self._reap():
            if _has_passed(deadline):
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _reap(self) -> int:
        """Remove ended processes from the list and return the number still running."""
        for process in list(self._running):
            code = process.popen.poll()
            if code is None:
                continue
            if process.output:
                process.output.join(timeout=1)  # a child of the process may keep the pipe open
            self._running.remove(process)
            self._ended.append((process.key, code))
            if process.key not in self.stopped:
                self._seconds.append(time.monotonic() - process.began)
        return len(self._running)


def _has_passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


_terminal = threading.Lock()


def print_line(text: str) -> None:
    """Print whole lines, not interleaved with those of other threads."""
    with _terminal:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _print_lines(output: IO[str], label: str) -> None:
    with output:
        for line in output:
            # Keep reading even if our own output is closed: a process with a full pipe would wait forever.
            with suppress(OSError, ValueError):
                if line.strip():
                    print_line(f"[{label}] {line.rstrip()}")


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP until after the block."""
    held: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
            if callable(signal.getsignal(number)):  # the started process inherits ignored signals
                before[number] = signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in held:
        signal.raise_signal(number)
