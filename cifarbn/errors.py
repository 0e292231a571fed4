"""Exceptions that every command handles: user errors, and the ways a run can end early without a bug."""

import errno
import os
import re
import signal
from concurrent.futures import BrokenExecutor
from pathlib import Path


class UserError(Exception):
    """An error in the user's input or environment; the message states the problem and the remedy.

    Commands print the message without a traceback and exit with a non-zero code.
    """


class RunConflict(UserError):
    """The run folder holds a different run; it is left unchanged."""


class RunLocked(RunConflict):
    """Another process is executing the same run."""


class FolderLost(UserError):
    """The run folder was removed, replaced or taken over during the run, which must not write into it any more."""


class Diverged(Exception):
    """The loss is no longer finite: a result of the run, not an error of the program.

    Attributes:
        step: index of the first step with a non-finite loss, counted from 0.
        lr: learning rate at that step.
        grad_norm: last finite global gradient norm before that step; None if there was none.
    """

    def __init__(self, step: int, lr: float, grad_norm: float | None) -> None:
        self.step, self.lr, self.grad_norm = step, lr, grad_norm
        norm = "none" if grad_norm is None else f"{grad_norm:.4g}"
        super().__init__(f"the loss of step {step} is not finite (lr {lr:g}, last finite gradient norm {norm})")


class Interrupted(Exception):
    """A signal such as Ctrl-C or SIGTERM ended the run, which was saved and can be resumed.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, signal: int = signal.SIGINT) -> None:
        super().__init__(signal)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """The command's exit code, as shells report it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal


_FULL = (errno.ENOSPC, errno.EDQUOT)
# Remedy by errno; for any other, the path is the problem.
_ELSEWHERE = "check the path and its permissions, or write elsewhere (a run: name=OTHER; a report: --out FOLDER)"
_FREE_SPACE = "free some space, then run the same command again to continue from the last checkpoint"
_REMEDIES = dict.fromkeys(_FULL, _FREE_SPACE) | {
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
    errno.EMFILE: "raise the limit on open files (ulimit -n) and run the same command again",
}
_MEMORY = (
    "close other programs or execute fewer runs at a time, and run the same command again; or use a smaller model, "
    "data.batch_size or trainer.eval_batch_size"
)
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|bad_alloc")


LOST_PROCESS = (
    "another process of this command ended or cannot be reached (killed, out of memory, or a failed machine); run the "
    "same command again to continue from the last checkpoint"
)
# What gloo and NCCL report when another process of the run is gone.
_LOST_PROCESS = re.compile(
    r"gloo/transport|(Connection|Socket) (closed|reset)|NCCL.*(remote process|timed? ?out|aborted)", re.DOTALL
)


def machine_fault(error: BaseException, folder: Path | None = None, elsewhere: str = _ELSEWHERE) -> str | None:
    """Return one sentence about an error caused by the machine, such as a full disk; None for any other error.

    Args:
        error: the exception; torch raises a RuntimeError when a write fails.
        folder: the run folder, named when the system error names no file (a failed write() does not).
        elsewhere: the remedy if the path is the problem, not the machine.
    """
    cause = _system_error(error)
    if shortage := out_of_memory(error):
        return shortage
    if cause is not None:
        file = cause.filename if isinstance(cause.filename, str | bytes | os.PathLike) else None
        where = os.fsdecode(file) if file else f"a file in {folder}" if folder else "a file"
        return f"cannot read or write {where}: {cause.strerror}; {_REMEDIES.get(cause.errno or 0, elsewhere)}"
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|inline_container|iostream error", str(error)):
        where = f" in {folder}" if folder else ""
        return f"cannot write a checkpoint{where}: is the disk full? {_FREE_SPACE}"
    lost = isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error))
    if lost or isinstance(error, BrokenExecutor) or type(error).__module__ == "submitit.core.utils":  # of launchers
        return LOST_PROCESS
    return None


def out_of_memory(error: BaseException | None) -> str | None:
    """Return one sentence about a failed allocation, on the CPU or a GPU; None for any other error."""
    of_torch = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))  # also torch.OutOfMemoryError
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (of_torch or of_system or isinstance(error, MemoryError)):
        return None
    reason = re.sub(r"^\[enforce fail .*?(?=DefaultCPUAllocator)", "", str(error)).split("\n")[0].split(". ")[0]
    return f"out of memory ({reason or type(error).__name__}): {_MEMORY}"


def _system_error(error: BaseException) -> OSError | None:
    """Return the operating system's error, also if torch wrapped it; None for an OSError raised by a library."""
    if isinstance(error, RuntimeError) and error.__context__ is not None:
        return _system_error(error.__context__)
    return error if isinstance(error, OSError) and error.errno and error.strerror else None


def without_folders(text: str, *folders: Path | str) -> str:
    """Return the text with every absolute path shortened to its last part, so that results name no local folders.

    >>> without_folders("cannot read '/home/jane/my data/cat.png': see /var/log/x or https://pytorch.org/docs/stable")
    "cannot read 'cat.png': see x or https://pytorch.org/docs/stable"

    Args:
        text: an error message.
        folders: known folders; needed for unquoted paths that contain spaces.
    """
    for folder in sorted({os.path.abspath(folder) for folder in (*folders, Path.home(), Path.cwd())}, reverse=True):
        if folder != os.sep:
            text = text.replace(f"{folder}{os.sep}", f"{os.sep}.{os.sep}")
    text = _QUOTED_PATH.sub(r"\1\2\1", text)
    text = _PATH.sub(lambda path: path[0].rstrip("/").rpartition("/")[2], text)
    return text.encode("utf-8", "replace").decode()  # surrogate escapes of an undecodable file name


_QUOTED_PATH = re.compile(r"""(['"])(?:file://)?/(?:[^'"\n]*/)?([^'"\n/]+)/?\1""")
# At least two parts, since a rate such as "3 /s" is not a path. The look-behind excludes relative paths and URLs.
_PATH = re.compile(r"""(?:file://|(?<![\w.:/~%-]))(?:/[^\s/'"]+){2,}/?""")
