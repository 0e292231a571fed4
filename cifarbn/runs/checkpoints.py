"""A run's checkpoints: `last.ckpt`, the previous one, and the checksums that tell whether a file is intact.

`checkpoints.sha256`, in the format of sha256sum, lists a new checkpoint before the file is renamed into place. So after
a power failure, a listed checkpoint can be verified, and a checkpoint that is not listed must not be used.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cifarbn.durable import check_regular_file, naming, replace_file, sha256, sync_folder, temporary_path
from cifarbn.errors import UserError
from cifarbn.runs.old_names import METRICS_STATE
from cifarbn.runs.schema import CHECKPOINT, METRICS

PREVIOUS = "previous.ckpt"
CHECKSUMS = "checkpoints.sha256"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to continue from.

    Attributes:
        path: the file; None if the run must start from the beginning.
        steps: optimizer steps completed at the checkpoint.
        notes: what is wrong with the newest checkpoint and how the run proceeds; empty if nothing is wrong.
    """

    path: Path | None
    steps: int
    notes: str


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `last.ckpt`, and keep the file it replaces as `previous.ckpt`.

    Args:
        path: path of `last.ckpt`; the other files are in the same folder.
        state: the object that `torch.save` writes.

    Raises:
        OSError: if the disk is full or the folder is gone. The existing checkpoints are then unchanged.
    """
    previous, temporary = path.with_name(PREVIOUS), temporary_path(path)
    digests = {}
    replaced = path if path.exists() else previous
    if replaced.exists():
        digests[PREVIOUS] = (_listed(path.parent) or {}).get(replaced.name) or sha256(replaced)
    with naming(path):
        try:
            with temporary.open("wb") as file:
                digests[path.name] = _save(state, file)
                file.flush()
                os.fsync(file.fileno())
            # The old `previous.ckpt` stays valid, and so listed, until it is replaced.
            older = {f"{PREVIOUS}.old": sha256(previous)} if path.exists() and previous.exists() else {}
            _list(path.parent, digests | older)
            if path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        if older:
            _list(path.parent, digests)
    if len(digests) == 1:  # the first checkpoint: the folder itself is new, too
        for folder in path.absolute().parents[1:4]:
            with suppress(OSError):
                sync_folder(folder)


def newest_intact(folder: Path, repair: bool = True) -> ResumePoint | None:
    """Find the newest intact checkpoint whose rows of `metrics.csv` all exist; None without any checkpoint.

    Folders of versions that wrote no checksums are accepted without them. Checkpoints are read as plain data
    (`weights_only`), so that they cannot run code.

    Args:
        folder: the run folder.
        repair: rename unusable checkpoints to `NAME.unusable`, and update the list of checksums.

    Raises:
        UserError: if an intact checkpoint cannot be read.
    """
    paths = [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.exists()]
    if not paths:
        return None
    listed, problems = _listed(folder), []
    if not (folder / CHECKPOINT).exists():
        problems.append(f"{CHECKPOINT} is missing")
    for path in paths:
        digest = sha256(path)
        state = _read(path, listed, digest)
        if isinstance(state, str):
            reason = state
        elif not _has_rows(folder / METRICS, state):
            reason = f"{METRICS} lacks rows that {path.name} refers to"
        else:
            if repair and (listed or {}).get(path.name) != digest:
                _list(folder, {path.name: digest})
            steps = int(state["global_step"])
            notes = _sentence(problems, f"continuing from {path.name}, step {steps}") if problems else ""
            return ResumePoint(path, steps, notes)
        problems.append(f"{reason}; it is kept as {path.name}.unusable")
        if repair:
            os.replace(path, path.with_name(path.name + ".unusable"))
            sync_folder(folder)
    return ResumePoint(None, 0, _sentence(problems, "no usable checkpoint is left: starting from the beginning"))


def verify(checkpoint: Path) -> None:
    """Verify a checkpoint's checksum, if the folder has a list of checksums.

    Raises:
        UserError: if the checkpoint is damaged.
    """
    check_regular_file(checkpoint)
    listed = _listed(checkpoint.parent)
    if listed is not None and sha256(checkpoint) not in listed.values():
        raise UserError(
            f"{checkpoint} is damaged: its checksum differs from {CHECKSUMS}. Train again with resume=false, or use "
            "another run"
        )


def forget_previous(folder: Path) -> None:
    """Remove `previous.ckpt`, which a finished run no longer needs."""
    if (folder / PREVIOUS).exists():
        (folder / PREVIOUS).unlink()
        _list(folder, {name: digest for name, digest in (_listed(folder) or {}).items() if name == CHECKPOINT})


class _Hashing:
    """A file that is hashed while `torch.save` writes it, and that keeps the OSError of a write: torch hides it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _save(state: Mapping[str, Any], file: BinaryIO) -> str:
    """Write the state, and return the SHA-256 of the written bytes."""
    hashing = _Hashing(file)
    try:
        torch.save(state, hashing)  # type: ignore[arg-type]
    except Exception:
        if hashing.error:
            raise hashing.error from None
        raise
    return hashing.sha256.hexdigest()


def _listed(folder: Path) -> dict[str, str] | None:
    """Return the digests in the folder's list, by file name; None without a list."""
    try:
        check_regular_file(folder / CHECKSUMS)
        text = (folder / CHECKSUMS).read_text(errors="replace")
    except FileNotFoundError:
        return None
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}


def _list(folder: Path, digests: Mapping[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    replace_file(folder / CHECKSUMS, lambda file: file.write(text.encode()))


def _read(path: Path, listed: Mapping[str, str] | None, digest: str) -> dict[str, Any] | str:
    """Return the checkpoint's content, or the reason why it cannot be used."""
    if listed is not None and digest not in listed.values():
        return f"{path.name} is damaged (its checksum differs from {CHECKSUMS})"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        int(state["global_step"])
        return state
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = type(error).__name__
        if listed is None:
            return f"{path.name} is damaged, or not a checkpoint of cifarbn ({reason})"
        raise UserError(
            f"{path} is intact, but this version of torch cannot read it ({reason}). Use the version that wrote it "
            "(see result.json), or restart the run with resume=false"
        ) from error


def _has_rows(metrics: Path, state: Mapping[str, Any]) -> bool:
    """Return whether `metrics.csv` begins with exactly the bytes that the checkpoint refers to."""
    expected = state.get("callbacks", {}).get(METRICS_STATE, {}).get("file")
    if not expected or not expected["bytes"]:
        return True
    try:
        check_regular_file(metrics)
        with metrics.open("rb") as file:
            return hashlib.sha256(file.read(expected["bytes"])).hexdigest() == expected["sha256"]
    except FileNotFoundError:
        return False


def _sentence(problems: list[str], remedy: str) -> str:
    return "; ".join([*problems, remedy])
