"""A run's checkpoints: `last.ckpt`, the one before it, and the checksums by which either can be judged.

`checkpoints.sha256`, in the format of sha256sum, lists a new checkpoint before the file gets its name. So whenever the
power fails, a checkpoint is either listed, and then known to be whole or damaged, or not to be used.
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

from cifarbn.errors import UserError
from cifarbn.runs.durable import check_ordinary, naming, replace_file, sync_folder, temporary_path
from cifarbn.runs.schema import CHECKPOINT, METRICS

PREVIOUS = "previous.ckpt"
CHECKSUMS = "checkpoints.sha256"
# Keys of callback states inside a checkpoint, as version 0.1 wrote them.
METRICS_STATE = "StepHistory"
RESUME_STATE = "LastCheckpoint"


@dataclass(frozen=True)
class Found:
    """The checkpoint to continue from.

    Attributes:
        path: None if the run must start from its beginning.
        steps: optimizer steps completed at the checkpoint.
        notes: what was wrong and what is done about it; empty if nothing was wrong.
    """

    path: Path | None
    steps: int
    notes: str


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `last.ckpt`, and keep the one it replaces as `previous.ckpt`.

    Args:
        path: of `last.ckpt`; the other files lie beside it.
        state: what `torch.save` shall write.

    Raises:
        OSError: if the disk is full or the folder is gone; the checkpoints are then what they were.
    """
    previous, temporary = path.with_name(PREVIOUS), temporary_path(path)
    digests = {}
    replaced = path if path.exists() else previous
    if replaced.exists():
        digests[PREVIOUS] = (_listed(path.parent) or {}).get(replaced.name) or _sha256(replaced)
    with naming(path):
        try:
            with temporary.open("wb") as file:
                digests[path.name] = _save(state, file)
                file.flush()
                os.fsync(file.fileno())
            # Until it is replaced, the checkpoint before the last counts, too.
            older = {f"{PREVIOUS}.old": _sha256(previous)} if path.exists() and previous.exists() else {}
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
    if len(digests) == 1:  # the first one: the folder itself is as new
        for folder in path.absolute().parents[1:4]:
            with suppress(OSError):
                sync_folder(folder)


def newest_whole(folder: Path, repair: bool = True) -> Found | None:
    """Find the newest checkpoint that is whole and whose rows of `metrics.csv` are all there; None without any.

    A folder from before there were checksums is taken without them. The checkpoint is read as plain data, so that it
    cannot run code.

    Args:
        folder: the run folder.
        repair: rename what cannot be used to `NAME.unusable`, and bring the list of checksums up to date.

    Raises:
        UserError: if a whole checkpoint cannot be read.
    """
    paths = [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.exists()]
    if not paths:
        return None
    listed, wrong = _listed(folder), []
    if not (folder / CHECKPOINT).exists():
        wrong.append(f"{CHECKPOINT} is missing")
    for path in paths:
        digest = _sha256(path)
        state = _read(path, listed, digest)
        if isinstance(state, str):
            trouble = state
        elif not _has_rows(folder / METRICS, state):
            trouble = f"{METRICS} has lost rows that {path.name} counts on"
        else:
            if repair and (listed or {}).get(path.name) != digest:
                _list(folder, {path.name: digest})
            steps = int(state["global_step"])
            return Found(path, steps, _sentence(wrong, f"continuing from {path.name}, step {steps}") if wrong else "")
        wrong.append(f"{trouble}; it is kept as {path.name}.unusable")
        if repair:
            os.replace(path, path.with_name(path.name + ".unusable"))
            sync_folder(folder)
    return Found(None, 0, _sentence(wrong, "no other checkpoint can be used: starting from the beginning"))


def verify(checkpoint: Path) -> None:
    """Check a checkpoint against its checksum; one from before there were checksums is not checked.

    Raises:
        UserError: if it is damaged.
    """
    check_ordinary(checkpoint)
    listed = _listed(checkpoint.parent)
    if listed is not None and _sha256(checkpoint) not in listed.values():
        raise UserError(
            f"{checkpoint} is damaged: it does not have the checksum in {CHECKSUMS}. Train again with resume=false, or "
            "name another run"
        )


def forget_previous(folder: Path) -> None:
    """Remove the checkpoint before the last: a finished run needs no way back."""
    if (folder / PREVIOUS).exists():
        (folder / PREVIOUS).unlink()
        _list(folder, {name: digest for name, digest in (_listed(folder) or {}).items() if name == CHECKPOINT})


class _Hashing:
    """A file that is hashed while `torch.save` writes it, and that remembers why a write failed: torch does not say."""

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
    """Write, and return the SHA-256 of what was written."""
    hashing = _Hashing(file)
    try:
        torch.save(state, hashing)  # type: ignore[arg-type]
    except Exception:
        if hashing.error:
            raise hashing.error from None
        raise
    return hashing.sha256.hexdigest()


def _sha256(file: Path) -> str:
    check_ordinary(file)
    sha256 = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def _listed(folder: Path) -> dict[str, str] | None:
    """The digests in the folder's list, by file name; None without a list."""
    try:
        check_ordinary(folder / CHECKSUMS)
        text = (folder / CHECKSUMS).read_text(errors="replace")
    except FileNotFoundError:
        return None
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}


def _list(folder: Path, digests: Mapping[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    replace_file(folder / CHECKSUMS, lambda file: file.write(text.encode()))


def _read(path: Path, listed: Mapping[str, str] | None, digest: str) -> dict[str, Any] | str:
    """The checkpoint's content, or why it cannot be used."""
    if listed is not None and digest not in listed.values():
        return f"{path.name} is damaged (it does not have the checksum in {CHECKSUMS})"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        int(state["global_step"])
        return state
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = type(error).__name__
        if listed is None:
            return f"{path.name} is not a checkpoint of this program, or is damaged ({reason})"
        raise UserError(
            f"{path} is whole, but this version of torch cannot read it ({reason}). Use the version that wrote it (see "
            "result.json), or resume=false, which starts the run again"
        ) from error


def _has_rows(metrics: Path, state: Mapping[str, Any]) -> bool:
    """Whether `metrics.csv` begins with exactly the bytes that the checkpoint counts on."""
    counted = state.get("callbacks", {}).get(METRICS_STATE, {}).get("file")
    if not counted or not counted["bytes"]:
        return True
    try:
        check_ordinary(metrics)
        with metrics.open("rb") as file:
            return hashlib.sha256(file.read(counted["bytes"])).hexdigest() == counted["sha256"]
    except FileNotFoundError:
        return False


def _sentence(wrong: list[str], done: str) -> str:
    return "; ".join([*wrong, done])
