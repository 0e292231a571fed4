"""Files that survive a power cut: written beside their name, forced to the disk, then renamed into place."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cifarbn.errors import UserError


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write` writes: after any crash the old or the new content is there, never a part.

    Args:
        path: the file. The temporary file `.NAME.tmp` beside it is removed if `write` fails.
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
    """Return where `replace_file` writes before it renames."""
    return path.with_name(f".{path.name}.tmp")


def sync_file(path: Path) -> None:
    """Force what was appended to a file to the disk, and the file's entry in its folder."""
    with naming(path):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk: without it a rename or a new file may be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names no file, as those of `write` and `fsync` do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def check_ordinary(file: Path) -> None:
    """Let an ordinary file pass: to read a FIFO waits for ever, to read a device may never end.

    Raises:
        OSError: if there is none, or it may not be looked at.
        UserError: if it is of another kind.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise UserError(f"{file.name} is not an ordinary file")
