"""Run folders: everything that a run writes, and the only thing that analysis reads.

A folder holds `.hydra/` (the config as Hydra composed it), `result.json` (see `Result`), `metrics.csv` (every step and
epoch), `recordings.npz` (arrays per step, if the run has recorders), TensorBoard events and `last.ckpt`. `.run.json`
marks a folder that this program has created.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.durable import remove_temporaries, replace_file, temporary_pattern
from cifarbn.errors import (
    Diverged,
    FolderLost,
    Interrupted,
    RunConflict,
    RunLocked,
    UserError,
    machine_fault,
    without_folders,
)
from cifarbn.formatting import first_names
from cifarbn.runs.checkpoints import CHECKSUMS, PREVIOUS, newest_intact
from cifarbn.runs.identity import Role, differences, experiment, role_of
from cifarbn.runs.locks import Held, Lock, OpenPath, is_held
from cifarbn.runs.longer import LENGTH, check_longer, shorter_run, why_not_longer
from cifarbn.runs.old_names import modern_config
from cifarbn.runs.provenance import environment
from cifarbn.runs.result_file import (
    Damaged,
    as_json,
    digests,
    overwrite_result,
    read_result,
    read_result_file,
    write_result,
)
from cifarbn.runs.schema import (
    CHECKPOINT,
    METRICS,
    RAW_GRADIENTS,
    RECORDINGS,
    RESULT,
    Result,
    Start,
    Status,
    check_config,
)

EVENTS = "events.out.tfevents.*"
# A copy of result.json from the beginning of the latest start: it marks the folder as one of this program's, and
# replaces a damaged result.json.
MARKER = ".run.json"
# Every file that a run writes into its folder. No other file is ever removed or moved.
_WRITTEN = (METRICS, RECORDINGS, RAW_GRADIENTS, CHECKPOINT, PREVIOUS, CHECKSUMS, RESULT, MARKER)
_TEMPORARY = tuple(map(temporary_pattern, _WRITTEN))
OWN_FILES = (
    *(*_WRITTEN, *_TEMPORARY, EVENTS, "hparams.yaml", "last.ckpt.unusable", "previous.ckpt.unusable"),
    *("metrics.tmp", "recordings.tmp", "last.tmp", "result.json.tmp"),  # written by older versions
)
SECONDS_TO_RECORD = 5  # from an error of all DDP processes until the first one has written it into result.json
# Hydra writes these before a run begins.
HYDRA = ".hydra"
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class Run:
    """A run folder that this process has opened for its run.

    Attributes:
        folder: path of the run folder.
        result: content of `result.json`.
        checkpoint: the checkpoint to continue from, if any.
        steps: optimizer steps completed at the checkpoint.
        source: the run folder that the checkpoint belongs to, if it is another one.
        retry: whether to run a failed run again.
    """

    def __init__(self, folder: Path, result: Result, *, retry: bool = True, lock: Lock | None = None) -> None:
        self.folder, self.result, self.retry = Path(folder), result, retry
        self.checkpoint: Path | None = None
        self.steps = 0
        self.source: Path | None = None
        self._lock = lock  # held while this object exists, and released at the end of `track_status`
        # Only inside `track_status`.
        self._opened: OpenPath | None = None
        self._marker: OpenPath | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        config: Any,
        overrides: Sequence[str],
        code: Mapping[str, str] | None = None,
        *,
        resume: bool = True,
        retry: bool = True,
        on_code_change: str = "error",
        resume_from: Path | None = None,
    ) -> "Run":
        """Open the run in `folder`, whether finished, interrupted, failed or new, and lock it for this process.

        Args:
            folder: path of the run folder, which need not exist.
            config: the run's config. Keys that only say how a run is executed are ignored.
            overrides: overrides of the command line, to be stored in `result.json`.
            code: hashes of the modules that the run computes with, see `cifarbn.runs.code_hash`.
            resume: keep a finished run, and continue an interrupted one from its checkpoint. False moves this program's
                files to `.replaced/` in the parent folder, and the run starts from scratch.
            retry: run a failed run again, from its checkpoint if it has one. False leaves it as it is.
            on_code_change: "error" raises an error if the folder was created by different code; "accept" uses it.
            resume_from: folder of another run, of the same config but for fewer epochs. A run without a checkpoint of
                its own continues from that run's checkpoint. The other folder is only read. Without `resume_from`, a
                finished run of the same sweep that differs only in having fewer epochs is continued in this way.

        Raises:
            RunLocked: if another process has opened the folder.
            RunConflict: if the folder holds a run of a different config; a run of different code that is finished or
                has a checkpoint; files of other programs but no run; or links instead of its own files. Also if the run
                cannot continue the one in `resume_from`.
            UserError: if the checkpoint is intact but cannot be loaded, or `on_code_change` has another value.
        """
        if on_code_change not in ("error", "accept"):
            raise UserError(f"on_code_change must be error or accept, not {on_code_change!r}")
        folder = Path(folder)
        config, code = experiment(config), dict(code or {})
        try:
            check_config(config)
        except ValueError as error:
            raise UserError(str(error)) from error
        # With DDP, only the first process locks and changes the folder; the others read what it has left.
        lock = _lock(folder) if _first_process() else None
        old, damage = _left_by_an_earlier_start(folder)
        if old is not None and not resume and _first_process():
            _set_aside(folder)
            old = None
        if old is None:
            run = cls(folder, _new(config, overrides, code), retry=retry, lock=lock)
        else:
            run = cls(folder, old, retry=retry, lock=lock)
            run._check(config, overrides, code, on_code_change)
        if run.finished:
            return run
        run.result["code"] = code
        if old is not None:
            run._choose_checkpoint()
        if run.checkpoint is None and resume_from is not None:
            run._begin_with(Path(resume_from), on_code_change)
        elif run.checkpoint is None and resume and (shorter := shorter_run(folder, config)):
            with suppress(RunConflict):  # it is running, has other code or no intact checkpoint: start from scratch
                run._begin_with(shorter, on_code_change)
        if damage and old is not None and _first_process():
            start = f"continuing from {run.checkpoint}, step {run.steps}" if run.checkpoint else "starting from scratch"
            print(f"warning: {damage}; using its copy {MARKER} and {start}", file=sys.stderr, flush=True)
        return run

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; a diverged run counts as finished."""
        status = self.result["status"]
        return status in (Status.DONE, Status.DIVERGED) or (status == Status.FAILED and not self.retry)

    @contextmanager
    def track_status(self) -> Iterator[None]:
        """Keep `status` in `result.json` up to date, however the block ends; a divergence ends it without an error.

        Raises:
            Interrupted: after a signal. Any other exit is passed on unchanged.
            UserError: instead of an error of the machine, such as a full disk; also if the folder was removed or
                replaced during the run.
            SystemExit: with exit code 1 in a DDP process other than the first, for an error that the first has as well.
        """
        began, earlier = time.monotonic(), 0.0
        end: Result = {"status": Status.DONE}
        try:
            self._begin()
            earlier = self.result.get("seconds", {}).get("total", 0.0)
            yield
        except Diverged as divergence:
            end = {"status": Status.DIVERGED, "error": str(divergence), "divergence": vars(divergence)}  # type: ignore[typeddict-item]
        except (Interrupted, KeyboardInterrupt) as stop:
            end = {"status": Status.INTERRUPTED}
            raise Interrupted(*stop.args) from stop
        except SystemExit as stop:
            end = {"status": Status.INTERRUPTED}
            if isinstance(stop, SIGTERMException):  # of Lightning; its exit code would be 0
                raise Interrupted(signal.SIGTERM) from stop
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
                raise Interrupted(*stop.__context__.args) from stop
            raise
        except BaseException as error:
            fault = machine_fault(error, self.folder)
            kind = "" if fault or isinstance(error, UserError) else f"{type(error).__name__}: "
            end = {"status": Status.FAILED, "error": without_folders(f"{kind}{fault or error}", self.folder)}
            if not _first_process() and self._is_recorded(end["error"]):
                raise SystemExit(1) from error
            if fault:
                raise UserError(fault) from error
            raise
        finally:
            total = earlier + time.monotonic() - began
            end["seconds"] = self.result.get("seconds", {}) | {"total": total}
            try:
                self._end(end)
            finally:
                self._opened = self._marker = None  # closes them
                if self._lock:
                    self._lock.release()

    def started(self, **facts: Any) -> None:
        """Write into `result.json` what this start computes with; it applies to all of the run's steps from here on."""
        start: Any = {"step": self.steps, **facts} | {key: self.result.get(key) for key in ("versions", "git_commit")}
        kept = [key for key in start if key in Start.__annotations__]
        self.update(**facts, starts=[*self.result.get("starts", []), {key: start[key] for key in kept}])
        if _first_process():
            self._write_marker()

    def computed(self, **facts: Any) -> None:
        """Correct the facts that `started` wrote for this start by those that only its first step could show."""
        *earlier, latest = self.result["starts"]
        self.update(**facts, starts=[*earlier, latest | {k: v for k, v in facts.items() if k in Start.__annotations__}])

    def update(self, **facts: Any) -> None:
        """Write facts into `result.json`, atomically and from the first process only.

        Raises:
            FolderLost: see `check_folder`.
        """
        self.result.update(facts)  # type: ignore[typeddict-item]
        if not _first_process():
            return
        self.check_folder()
        write_result(self.folder / RESULT, self.result)

    def check_folder(self) -> None:
        """Raise an error if the folder is no longer this process's; called before each write.

        Raises:
            FolderLost: if the folder was removed or replaced since `track_status` began, or if another process has
                started the same run, which is possible only on a file system without locks.
        """
        if self._opened and not self._opened.in_place:
            raise FolderLost(
                f"the folder {self.folder} was removed or replaced during its run, so the run is lost; "
                "run the same command again"
            )
        if self._marker and not self._marker.in_place:
            raise FolderLost(
                f"another process has started the same run in {self.folder} and continues it, so this one ends. "
                f"If there is no other process, {MARKER} was deleted: run the same command again"
            )

    def __str__(self) -> str:
        """Return one line for the terminal."""
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in self.result.get("metrics", {}).items())
        error = self.result.get("error")
        return f"{self.result['status']}: {self.folder}  {metrics}" + (f"  {error}" if error else "")

    def _write_marker(self) -> None:
        """Write the marker again, and keep it open, so that another process which replaces it is detected."""
        opened: list[OpenPath] = []

        def write(file: BinaryIO) -> None:
            # Read-only: a file that is open for writing keeps a disk from being unmounted or made read-only.
            opened.append(OpenPath(Path(file.name), self.folder / MARKER))
            file.write(as_json(self.result))

        replace_file(self.folder / MARKER, write)
        (self._marker,) = opened

    def _choose_checkpoint(self) -> None:
        """Continue from the newest intact checkpoint, and print why if it is not the last one."""
        if _first_process():
            remove_leftovers(self.folder)
        resume_point = newest_intact(self.folder, repair=_first_process())
        if resume_point is None:  # no checkpoint, or DDP's first process has renamed unusable ones
            return
        self.checkpoint, self.steps = resume_point.path, resume_point.steps
        if resume_point.notes:
            rank_zero_only(print)(f"{self.folder}: {resume_point.notes}", flush=True)
            self.result["recovery"] = [*self.result.get("recovery", []), resume_point.notes]

    def _check(
        self, config: Mapping[str, Any], overrides: Sequence[str], code: Mapping[str, str], on_code_change: str
    ) -> None:
        """Raise an error if the folder holds a run of a different config or of different code.

        If the only difference is a larger number of epochs, and the schedule allows it, the run is continued. A run
        that ended before its first step is replaced, since nothing of it is worth keeping.
        """
        elsewhere = "Use name=OTHER, or resume=false to start from scratch (the old run is moved to .replaced/)"
        has_checkpoint = any((self.folder / name).exists() for name in (CHECKPOINT, PREVIOUS))
        longer = differences(modern_config(self.result["config"]), config)
        ended = self.result["status"] in (Status.DONE, Status.DIVERGED)
        if longer and not (ended or has_checkpoint or (self.folder / METRICS).exists()):
            self.result = _new(config, overrides, code)
            return
        if longer:
            reason = "" if all(change.startswith(LENGTH) for change in longer) else "other keys differ"
            reason = reason or why_not_longer(self.result, config) or self._why_no_checkpoint()
            if reason:
                detail = "" if reason == "other keys differ" else f", and cannot be continued: {reason}"
                raise RunConflict(
                    f"{self.folder} holds a run of a different config ({'; '.join(longer)}){detail}. {elsewhere}"
                )
        if (self.finished or has_checkpoint) and (changed := _changed_modules(self.result, code, on_code_change)):
            raise RunConflict(
                f"{self.folder} was created by different code (changed: {', '.join(changed)}). "
                f"Use on_code_change=accept to continue with today's code. {elsewhere}"
            )
        if longer:
            rank_zero_only(print)(f"continuing {self.folder}; changed: {'; '.join(longer)}", flush=True)
            self.result |= {"status": Status.INTERRUPTED, "config": dict(config), "overrides": _kept(overrides)}

    def _why_no_checkpoint(self) -> str:
        resume_point = newest_intact(self.folder, repair=False)
        return "" if resume_point and resume_point.path else f"it has no intact checkpoint ({CHECKPOINT})"

    def _begin_with(self, source: Path, on_code_change: str) -> None:
        """Continue from the checkpoint of the run in `source`."""
        theirs = read_result(source)
        if theirs is None:
            raise RunConflict(f"resume_from={source} is not a run folder: it has no {RESULT}")
        if _first_process() and is_running(source):
            raise RunConflict(
                f"the run in resume_from={source} is still running in another process; wait for it to end"
            )
        check_longer(source, theirs, self.result["config"])
        if changed := _changed_modules(theirs, self.result["code"], on_code_change):
            raise RunConflict(
                f"the run in resume_from={source} was created by different code (changed: {', '.join(changed)}). "
                "Use on_code_change=accept to continue it with today's code"
            )
        resume_point = newest_intact(source, repair=False)
        if resume_point is None or resume_point.path is None:
            raise RunConflict(
                f"resume_from={source} has no intact checkpoint ({CHECKPOINT}) to continue from; leave out resume_from "
                "to train from scratch"
            )
        self.source, self.checkpoint, self.steps = source, resume_point.path, resume_point.steps
        self.result["resumed_from"] = source.absolute().name
        if changed := differences(modern_config(theirs["config"]), self.result["config"]):
            rank_zero_only(print)(
                f"continuing {source}; changed: {'; '.join(changed)} (resume=false trains from scratch)", flush=True
            )
        self.result["starts"], self.result["seconds"] = _starts(theirs), theirs.get("seconds", {})

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint is None:
            self.result.pop("seconds", None)
            self.result.pop("resumed_from", None)
            self.result.pop("logger", None)
        self.result.pop("files", None)
        # Drop the starts of which no step is left.
        self.result["starts"] = [start for start in _starts(self.result) if start.get("step", 0) < self.steps]
        self.result |= {"status": Status.RUNNING, "error": None}
        self.result |= environment(self.result["config"])
        if not _first_process():
            return
        self._opened = OpenPath(self.folder)
        if self.checkpoint is None or self.source:
            self._clear()
        if self.source:
            for pattern in (METRICS, RAW_GRADIENTS, EVENTS):
                for file in self.source.glob(pattern):
                    _copy(file, self.folder / file.name)
        self._write_marker()
        self.update()

    def _end(self, end: Result) -> None:
        """Write how the run ended; on a full disk, free the temporary files or overwrite the old `result.json`.

        Raises:
            UserError: if the end cannot be written, or the folder was removed or replaced.
        """
        try:
            if end["status"] in (Status.DONE, Status.DIVERGED) and _first_process():
                end["files"] = digests(self.folder)
            self.update(**end)
        except UserError as gone:
            self.result |= {"status": Status.FAILED, "error": without_folders(str(gone), self.folder)}
            raise
        except OSError as full:
            remove_leftovers(self.folder)
            with suppress(OSError):
                return self.update()
            with suppress(OSError):
                if overwrite_result(self.folder / RESULT, self.result):
                    return None
            fault = machine_fault(full, self.folder) or str(full)
            if end["status"] == Status.DONE:
                self.result |= {"status": Status.FAILED, "error": without_folders(fault, self.folder)}
            short = ("status", "error", "overrides", "config", "code")
            with suppress(OSError):
                least: Any = {key: self.result.get(key) for key in short}
                _ = overwrite_result(self.folder / RESULT, least) or overwrite_result(
                    self.folder / RESULT, least | {"error": None}
                )
            raise UserError(fault) from full

    def _is_recorded(self, error: str | None) -> bool:
        """Return whether DDP's first process, which reports it then, has the same error; wait some seconds for that."""
        deadline = time.monotonic() + SECONDS_TO_RECORD
        while time.monotonic() < deadline:
            with suppress(UserError, OSError):
                if (result := read_result(self.folder)) and result.get("error") == error:
                    time.sleep(1)  # torchrun ends all processes soon after one; the first must have printed its error
                    return True
            time.sleep(0.1)
        return False

    def _clear(self) -> None:
        """Remove the files of earlier starts, for a run without a checkpoint; damaged checkpoints are kept."""
        for file in _own_files(self.folder):
            if file.name not in (RESULT, MARKER) and file.suffix != ".unusable":
                file.unlink()


def _new(config: Mapping[str, Any], overrides: Sequence[str], code: Mapping[str, str]) -> Result:
    return {"status": Status.NEW, "overrides": _kept(overrides), "config": dict(config), "code": dict(code)}


def _kept(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that `result.json` keeps: all but paths of this machine."""
    return [override for override in overrides if role_of(override) is not Role.PLACE]


def _starts(result: Result) -> list[Start]:
    """Return the starts in a result; results of older versions have only the latest one."""
    latest: Any = {key: value for key, value in result.items() if key in Start.__annotations__}
    return result.get("starts", [{"step": 0, **latest}] if "device" in latest else [])


def find_runs(root: Path) -> Iterator[Path]:
    """Yield every run folder under `root`, sorted; hidden folders are skipped."""
    for file in sorted(Path(root).rglob(RESULT)):
        if not any(part.startswith(".") for part in file.relative_to(root).parts):
            yield file.parent


def is_running(folder: Path) -> bool:
    """Return whether the run in a folder is running in another process."""
    return is_held(_lock_file(folder))


def _first_process() -> bool:
    """Return whether this process is DDP's first, or the only one; Lightning keeps the rank on the decorator."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _lock_file(folder: Path) -> Path:
    """Return the path of a run folder's lock: in the hidden folder `.locks`, since the run folder may be removed."""
    place = Path(os.path.realpath(folder))
    return place.parent / ".locks" / f"{place.name}.lock"


def _lock(folder: Path) -> Lock:
    """Take the run folder's lock."""
    file = _lock_file(folder)
    try:
        return Lock(file)
    except Held:
        raise RunLocked(
            f"{folder} is in use: another process runs it. Wait for it, or run the same command later to finish the run"
        ) from None
    except OSError as error:
        raise UserError(machine_fault(error) or f"cannot open the lock {file}: {error}") from error


def _left_by_an_earlier_start(folder: Path) -> tuple[Result | None, str | None]:
    """Return the result of an earlier start (None in a new folder), and what is wrong with its result.json (or None).

    Raises:
        RunConflict: if the folder holds files that this program did not write.
    """
    names = sorted(os.listdir(folder)) if folder.exists() else []
    of_hydra = [name for name in names if name == HYDRA or name.endswith(".log")]
    if links := [name for name in names if (name in of_hydra or _is_own(name)) and (folder / name).is_symlink()]:
        raise RunConflict(
            f"{folder}: {', '.join(links)} is a link, and a run writes only into its own folder. Remove the link, or "
            "use name=OTHER for another folder"
        )
    damage = f"{folder / RESULT} is missing"
    try:
        if (result := read_result(folder)) is not None:
            return result, None
    except Damaged as error:
        damage = str(error).rpartition(";")[0]
        if MARKER not in names:
            raise RunConflict(f"{error}, or use name=OTHER for another folder") from error
    if (marked := read_result_file(folder / MARKER)) is not None:
        return marked, damage
    if strange := [name for name in names if name not in of_hydra and not _matches(name, _TEMPORARY)]:
        raise RunConflict(
            f"{folder} is not a run folder: it holds files that cifarbn did not write ({first_names(strange)}), which "
            "are kept. Use name=OTHER, or hydra.run.dir=FOLDER with a new or empty folder"
        )
    return None, None


def _is_own(name: str) -> bool:
    return _matches(name, OWN_FILES)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _own_files(folder: Path) -> list[Path]:
    """Return the files in a folder that a run has written; those that identify the run come last."""
    files = [file for file in folder.iterdir() if _is_own(file.name) and not file.is_dir()]
    return sorted(files, key=lambda file: (file.name in (RESULT, MARKER), file.name))


def _changed_modules(old: Result, code: Mapping[str, str], on_code_change: str) -> list[str]:
    """Return the modules whose code has changed since an old result; empty if that is accepted, or not known."""
    if on_code_change == "accept":
        return []
    old_code = old.get("code", code)
    return sorted(name for name in old_code.keys() | code.keys() if old_code.get(name) != code.get(name))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a start that was killed or met a full disk."""
    for name in _WRITTEN:
        remove_temporaries(folder / name)


def _set_aside(folder: Path) -> None:
    """Move this program's files into `.replaced/` in the parent folder, with a copy of the config; keep all others."""
    place = Path(os.path.realpath(folder))
    number = 1
    while (target := place.parent / ".replaced" / f"{place.name}.{number}").exists():
        number += 1
    target.mkdir(parents=True)
    for name in HYDRA_FILES:
        if (composed := folder / HYDRA / name).exists():
            (target / HYDRA).mkdir(exist_ok=True)
            shutil.copy2(composed, target / HYDRA / name)
    for file in _own_files(folder):
        shutil.move(file, target / file.name)


def _copy(file: Path, to: Path) -> None:
    with file.open("rb") as content:
        replace_file(to, lambda opened: shutil.copyfileobj(content, opened))
