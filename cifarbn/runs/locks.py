"""Locks on files, which the system gives back when the process that holds one ends, however it ends."""

import errno
import fcntl
import os
import sys
import weakref
from functools import cache
from pathlib import Path

# What flock says where another process holds the lock; the first on NFS.
_HELD = (errno.EACCES, errno.EAGAIN)


class Held(Exception):
    """Another process holds the lock."""


class Lock:
    """A file's lock, taken without waiting and held until `release`, or for as long as this object lives.

    A file system may have no locks, as some network ones do: this then says so and goes on without one.

    Attributes:
        file: that is locked, made where it is missing; it stays.
        works: whether the file system has locks, so that nobody else holds this one.

    Raises:
        Held: if another process holds it.
        OSError: if the file cannot be opened for writing.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.works = file, True
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                self.release()
                raise Held from None
            self.works = False
            _warn(file.parent, error.strerror)

    @property
    def stands(self) -> bool:
        """Whether the locked file still has its name: who held the lock before may have removed it."""
        return has_name(self._descriptor, self.file)

    def release(self) -> None:
        """Give the lock back; a second time does nothing."""
        self._close()


class OpenFolder:
    """A folder that is held open, so that another one in its place is told apart: its number is not given again.

    Attributes:
        folder: that was opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def stands(self) -> bool:
        """Whether the folder is still there, by its name."""
        return has_name(self._descriptor, self.folder)


def has_name(descriptor: int, path: Path) -> bool:
    """Return whether an open file or folder is what has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def is_held(file: Path) -> bool:
    """Return whether another process holds the lock on a file; False where there is no such file."""
    try:
        if file.exists():
            Lock(file).release()
    except Held:
        return True
    except OSError:  # it cannot be opened, so nobody can tell
        return False
    return False


@cache
def _warn(folder: Path, reason: str) -> None:
    """Say once that there are no locks."""
    text = f"warning: the file system of {folder} has no locks ({reason}); going on without. "
    print(f"{text}Do not start one run twice at the same time", file=sys.stderr, flush=True)
