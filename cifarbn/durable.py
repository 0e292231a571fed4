"""Files that survive a power failure: written under a temporary name, synced to disk, then renamed into place."""

import glob
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cifarbn.errors import UserError

ABANDONED = 3600.0  # seconds without a write after which a temporary file belongs to a killed process


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the content of a file atomically: after a crash, it has either the old or the new content.

    Several processes may replace the same file at the same time; the last one wins.

    Args:
        path: the file. The temporary file in the same folder is removed if `write` fails.
        write: called once with the temporary file, open for writing bytes.

    Raises:
        OSError: if the disk is full, or the folder is missing or read-only; `path` is then unchanged.
    """
    remove_temporaries(path, ABANDONED)
    temporary = temporary_path(path)
    with naming(path):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """Return a new name for a temporary file, to be written next to `path` and then renamed to it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def temporary_pattern(name: str) -> str:
    """Return a glob pattern of all temporary files of a file; those of older versions are called `.NAME.tmp`."""
    return f".{glob.escape(name)}.*tmp"


def remove_temporaries(path: Path, seconds: float = 0.0) -> None:
    """Remove the temporary files of `path` that killed processes have left.

    Args:
        path: the file.
        seconds: time without a write after which a temporary file is removed; 0 if no other process can write one.
    """
    for file in path.parent.glob(temporary_pattern(path.name)):
        with suppress(OSError):  # another process may have renamed or removed it
            if not seconds or time.time() - file.lstat().st_mtime > seconds:
                file.unlink()


def sync_file(path: Path) -> None:
    """Sync a file's content and its folder's entry to disk."""
    with naming(path):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk; otherwise a power failure may undo a rename or lose a new file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to an OSError that names no file, such as one from `write` or `fsync`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: if the file is missing or not accessible.
        UserError: if it is not a regular file.
    """
    check_regular_file(file)
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_regular_file(file: Path) -> None:
    """Raise an error unless a path is a regular file: reading a FIFO or a device may never end.

    Raises:
        OSError: if the file is missing or not accessible.
        UserError: if it is not a regular file.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise UserError(f"{file.name} is not a regular file")
