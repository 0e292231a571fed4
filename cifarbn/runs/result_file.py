"""Reading `result.json` from a folder that may come from elsewhere, and writing it."""

import json
import os
import stat
from pathlib import Path

from cifarbn.errors import UserError
from cifarbn.runs.durable import replace_file
from cifarbn.runs.schema import RESULT, Result, check_result


class Damaged(UserError):
    """A result.json is no result, as a power cut or a full disk may leave it."""


def read_result(folder: Path) -> Result | None:
    """The folder's `result.json`, or None where there is none.

    Whatever a file from elsewhere holds, every field that is there has the type that `Result` gives it.

    Raises:
        Damaged: if it is not JSON, or a field has another type; the message names the field.
        UserError: if it cannot be read, or is no file.
    """
    return read_result_file(Path(folder) / RESULT)


def read_result_file(file: Path) -> Result | None:
    """`read_result` of a file of another name."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a FIFO would be waited for
            raise UserError(f"{file} is not a file; delete it, or name another folder")
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; delete it, or name another folder") from error
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0] if content.strip(b"\0 \n") else "it is empty"
        raise Damaged(f"{file} is not a result this program wrote ({reason}); delete the folder") from error
    try:
        return check_result(value)
    except ValueError as error:
        raise Damaged(f"{file} is not a result this program wrote: {error}; delete the folder") from error


def write_result(file: Path, result: Result) -> None:
    """Write a `result.json` at once or not at all, so that it survives a power cut."""
    replace_file(file, lambda opened: opened.write(_as_json(result)))


def overwrite_result(file: Path, result: Result) -> bool:
    """Write a `result.json` into the space that the old one has on the disk: the last resort where the disk is full.

    Returns:
        Whether it fitted; otherwise the file is unchanged.
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
