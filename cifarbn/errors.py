"""The exceptions that entry points understand: a user's mistake, and the ways a run ends early without a fault."""

import errno
import os
import re
from pathlib import Path


class UserError(Exception):
    """A mistake of the user or of their machine; the message says what is wrong and names the remedy.

    Entry points print the message alone, without a traceback, and exit non-zero.
    """


class RunConflict(UserError):
    """The run's folder holds something else; it is left as it is."""


class RunLocked(RunConflict):
    """Another process is making this very run."""


class Diverged(Exception):
    """The loss is no longer a finite number: a result of the run, not a fault of the program.

    Attributes:
        step: the first step whose loss is not finite, from 0.
        lr: that step's learning rate.
        grad_norm: the last finite norm of the whole gradient before it; None if there was none.
    """

    def __init__(self, step: int, lr: float, grad_norm: float | None) -> None:
        self.step, self.lr, self.grad_norm = step, lr, grad_norm
        norm = "none" if grad_norm is None else f"{grad_norm:.4g}"
        super().__init__(f"the loss of step {step} is not finite (lr {lr:g}, last finite gradient norm {norm})")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the run was saved and can be continued."""


_FULL = (errno.ENOSPC, errno.EDQUOT)
# What to do, by what the system said; for anything else, _ELSEWHERE.
_ELSEWHERE = "check the path and its permissions, or write elsewhere (a run: name=OTHER; a report: --out FOLDER)"
_REMEDIES = {number: "free some space, and the same command goes on from the last checkpoint" for number in _FULL} | {
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), and run the same command again",
    errno.EMFILE: "raise the limit on open files (ulimit -n), and run the same command again",
    errno.EPIPE: "the program that read this one's output has ended",
}


def machine_fault(error: BaseException, folder: Path | None = None) -> str | None:
    """Return one sentence about an error that the machine is to blame for, such as a full disk; None for any other.

    Args:
        error: the exception. torch raises a RuntimeError of its own when a write fails.
        folder: the run folder, named where the system names no file: a failed write() does not.
    """
    cause = _system_error(error)
    if cause is not None:
        file = cause.filename if isinstance(cause.filename, str | bytes | os.PathLike) else None
        where = os.fsdecode(file) if file else f"a file in {folder}" if folder else "a file"
        return f"cannot read or write {where}: {cause.strerror}; {_REMEDIES.get(cause.errno or 0, _ELSEWHERE)}"
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|inline_container|iostream error", str(error)):
        where = f" in {folder}" if folder else ""
        return f"cannot write a checkpoint{where}: is the disk full? {_REMEDIES[errno.ENOSPC]}"
    return None


def _system_error(error: BaseException) -> OSError | None:
    """The system's own error, also where torch's own covers it; not an OSError that some library has made up."""
    if isinstance(error, RuntimeError) and error.__context__ is not None:
        return _system_error(error.__context__)
    return error if isinstance(error, OSError) and error.errno and error.strerror else None


def without_folders(text: str, *folders: Path | str) -> str:
    """Return the text with every absolute path cut down to its last part: a result names no folder of the machine.

    >>> without_folders("cannot read '/home/jane/my data/cat.png': see /var/log/x or https://pytorch.org/docs/stable")
    "cannot read 'cat.png': see x or https://pytorch.org/docs/stable"

    Args:
        text: an error's message.
        folders: some that are known, since nothing but a quote says where a path with a space in it ends.
    """
    for folder in sorted({os.path.abspath(folder) for folder in (*folders, Path.home(), Path.cwd())}, reverse=True):
        if folder != os.sep:
            text = text.replace(f"{folder}{os.sep}", f"{os.sep}.{os.sep}")
    text = _QUOTED_PATH.sub(r"\1\2\1", text)
    text = _PATH.sub(lambda path: path[0].rstrip("/").rpartition("/")[2], text)
    return text.encode("utf-8", "replace").decode()  # a name that is no Unicode


_QUOTED_PATH = re.compile(r"""(['"])(?:file://)?/(?:[^'"\n]*/)?([^'"\n/]+)/?\1""")
# Of two parts or more: a rate such as "3 /s" is no path. One that other text or a URL leads up to is not absolute.
_PATH = re.compile(r"""(?:file://|(?<![\w.:/~%-]))(?:/[^\s/'"]+){2,}/?""")
