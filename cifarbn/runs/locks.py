"""File locks, which the operating system releases when the process that holds them ends, however it ends."""

import errno
import fcntl
import os
import sys
import weakref
from functools import cache
from pathlib import Path

# Error numbers of flock if another process holds the lock; the first one on NFS.
_HELD = (errno.EACCES, errno.EAGAIN)


class Held(Exception):
    """Another process holds the lock."""


class Lock:
    """A file's lock, taken without waiting and held until `release`, or as long as this object exists.

    Some network file systems do not support locks: a warning is printed then, and no lock is held.

    Attributes:
        file: the locked file; created if missing, never removed.
        works: whether the file system supports locks, so that no other process holds this one.

    Raises:
        Held: if another process holds the lock.
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
    def in_place(self) -> bool:
        """Whether the path still refers to the locked file: its previous holder may have removed it."""
        return has_name(self._descriptor, self.file)

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        self._close()


class OpenPath:
    """A file or folder that is kept open: its inode is not reused, so that a replacement of the same name is detected.

    Args:
        opened: the path to open.
        path: the path that it will have, if it is to be renamed.
    """

    def __init__(self, opened: Path, path: Path | None = None) -> None:
        self.path = path or opened
        self._descriptor = os.open(opened, os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def in_place(self) -> bool:
        """Whether the path still refers to what was opened."""
        return has_name(self._descriptor, self.path)


def has_name(descriptor: int, path: Path) -> bool:
    """Return whether a path refers to an open file or folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def is_held(file: Path) -> bool:
    """Return whether another process holds the lock on a file; False if there is no such file."""
    try:
        if file.exists():
            Lock(file).release()
    except Held:
        return True
    except OSError:  # it cannot be opened, so this is unknown
        return False
    return False


@cache
def _warn(folder: Path, reason: str) -> None:
    """Print once that the file system does not support locks."""
    text = f"warning: the file system of {folder} does not support locks ({reason}). "
    print(f"{text}Do not start the same run twice at the same time", file=sys.stderr, flush=True)
