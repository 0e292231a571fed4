"""Reading `result.json`, also from untrusted folders, and writing it.

Its field `checksum` tells whether the others are as the run wrote them; `files` does the same for the run's arrays.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarbn.durable import replace_file, sha256
from cifarbn.errors import UserError
from cifarbn.runs.schema import METRICS, RECORDINGS, RESULT, Result, check_result


class Damaged(UserError):
    """A result.json is damaged, for example by a power failure or a full disk."""


def read_result(folder: Path) -> Result | None:
    """Return the folder's `result.json`, or None if there is none; every field has the type that `Result` declares.

    Raises:
        Damaged: if it is not JSON, a field has another type, which the message names, or its checksum differs (results
            of older versions have none).
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
    checksum = value.pop("checksum", None) if isinstance(value, dict) else None
    try:
        result = check_result(value)
    except ValueError as error:
        raise Damaged(f"{file} is not a valid result: {error}; delete the folder") from error
    if checksum not in (None, _checksum(value)):
        raise Damaged(
            f"{file} is not a valid result: its checksum differs, so it was changed since the run wrote it. To keep a "
            "change of yours, delete the line with `checksum`; otherwise delete the folder"
        )
    return result


def write_result(file: Path, result: Result) -> None:
    """Write a `result.json` atomically, so that it survives a power failure."""
    replace_file(file, lambda opened: opened.write(as_json(result)))


def overwrite_result(file: Path, result: Result) -> bool:
    """Overwrite a `result.json` in the disk space that it already occupies: the last resort on a full disk.

    Returns:
        Whether the new content fitted; otherwise the file is unchanged.
    """
    content = as_json(result)
    with file.open("r+b") as opened:
        if len(content) > 512 * os.fstat(opened.fileno()).st_blocks:
            return False
        opened.write(content)
        opened.truncate()
        opened.flush()
        os.fsync(opened.fileno())
    return True


def as_json(result: Result) -> bytes:
    """Return the content of a `result.json`, with its checksum."""
    value = json.loads(json.dumps(result, default=str))
    value.pop("checksum", None)
    # First, so that a user who deletes this line leaves valid JSON.
    return (json.dumps({"checksum": _checksum(value)} | value, indent=1) + "\n").encode()


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of `metrics.csv` and `recordings.npz`, for the result's `files`; without those it lacks."""
    return {name: sha256(folder / name) for name in (METRICS, RECORDINGS) if (folder / name).exists()}


def check_unchanged(folder: Path, name: str, result: Result) -> None:
    """Verify one of the files that the result's `files` names; results of older versions name none.

    Raises:
        UserError: if the file is missing or was changed since the run ended.
    """
    expected = result.get("files", {}).get(name)
    if expected is None:
        return
    if not (folder / name).exists():
        raise UserError(f"{name} is missing")
    if sha256(folder / name) != expected:
        raise UserError(f"{name} was changed since the run ended (its checksum differs from {RESULT})")


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
