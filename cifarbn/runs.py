"""Run folders: what a run leaves behind, and the only thing that analysis ever reads.

A folder holds `.hydra/` (the config as Hydra composed it), `result.json` (see `Result`), `metrics.csv` (every step and
epoch), `recordings.npz` (arrays per step, where a recorder was asked for), TensorBoard events and `last.ckpt`.
"""

import hashlib
import json
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.checkpoints import CHECKPOINT, PREVIOUS, newest_whole, remove_leftovers
from cifarbn.durable import replace_file
from cifarbn.errors import Diverged, Interrupted, MadeElsewhere, Refused, UserError

RESULT = "result.json"
RECORDINGS = "recordings.npz"
LONGEST_NAME = 120
PACKAGES = ("cifarbn", "torch", "torchvision", "pytorch-lightning", "hydra-core", "torchmetrics")

# Overrides that say how a run is carried out, not what it is: the folder's name leaves them out.
NOT_THE_EXPERIMENT = (
    "resume",
    "retry",
    "changed_code",
    "checkpoint_minutes",
    "name",
    "trainer.enable_progress_bar",
    "data.root",
    "data.download",
)


class Result(TypedDict, total=False):
    """`result.json`; nothing in it depends on the host's name or paths.

    `status` is "running" (or killed while running), "done", "interrupted", "diverged" (a result: the loss left the
    finite numbers) or "failed" (`error` says why).
    """

    status: str
    error: str | None
    overrides: list[str]
    config: dict[str, Any]
    code: dict[str, str]  # module -> hash of its code, see `cifarbn.sources`
    metrics: dict[str, float]
    steps: int
    parameters: int
    seconds: dict[str, float]
    images_per_second: float | None
    device: str
    devices: int
    precision: str
    channels_last: bool
    compile: str
    kernels: bool
    data: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None
    confusion: list[list[int]]
    constant_prediction_loss: float | None  # see `cifarbn.smoothness.dead_runs`
    divergence: dict[str, Any]
    recovery: list[str]  # damaged checkpoints that were found, and what was done


class Run:
    """One run folder, while its run is being made.

    Attributes:
        folder: where it is.
        result: what `result.json` holds.
        checkpoint: that the run is to go on from, if there is one.
        steps: that the checkpoint has behind it.
        retry: whether a failed run is still to be made.
    """

    def __init__(self, folder: Path, result: Result, *, retry: bool = True, lock: FileLock | None = None) -> None:
        self.folder, self.result, self.retry = Path(folder), result, retry
        self.checkpoint: Path | None = None
        self.steps = 0
        self._lock = lock  # held for as long as this object lives, at most to the end of `recorded`

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
        changed_code: str = "refuse",
    ) -> "Run":
        """The run that belongs in `folder`: finished, cut off, failed, or new. Nobody else can open it meanwhile.

        Args:
            folder: where it is.
            config: what it is; what only says how it is carried out does not count.
            overrides: of the command line, for the record.
            code: that it will be made with, as `cifarbn.sources` gives it.
            resume: leave a finished run alone, and let one that was cut off go on from its checkpoint. Otherwise what
                is there is moved to `.replaced/` beside the folder, and the run starts anew.
            retry: try a failed run again, from its checkpoint if it has one; otherwise leave it as it is.
            changed_code: "refuse" a folder that other code has made, or "accept" it.

        Raises:
            MadeElsewhere: if another process has the folder open.
            Refused: if the folder holds a run of another config or, finished or with a checkpoint, of other code.
            UserError: if its checkpoint is whole but cannot be loaded, or `changed_code` is neither word.
        """
        if changed_code not in ("refuse", "accept"):
            raise UserError(f"changed_code must be refuse or accept, not {changed_code!r}")
        folder = Path(folder)
        config, code = _experiment(config), dict(code or {})
        # The processes that DDP starts beside the first find the folder as the first one left it.
        lock = _lock(folder) if _first_process() else None
        old = read_result(folder)
        if old is not None and not resume and _first_process():
            _set_aside(folder)
            old = None
        if old is None:
            new: Result = {"status": "new", "overrides": list(overrides), "config": config, "code": code}
            return cls(folder, new, retry=retry, lock=lock)
        run = cls(folder, old, retry=retry, lock=lock)
        elsewhere = "name=OTHER puts this run elsewhere; resume=false replaces the old one and keeps it in .replaced/"
        if changed := differences(old.get("config", {}), config):
            raise Refused(f"{folder} holds a run of another config ({'; '.join(changed)}). {elsewhere}")
        cut_off = not run.finished and any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))
        if changed_code == "refuse" and (run.finished or cut_off) and (changed := _changed_modules(old, code)):
            raise Refused(
                f"{folder} holds a run that other code has made (changed: {', '.join(changed)}). "
                f"changed_code=accept takes it as it is; {elsewhere}"
            )
        if not run.finished:
            run.result["code"] = code
            if _first_process():
                remove_leftovers(folder)
        if cut_off:
            run._choose_checkpoint()
        return run

    def _choose_checkpoint(self) -> None:
        """Continue from the newest whole checkpoint; say so where it is not simply the last one."""
        found = newest_whole(self.folder, repair=_first_process())
        if found is None:  # renamed by DDP's first process, as unusable
            return
        self.checkpoint, self.steps = found.path, found.steps
        if found.notes:
            rank_zero_only(print)(f"{self.folder}: {found.notes}", flush=True)
            self.result["recovery"] = [*self.result.get("recovery", []), found.notes]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do; a diverged run is a result too."""
        return self.result["status"] in ("done", "diverged") or (self.result["status"] == "failed" and not self.retry)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep `status` true, however the block ends; a divergence ends the block and is no error."""
        if self.checkpoint is None:
            self._clear()
        started, earlier = time.time(), self.result.get("seconds", {}).get("total", 0.0)
        self.update(status="running", error=None, **surroundings())
        try:
            yield
        except Diverged as divergence:
            self.update(status="diverged", error=str(divergence), divergence=vars(divergence))
        except (Interrupted, KeyboardInterrupt, SystemExit) as end:  # Lightning turns a second Ctrl-C into an exit
            self.update(status="interrupted")
            raise Interrupted from end
        except BaseException as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.update(status="failed", error=f"{kind}{error}")
            raise
        else:
            self.update(status="done")
        finally:
            total = earlier + time.time() - started
            self.update(seconds=self.result.get("seconds", {}) | {"total": total})
            if self._lock:
                self._lock.release()

    def update(self, **facts: Any) -> None:
        """Put facts into `result.json`, at once or not at all; from the first process only."""
        self.result.update(facts)  # type: ignore[typeddict-item]
        if _first_process():
            write_result(self.folder, self.result)

    def __str__(self) -> str:
        """One line for the terminal."""
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in self.result.get("metrics", {}).items())
        error = self.result.get("error")
        return f"{self.result['status']}: {self.folder}  {metrics}" + (f"  {error}" if error else "")

    def _clear(self) -> None:
        """A run without a checkpoint starts from nothing, whatever an earlier start left."""
        for pattern in ("metrics.csv", RECORDINGS, "events.out.tfevents.*", "*.tmp"):
            for file in self.folder.glob(pattern):
                file.unlink()
        self.result.pop("seconds", None)


def folder_name(overrides: Sequence[str]) -> str:
    """The name of a run's folder: its overrides, sorted, in characters that are safe everywhere.

    A short hash is added where a character had to be replaced or the name cut, so that two runs never share a folder.

    >>> folder_name(["optim.lr=1e-3", "model=vgg_a", "resume=false"])
    'model=vgg_a,optim.lr=1e-3'
    """
    what = sorted(o for o in overrides if o.lstrip("+~").split("=")[0] not in NOT_THE_EXPERIMENT)
    exact = ",".join(what) or "defaults"
    name = re.sub(r"[^\w=,.+~-]", "_", exact, flags=re.ASCII)[:LONGEST_NAME]
    return name if name == exact else f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def read_result(folder: Path) -> Result | None:
    """The folder's `result.json`, or None where there is none.

    Raises:
        UserError: if the file is not JSON.
    """
    file = Path(folder) / RESULT
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{file} is not a result this program wrote ({error}); delete the folder") from error


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json` at once or not at all."""
    text = json.dumps(result, indent=1, default=str) + "\n"
    replace_file(Path(folder) / RESULT, lambda file: file.write(text.encode()))


def find_runs(root: Path) -> Iterator[Path]:
    """Every run folder under `root`, sorted; hidden folders are passed over."""
    for file in sorted(Path(root).rglob(RESULT)):
        if not any(part.startswith(".") for part in file.relative_to(root).parts):
            yield file.parent


def _first_process() -> bool:
    """Whether this process is DDP's first, or the only one: Lightning keeps the rank on the decorator."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _lock(folder: Path) -> FileLock:
    """The run folder's lock, taken. The system gives it back when this process ends, however it ends.

    It lies beside the folder, which may be moved, in a hidden one.
    """
    lock = FileLock(folder.parent / ".locks" / f"{folder.name}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise MadeElsewhere(
            f"another process is making {folder}; it, or the same command later, will finish it"
        ) from None
    return lock


def _changed_modules(old: Result, code: Mapping[str, str]) -> list[str]:
    """The modules in which the code of an old result differs; none where it does not say."""
    made_with = old.get("code", code)
    return sorted(name for name in made_with.keys() | code.keys() if made_with.get(name) != code.get(name))


def _set_aside(folder: Path) -> None:
    """Move a run folder into `.replaced/` beside it, but for what Hydra has just written for the new run."""
    shelf = folder.parent / ".replaced"
    shelf.mkdir(exist_ok=True)
    number = 1
    while (shelf / f"{folder.name}.{number}").exists():
        number += 1
    folder.rename(shelf / f"{folder.name}.{number}")
    folder.mkdir()
    composed = shelf / f"{folder.name}.{number}" / ".hydra"
    if composed.exists():
        shutil.copytree(composed, folder / ".hydra")


def _experiment(config: dict[str, Any]) -> dict[str, Any]:
    """The config as JSON would give it back, without what says only how the run is carried out, or where."""
    config = json.loads(json.dumps(config))
    for key in NOT_THE_EXPERIMENT:
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node.get(group, {})
        node.pop(last, None)
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested configs differ, as `key: old -> new`, sorted by key."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return found


def surroundings() -> Result:
    """What a result depends on beside its config: package versions and the commit of this checkout."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return {"versions": versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The checkout's commit, with `+changes` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return None  # installed into somebody else's repository
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
