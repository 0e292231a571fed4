"""The terminal or pipe of a command's output, which its user may close while the command runs."""

import errno
import io
import os
import select
import sys
import termios
from contextlib import suppress
from typing import Any


def open_standard_streams() -> None:
    """Let standard streams that the shell has closed (`>&-`) read and write nothing.

    Otherwise the next file that is opened would take the descriptor of the output, and receive it.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _discard(descriptor)
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def outlive_reader() -> None:
    """Let the command continue if its output is closed, now or later: its results are in files.

    For example, `python -m cifarbn.train | head` ends the program that reads the output.
    """
    open_standard_streams()
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            output = io.BufferedWriter(io.FileIO(stream.fileno(), "w", closefd=False))
            options = {key: getattr(stream, key) for key in ("encoding", "errors", "line_buffering", "write_through")}
            setattr(sys, name, _Output(output, **options))


class _Output(io.TextIOWrapper):
    """A text stream that discards what is written once its reader has gone."""

    def write(self, text: str) -> int:
        """Write, or discard."""
        try:
            return super().write(text)
        except OSError as error:
            self._discard_after(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or discard."""
        try:
            super().flush()
        except OSError as error:
            self._discard_after(error)

    def _discard_after(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # such as a full disk: what the user wants to keep is lost
            name = "the output" if self.fileno() == 1 else "the error output"
            raise OSError(error.errno, error.strerror, name) from error
        _discard(self.fileno())
        if self.fileno() == 1:
            print("note: the output was closed; the command continues without it", file=sys.stderr)


def print_in_handler(text: str) -> None:
    """Print in a signal handler, which may interrupt a write to the output: a buffer cannot be entered twice."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, AttributeError):  # the output is not a file, such as that of a notebook
        print(text, flush=True)
        return
    with suppress(OSError):
        os.write(descriptor, f"{text}\n".encode())


def leave_closed_output() -> bool:
    """Discard the output from now on where it goes to a terminal or pipe that was closed: writing raises an error.

    Returns:
        whether there was one.
    """
    closed = [descriptor for descriptor in (1, 2) if _is_closed(descriptor)]
    for descriptor in closed:
        _discard(descriptor)
    return bool(closed)


def leave_failed_output() -> None:
    """Discard what is left to be written to the output if that fails, so that it does not fail again at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard(1)


def _is_closed(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        if error.args[0] == errno.EIO:  # a closed terminal; another number means that it is not a terminal
            return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))  # a pipe without a reader


def _discard(descriptor: int) -> None:
    """Let a descriptor refer to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
