"""Run folders: what a run leaves behind, and the only thing that analysis ever reads.

A folder holds `.hydra/` (the config as Hydra composed it), `result.json` (see `Result`), `metrics.csv` (every step and
epoch), `recordings.npz` (arrays per step, where a recorder was asked for), TensorBoard events and `last.ckpt`;
`.run.json` marks it as made here.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.errors import Diverged, Interrupted, RunConflict, RunLocked, UserError, machine_fault, without_folders
from cifarbn.runs.checkpoints import CHECKSUMS, PREVIOUS, newest_whole
from cifarbn.runs.durable import replace_file, temporary_path
from cifarbn.runs.identity import Role, completed, differences, experiment, role_of
from cifarbn.runs.locks import Held, Lock, OpenFolder, is_held
from cifarbn.runs.longer import check_longer
from cifarbn.runs.provenance import environment
from cifarbn.runs.result_file import Damaged, overwrite_result, read_result, read_result_file, write_result
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
# What result.json held when the latest start began: it marks the folder as this program's, and stands in for a
# result.json that is damaged.
MARKER = ".run.json"
# Every file that a run writes into its folder. Nothing else is ever removed or moved.
_WRITTEN = (METRICS, RECORDINGS, RAW_GRADIENTS, CHECKPOINT, PREVIOUS, CHECKSUMS, RESULT, MARKER)
_TEMPORARY = tuple(temporary_path(Path(name)).name for name in _WRITTEN)
OWN_FILES = (
    *(*_WRITTEN, *_TEMPORARY, EVENTS, "hparams.yaml", "last.ckpt.unusable", "previous.ckpt.unusable"),
    *("metrics.tmp", "recordings.tmp", "last.tmp", "result.json.tmp"),  # of older versions
)
# What Hydra has written into the folder before a run begins.
HYDRA = ".hydra"
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class Run:
    """One run folder, while its run is being made.

    Attributes:
        folder: where it is.
        result: what `result.json` holds.
        checkpoint: the checkpoint to go on from, if there is one.
        steps: that the checkpoint has behind it.
        source: another run folder, if the checkpoint is that one's.
        retry: whether a failed run is still to be made.
    """

    def __init__(self, folder: Path, result: Result, *, retry: bool = True, lock: Lock | None = None) -> None:
        self.folder, self.result, self.retry = Path(folder), result, retry
        self.checkpoint: Path | None = None
        self.steps = 0
        self.source: Path | None = None
        self._lock = lock  # held for as long as this object lives, at most to the end of `recorded`
        self._opened: OpenFolder | None = None  # while recorded

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
        """The run that belongs in `folder`: finished, cut off, failed, or new. Nobody else can open it meanwhile.

        Args:
            folder: where it is; it need not be there yet.
            config: what it is; what only says how it is carried out does not count.
            overrides: of the command line, for the record.
            code: that it will be made with, as `cifarbn.runs.code_hash` gives it.
            resume: leave a finished run alone, and let one that was cut off go on from its checkpoint. Otherwise this
                program's files are moved to `.replaced/` beside the folder, and the run starts anew.
            retry: try a failed run again, from its checkpoint if it has one; otherwise leave it as it is.
            on_code_change: "error" a folder that other code has made, or "accept" it.
            resume_from: another run's folder, of the same config but for fewer epochs. A run that has no checkpoint of
                its own begins where that one ended. The other folder is only read.

        Raises:
            RunLocked: if another process has the folder open.
            RunConflict: if the folder holds a run of another config or, finished or with a checkpoint, of other code;
                if it holds files that this program did not write and no run, or links in place of its own files; if the
                run cannot begin where that in `resume_from` ended.
            UserError: if its checkpoint is whole but cannot be loaded, or `on_code_change` is neither word.
        """
        if on_code_change not in ("error", "accept"):
            raise UserError(f"on_code_change must be error or accept, not {on_code_change!r}")
        folder = Path(folder)
        config, code = experiment(config), dict(code or {})
        try:
            check_config(config)
        except ValueError as error:
            raise UserError(str(error)) from error
        # The processes that DDP starts beside the first find the folder as the first one left it.
        lock = _lock(folder) if _first_process() else None
        old, damage = _left_by_an_earlier_start(folder)
        if old is not None and not resume and _first_process():
            _set_aside(folder)
            old = None
        if old is None:
            said = [override for override in overrides if role_of(override) is not Role.PLACE]
            new: Result = {"status": Status.NEW, "overrides": said, "config": config, "code": code}
            run = cls(folder, new, retry=retry, lock=lock)
        else:
            run = cls(folder, old, retry=retry, lock=lock)
            run._check(config, code, on_code_change)
        if run.finished:
            return run
        run.result["code"] = code
        if old is not None:
            run._choose_checkpoint()
        if run.checkpoint is None and resume_from is not None:
            run._begin_with(Path(resume_from), on_code_change)
        if damage and old is not None and _first_process():
            then = f"continuing from {run.checkpoint}, step {run.steps}" if run.checkpoint else "starting anew"
            print(f"warning: {damage}; the run is known by its {MARKER}, {then}", file=sys.stderr, flush=True)
        return run

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do; a diverged run is a result too."""
        status = self.result["status"]
        return status in (Status.DONE, Status.DIVERGED) or (status == Status.FAILED and not self.retry)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep `status` true, however the block ends; a divergence ends the block and is no error.

        Raises:
            Interrupted: after Ctrl-C; any other exit passes as it is, for whoever asked for it.
            UserError: in place of an error that the machine is to blame for, such as a full disk; and where the folder
                was removed or replaced before the end.
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
            raise Interrupted from stop
        except SystemExit as stop:
            end = {"status": Status.INTERRUPTED}
            if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into an exit
                raise Interrupted from stop
            raise
        except BaseException as error:
            said = machine_fault(error, self.folder)
            kind = "" if said or isinstance(error, UserError) else f"{type(error).__name__}: "
            end = {"status": Status.FAILED, "error": without_folders(f"{kind}{said or error}", self.folder)}
            if said:
                raise UserError(said) from error
            raise
        finally:
            total = earlier + time.monotonic() - began
            end["seconds"] = self.result.get("seconds", {}) | {"total": total}
            try:
                self._end(end)
            finally:
                if self._opened:
                    self._opened.close()
                    self._opened = None
                if self._lock:
                    self._lock.release()

    def started(self, **facts: Any) -> None:
        """Put what this start computes with into `result.json`, for all of the run's steps that follow."""
        start: Any = {"step": self.steps, **facts} | {key: self.result.get(key) for key in ("versions", "git_commit")}
        kept = [key for key in start if key in Start.__annotations__]
        self.update(**facts, starts=[*self.result.get("starts", []), {key: start[key] for key in kept}])
        if _first_process():
            write_result(self.folder / MARKER, self.result)

    def computed(self, **facts: Any) -> None:
        """Correct what `started` has said of this start, by what only its first step could show."""
        *earlier, latest = self.result["starts"]
        self.update(**facts, starts=[*earlier, latest | {k: v for k, v in facts.items() if k in Start.__annotations__}])

    def update(self, **facts: Any) -> None:
        """Put facts into `result.json`, at once or not at all; from the first process only.

        Raises:
            UserError: if the folder was removed or replaced since `recorded` began.
        """
        self.result.update(facts)  # type: ignore[typeddict-item]
        if not _first_process():
            return
        if self._opened and not self._opened.stands:
            raise UserError(
                f"the folder {self.folder} was removed or replaced while its run was being made, so the run is lost; "
                "run the same command again"
            )
        write_result(self.folder / RESULT, self.result)

    def __str__(self) -> str:
        """One line for the terminal."""
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in self.result.get("metrics", {}).items())
        error = self.result.get("error")
        return f"{self.result['status']}: {self.folder}  {metrics}" + (f"  {error}" if error else "")

    def _choose_checkpoint(self) -> None:
        """Continue from the newest whole checkpoint; say so where it is not simply the last one."""
        if _first_process():
            remove_temporaries(self.folder)
        found = newest_whole(self.folder, repair=_first_process())
        if found is None:  # or renamed by DDP's first process, as unusable
            return
        self.checkpoint, self.steps = found.path, found.steps
        if found.notes:
            rank_zero_only(print)(f"{self.folder}: {found.notes}", flush=True)
            self.result["recovery"] = [*self.result.get("recovery", []), found.notes]

    def _check(self, config: Mapping[str, Any], code: Mapping[str, str], on_code_change: str) -> None:
        """Refuse what is in the folder where it is another run, or other code's."""
        elsewhere = "name=OTHER puts this run elsewhere; resume=false replaces the old one and keeps it in .replaced/"
        if changed := differences(completed(self.result["config"]), config):
            raise RunConflict(f"{self.folder} holds a run of another config ({'; '.join(changed)}). {elsewhere}")
        made = self.finished or any((self.folder / name).exists() for name in (CHECKPOINT, PREVIOUS))
        if made and (changed := _changed_modules(self.result, code, on_code_change)):
            raise RunConflict(
                f"{self.folder} holds a run that other code has made (changed: {', '.join(changed)}). "
                f"on_code_change=accept takes it as it is; {elsewhere}"
            )

    def _begin_with(self, source: Path, on_code_change: str) -> None:
        """Let the run begin where that in `source` ended."""
        theirs = read_result(source)
        if theirs is None:
            raise RunConflict(f"resume_from={source} is not a run folder: it has no {RESULT}")
        if _first_process() and is_being_made(source):
            raise RunConflict(f"another process is making the run in resume_from={source}; wait for it to end")
        check_longer(source, theirs, self.result["config"])
        if changed := _changed_modules(theirs, self.result["code"], on_code_change):
            raise RunConflict(
                f"the run in resume_from={source} was made by other code (changed: {', '.join(changed)}). "
                "on_code_change=accept takes it as it is"
            )
        found = newest_whole(source, repair=False)
        if found is None or found.path is None:
            raise RunConflict(
                f"resume_from={source} has no whole checkpoint ({CHECKPOINT}), so nothing can begin where it ended"
            )
        self.source, self.checkpoint, self.steps = source, found.path, found.steps
        self.result["resumed_from"] = source.absolute().name
        self.result["starts"], self.result["seconds"] = _starts(theirs), theirs.get("seconds", {})

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint is None:
            self.result.pop("seconds", None)
            self.result.pop("resumed_from", None)
        # A start of which no step is left has made nothing.
        self.result["starts"] = [start for start in _starts(self.result) if start.get("step", 0) < self.steps]
        self.result |= {"status": Status.RUNNING, "error": None}
        self.result |= environment()
        if not _first_process():
            return
        self._opened = OpenFolder(self.folder)
        if self.checkpoint is None or self.source:
            self._clear()
        if self.source:
            for pattern in (METRICS, RAW_GRADIENTS, EVENTS):
                for file in self.source.glob(pattern):
                    _copy(file, self.folder / file.name)
        write_result(self.folder / MARKER, self.result)
        self.update()

    def _end(self, end: Result) -> None:
        """Write how it ended; where the disk is full, whatever way there is left.

        Raises:
            UserError: if it cannot be written, or the folder was removed or replaced.
        """
        try:
            self.update(**end)
        except UserError as gone:
            self.result |= {"status": Status.FAILED, "error": without_folders(str(gone), self.folder)}
            raise
        except OSError as full:
            remove_temporaries(self.folder)
            with suppress(OSError):
                return self.update()
            with suppress(OSError):
                if overwrite_result(self.folder / RESULT, self.result):
                    return None
            said = machine_fault(full, self.folder) or str(full)
            if end["status"] == Status.DONE:
                self.result |= {"status": Status.FAILED, "error": without_folders(said, self.folder)}
            short = ("status", "error", "overrides", "config", "code")
            with suppress(OSError):
                least: Any = {key: self.result.get(key) for key in short}
                _ = overwrite_result(self.folder / RESULT, least) or overwrite_result(
                    self.folder / RESULT, least | {"error": None}
                )
            raise UserError(said) from full

    def _clear(self) -> None:
        """A run without a checkpoint starts from nothing, whatever an earlier start left; what was damaged is kept."""
        for file in _own_files(self.folder):
            if file.name not in (RESULT, MARKER) and file.suffix != ".unusable":
                file.unlink()


def _starts(result: Result) -> list[Start]:
    """The starts that a result tells of; one of an older version knows of the latest alone."""
    latest: Any = {key: value for key, value in result.items() if key in Start.__annotations__}
    return result.get("starts", [{"step": 0, **latest}] if "device" in latest else [])


def find_runs(root: Path) -> Iterator[Path]:
    """Every run folder under `root`, sorted; hidden folders are passed over."""
    for file in sorted(Path(root).rglob(RESULT)):
        if not any(part.startswith(".") for part in file.relative_to(root).parts):
            yield file.parent


def is_being_made(folder: Path) -> bool:
    """Return whether another process is making the run in a folder."""
    return is_held(_lock_file(folder))


def _first_process() -> bool:
    """Whether this process is DDP's first, or the only one: Lightning keeps the rank on the decorator."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _lock_file(folder: Path) -> Path:
    """It lies beside the folder, which may be removed, in a hidden one."""
    place = Path(os.path.realpath(folder))
    return place.parent / ".locks" / f"{place.name}.lock"


def _lock(folder: Path) -> Lock:
    """The run folder's lock, taken."""
    file = _lock_file(folder)
    try:
        return Lock(file)
    except Held:
        raise RunLocked(f"another process is making {folder}; it, or the same command later, will finish it") from None
    except OSError as error:
        raise UserError(machine_fault(error) or f"cannot open the lock {file}: {error}") from error


def _left_by_an_earlier_start(folder: Path) -> tuple[Result | None, str | None]:
    """What an earlier start of the run left in its folder, None in a new one; and what is wrong with its result.json.

    Raises:
        RunConflict: if something is there that this program did not write.
    """
    names = sorted(os.listdir(folder)) if folder.exists() else []
    of_hydra = [name for name in names if name == HYDRA or name.endswith(".log")]
    if links := [name for name in names if (name in of_hydra or _is_own(name)) and (folder / name).is_symlink()]:
        raise RunConflict(
            f"{folder}: {', '.join(links)} is a link, and a run writes nothing outside of its own folder; remove the "
            "link, or name=OTHER puts the run elsewhere"
        )
    damage = f"{folder / RESULT} is missing"
    try:
        if (result := read_result(folder)) is not None:
            return result, None
    except Damaged as error:
        damage = str(error).rpartition(";")[0]
        if MARKER not in names:
            raise RunConflict(f"{error}, or name=OTHER puts the run elsewhere") from error
    if (marked := read_result_file(folder / MARKER)) is not None:
        return marked, damage
    if strange := [name for name in names if name not in of_hydra and name not in _TEMPORARY]:
        several = f"{', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''}"
        raise RunConflict(
            f"{folder} is not a run folder: it holds files that this program did not write ({several}). They are left "
            "alone; name=OTHER, or hydra.run.dir=FOLDER with a new or empty folder, puts the run elsewhere"
        )
    return None, None


def _is_own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OWN_FILES)


def _own_files(folder: Path) -> list[Path]:
    """The files in a folder that a run writes, those by which the folder is known last."""
    found = [file for file in folder.iterdir() if _is_own(file.name) and not file.is_dir()]
    return sorted(found, key=lambda file: (file.name in (RESULT, MARKER), file.name))


def _changed_modules(old: Result, code: Mapping[str, str], on_code_change: str) -> list[str]:
    """The modules in which the code of an old result differs, unless that is accepted; none where it does not say."""
    if on_code_change == "accept":
        return []
    made_with = old.get("code", code)
    return sorted(name for name in made_with.keys() | code.keys() if made_with.get(name) != code.get(name))


def remove_temporaries(folder: Path) -> None:
    """Remove what a start that was killed, or met a full disk, was writing."""
    for name in _TEMPORARY:
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def _set_aside(folder: Path) -> None:
    """Move this program's files into `.replaced/` beside the folder, with a copy of the config; leave all others."""
    place = Path(os.path.realpath(folder))
    number = 1
    while (shelf := place.parent / ".replaced" / f"{place.name}.{number}").exists():
        number += 1
    shelf.mkdir(parents=True)
    for name in HYDRA_FILES:
        if (composed := folder / HYDRA / name).exists():
            (shelf / HYDRA).mkdir(exist_ok=True)
            shutil.copy2(composed, shelf / HYDRA / name)
    for file in _own_files(folder):
        shutil.move(file, shelf / file.name)


def _copy(file: Path, to: Path) -> None:
    with file.open("rb") as content:
        replace_file(to, lambda opened: shutil.copyfileobj(content, opened))
