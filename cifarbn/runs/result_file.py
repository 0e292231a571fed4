"""Reading `result.json`, also from untrusted folders, and writing it."""

import json
import os
import stat
from pathlib import Path

from cifarbn.errors import UserError
from cifarbn.runs.durable import replace_file
from cifarbn.runs.schema import RESULT, Result, check_result


class Damaged(UserError):
    """A result.json is damaged, for example by a power failure or a full disk."""


def read_result(folder: Path) -> Result | None:
    """Return the folder's `result.json`, or None if there is none; every field has the type that `Result` declares.

    Raises:
        Damaged: if it is not JSON, or a field has another type; the message names the field.
        UserError: if it cannot be read, or is not a regular file.
    """
    return read_result_file(Path(folder) / RESULT)


def read_result_file(file: Path) -> Result | None:
    """Read a `result.json` that has another name; see `read_result`."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a FIFO would wait for ever
            raise UserError(f"{file} is not a regular file; delete it, or use another folder")
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; delete it, or use another folder") from error
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0] if content.strip(b"\0 \n") else "it is empty"
        raise Damaged(f"{file} is not a valid result ({reason}); delete the folder") from error
    try:
        return check_result(value)
    except ValueError as error:
        raise Damaged(f"{file} is not a valid result: {error}; delete the folder") from error


def write_result(file: Path, result: Result) -> None:
    """Write a `result.json` atomically, so that it survives a power failure."""
    replace_file(file, lambda opened: opened.write(_as_json(result)))


def overwrite_result(file: Path, result: Result) -> bool:
    """Overwrite a `result.json` in the disk space that it already occupies: the last resort on a full disk.

    Returns:
        Whether the new content fitted; otherwise the file is unchanged.
    """
    content = _as_json(result)
    with file.open("r+b") as opened:
        if len(content) > 512 * os.fstat(opened.fileno()).st_blocks:
            return False
        opened.write(content)
        opened.truncate()
        opened.flush()
        os.fsync(opened.fileno())
    return True


def _as_json(result: Result) -> bytes:
    return (json.dumps(result, indent=1, default=str) + "\n").encode()
