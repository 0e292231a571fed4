"""Files that survive a power failure: written under a temporary name, synced to disk, then renamed into place."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cifarbn.errors import UserError


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the content of a file atomically: after a crash, it has either the old or the new content.

    Args:
        path: the file. The temporary file `.NAME.tmp` in the same folder is removed if `write` fails.
        write: called once with the temporary file, open for writing bytes.

    Raises:
        OSError: if the disk is full, or the folder is missing or read-only; `path` is then unchanged.
    """
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
    """Return the temporary file that `replace_file` writes before it renames it."""
    return path.with_name(f".{path.name}.tmp")


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
