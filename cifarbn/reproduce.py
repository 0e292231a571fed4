"""`python -m cifarbn.reproduce report|paper|course`: a source's experiments, as far as time allows, then its page."""

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cifarbn.command_line import CONF, data_root, plain_errors
from cifarbn.errors import MadeElsewhere, UserError, without_folders
from cifarbn.identity import ROLES, key_of
from cifarbn.report.assumptions import assumptions
from cifarbn.report.comparison import Row, comparison
from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.report.write import default_folder, write_report
from cifarbn.runs import RESULT, Role, Run, differences, folder_name, is_being_made, read_result, role_of
from cifarbn.sources import sources
from cifarbn.sweep import Outcome, duration, table

# VGG-A's, beside that of its experiments' files.
OTHER_RATES = (" optim.lr=5e-4", " optim.lr=2e-3", " optim.lr=1e-4")
# The experiments of each source, in the order of running: when the time is up, the most telling ones are there.
SUITES: dict[str, tuple[str, ...]] = {
    "report": (
        *("report/vgg_a_bn", "report/vgg_a", "report/augmentation", "report/l2", "report/pool", "report/baseline"),
        *("report/stem_decay", "report/dropout", "report/sgd", "report/mse", "report/mish", "report/swish"),
        *("report/rmsprop", *(f"report/{net}{rate}" for rate in OTHER_RATES for net in ("vgg_a_bn", "vgg_a"))),
    ),
    "paper": (
        *("paper/dln_bn", "paper/dln", "paper/dln_bn_small_lr", "paper/dln_small_lr", "paper/vgg_bn", "paper/vgg"),
        *("paper/vgg_noisy_bn", "paper/vgg_l1", "paper/vgg_l2", "paper/vgg_linf"),
        *("paper/vgg_bn_augmented", "paper/vgg_augmented"),
    ),
    "course": tuple(f"course/{net}{rate}" for rate in ("", *OTHER_RATES) for net in ("vgg_a_bn", "vgg_a")),
}

SCALES = {
    "full": "The source's own experiments, unchanged.",
    "fast": "The source's nets and data with a modern schedule: where it trains longer than 40 epochs, a tenth of them "
    "with one cycle of the learning rate and batches of 512.",
    "laptop": "Small experiments like the source's, for two CPU cores: narrower nets and few epochs. They are not the "
    "source's experiments: their accuracies do not compare with its own; what one row adds to another may, with care.",
    "smoke": "A few steps on drawn pictures, to see that everything runs. No number here means anything.",
}
COMPARABLE = ("full", "fast")
# What may be said of every run: whatever does not define the experiment, but what is chosen here already.
HOW = (Role.EXECUTION, Role.PLACE, Role.DEVICE, Role.WATCHING)
CHOSEN_HERE = ("name", "resume_from")
# Peaks of one cycle at batch 512, by optimizer.
FAST_RATES = {"torch.optim.Adam": "3e-3", "torch.optim.SGD": "0.2", "torch.optim.RMSprop": "1e-3"}


@dataclass(frozen=True)
class Planned:
    """One experiment at one scale.

    Attributes:
        name: as in `SUITES`.
        overrides: its command line, without seed, folder and what says only how it is carried out.
        written: its config as the source has it.
        scaled: its config at this scale.
    """

    name: str
    overrides: list[str]
    written: DictConfig
    scaled: DictConfig

    @classmethod
    def of(cls, name: str, scale: str, how: Sequence[str] = ()) -> "Planned":
        """Compose both configs, the second with what `how` changes of it; to be called where Hydra is initialised."""
        said = f"experiment={name}".split()
        written = compose("train", overrides=said)
        ours = [override for override in how if role_of(override) in (Role.DEVICE, Role.WATCHING)]
        overrides = [*said, *scale_down(written, scale), *ours]
        return cls(name, overrides, written, compose("train", overrides=overrides))

    def changes(self) -> list[str]:
        """What the scale changes, as `key: the source's -> ours`; a choice of another file by its name alone."""
        before, after = _container(self.written), _container(self.scaled)
        choices = [o for o in self.overrides[1:] if o.partition("=")[0] in ("data", "schedule", "trainer", "record")]
        # max_epochs follows epochs.
        groups = ("trainer.max_epochs", *(f"{choice.partition('=')[0]}." for choice in choices))
        found = [change for change in differences(before, after) if not change.startswith(groups)]
        named = [o for o in self.overrides[1:] if o.startswith(groups)]
        return [*choices, *named, *found]

    def base(self) -> str | None:
        """The experiment that this one's file begins with, with the same further overrides."""
        experiment, *others = self.name.split()
        file: Any = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
        bases = (name.removeprefix("/experiment/") for name in file.defaults if isinstance(name, str))
        return next((" ".join([base, *others]) for base in bases), None)


def scale_down(cfg: DictConfig, scale: str) -> list[str]:
    """The overrides that make an experiment, as the source has it, one of this scale; none for "full"."""
    if scale == "full" or (scale == "fast" and cfg.epochs <= 40):
        return []
    if scale == "fast":
        rate = FAST_RATES[cfg.optim._target_]
        return [f"epochs={cfg.epochs // 10}", "schedule=onecycle", f"optim.lr={rate}", "data.batch_size=512"]
    if "width" not in cfg.model:  # the deep linear net, which takes a minute as it is
        return ["epochs=1", "data.steps_per_epoch=50"] if scale == "smoke" else []
    epochs = 6 if scale == "laptop" else 2
    overrides = [f"epochs={epochs}", "model.width=16"]  # below 16 channels a CPU is no faster
    if "milestones" in cfg.schedule:
        milestones = [max(1, round(m * epochs / cfg.epochs)) for m in cfg.schedule.milestones]
        overrides.append(f"schedule.milestones=[{','.join(map(str, milestones))}]")
    if cfg.trainer.max_steps > 0:
        overrides.append(f"trainer.max_steps={600 if scale == 'laptop' else 20}")
    if scale == "smoke":
        overrides += ["data=shapes", "data.train_size=1000", "data.test_size=200"]
    return overrides


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cifarbn.reproduce",
        description="Make what is missing of a source's experiments, then write the page that puts its numbers beside "
        "the measured ones. The same command again goes on where it was cut off.",
        epilog="\n".join(f"{name}: {text}" for name, text in SCALES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=SUITES, help="whose experiments")
    parser.add_argument("--scale", choices=SCALES, default="laptop", help="how large (default: laptop)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each, seeds 0 to N-1 (default: 1)")
    parser.add_argument("--budget", metavar="TIME", help="such as 90m, 2h or 1h30m: then stop, save and write the page")
    keys = [key for key, role in ROLES.items() if role in HOW and key not in CHOSEN_HERE]
    parser.add_argument("how", nargs="*", metavar="KEY=VALUE", help=f"for every run: {', '.join(keys)}")
    chosen = parser.parse_intermixed_args(arguments)
    with plain_errors():
        if strange := [said for said in chosen.how if role_of(said) not in HOW or key_of(said) in CHOSEN_HERE]:
            raise UserError(
                f"{strange[0]}: this would change the experiments, which are those of the source and the scale. Only "
                f"these can be said of every run: {', '.join(keys)}. `python -m cifarbn.train` changes anything"
            )
        if chosen.seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {chosen.seeds}")
        deadline = time.monotonic() + seconds(chosen.budget) if chosen.budget else None
        # The run that this process makes must not outlive it.
        earlier = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            sys.exit(reproduce(chosen.source, chosen.scale, chosen.seeds, deadline, chosen.how))
        finally:
            signal.signal(signal.SIGTERM, earlier)


def reproduce(source: str, scale: str, seeds: int, deadline: float | None = None, how: Sequence[str] = ()) -> int:
    """Make the runs, one process each, until `deadline` (of time.monotonic); then the page. Returns the exit code."""
    root = Path("multirun_outputs") / f"{source}_{scale}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        planned = [Planned.of(name, scale, how) for name in SUITES[source]]
        # Every experiment once before any a second time.
        runs = [(plan, seed) for seed in range(seeds) for plan in planned]
        outcomes = list(_make(runs, root, deadline, list(how)))
    print(f"\n{table(outcomes)}")
    if left := len(runs) - len(outcomes):
        print(f"\nthe time is up, {left} of {len(runs)} runs not begun; the same command goes on")
    refused = {outcome.run: str(outcome.why) for outcome in outcomes if outcome.status == "refused"}
    if any(outcome.status not in ("refused", "elsewhere") for outcome in outcomes):
        print(f"\n{_write_page(source, planned, root, scale, seeds, refused, how)}")
    return 1 if any(outcome.status in ("failed", "refused") for outcome in outcomes) else 0


def _make(runs: Sequence[tuple[Planned, int]], root: Path, deadline: float | None, how: list[str]) -> Iterator[Outcome]:
    """Make what is missing, in this order, and say how each run ended; none is begun after the deadline."""
    began, made = time.monotonic(), 0
    for number, (plan, seed) in enumerate(runs, 1):
        folder = root / _folder(plan, seed)
        overrides = [*plan.overrides, f"seed={seed}"]
        run = [*overrides, f"name={root.name}", *_carried_out(plan, how)]
        try:
            there = _finished(run, folder)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            why = without_folders(str(error).replace(f"{folder} ", ""), folder)
            yield Outcome(folder.name, overrides, _refused(error), why=why)
            continue
        stopped = not there and deadline is not None and time.monotonic() >= deadline
        if not there and not stopped:
            each = (time.monotonic() - began) / made if made else 0
            togo = f", about {duration(each * (len(runs) - number + 1))} to go" if made else ""
            print(f"\nrun {number} of {len(runs)}: {' '.join(overrides)}{togo}", flush=True)
            stopped = _run(run, deadline)
            made += 1
        if not stopped or (folder / RESULT).exists():  # else it has not begun
            yield _outcome(folder, overrides, there, stopped)


def _run(overrides: list[str], deadline: float | None) -> bool:
    """One run in a process of its own, which saves and ends at the deadline; returns whether it was stopped so."""
    with subprocess.Popen([sys.executable, "-m", "cifarbn.train", *overrides]) as process:
        try:
            process.wait(max(0.0, deadline - time.monotonic()) if deadline else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            return True
        except BaseException:  # such as Ctrl-C, which the run has heard, too
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    return False


def _finished(overrides: list[str], folder: Path) -> bool:
    cfg = compose("train", overrides=overrides)
    if not cfg.resume:
        return False
    config = _container(cfg)
    run = Run.open(folder, config, overrides, sources(config), retry=cfg.retry, changed_code=cfg.changed_code)
    return run.finished


def _carried_out(plan: Planned, how: Sequence[str]) -> list[str]:
    """What says only how a run is carried out, as far as it concerns this one: not every data set has a folder."""
    said = [override for override in how if role_of(override) in (Role.EXECUTION, Role.PLACE)]
    group = plan.scaled.data
    return [o for o in said if not key_of(o).startswith("data.") or key_of(o).removeprefix("data.") in group]


def _refused(error: Exception) -> str:
    return "elsewhere" if isinstance(error, MadeElsewhere) else "refused"


def _outcome(folder: Path, overrides: list[str], found: bool, stopped: bool) -> Outcome:
    if not found and is_being_made(folder):
        return Outcome(folder.name, overrides, "elsewhere", why="another process is making it")
    try:
        result = read_result(folder)
    except UserError as error:
        return Outcome(folder.name, overrides, "failed", why=without_folders(str(error), folder))
    if result is None:
        return Outcome(folder.name, overrides, "failed", why="it ended before it began; see above")
    status: str = result["status"]
    why = result.get("error")
    if status == "running":
        status, why = ("interrupted", None) if stopped else ("failed", "its process was killed")
    accuracy, took = result.get("metrics", {}).get("test/acc"), result.get("seconds", {}).get("total")
    return Outcome(folder.name, overrides, status, accuracy=accuracy, seconds=took, why=why, found=found)


def _folder(plan: Planned, seed: int) -> str:
    """The run folder's name: that of the overrides as Hydra hands them on."""
    parsed = OverridesParser.create().parse_overrides([*plan.overrides, f"seed={seed}"])
    return folder_name([str(override.input_line) for override in parsed])


def _write_page(
    source: str,
    planned: Sequence[Planned],
    root: Path,
    scale: str,
    seeds: int,
    refused: Mapping[str, str],
    how: Sequence[str],
) -> Path:
    names = {plan.name for plan in planned}
    rows = [
        Row(
            plan.name,
            str(plan.written.source),
            plan.written.target if len(plan.name.split()) == 1 else None,
            base if (base := plan.base()) in names else None,
            plan.changes(),
            [_folder(plan, seed) for seed in range(seeds)],
        )
        for plan in planned
    ]
    sweep = gather(root)
    text = f"Scale {scale}. {SCALES[scale]}"
    opening = comparison(rows, sweep, text, comparable=scale in COMPARABLE, refused=refused)
    roots = [override.partition("=")[2].strip("\"'") for override in how if key_of(override) == "data.root"]
    options = Options(data_root=Path([data_root(), *roots][-1]).expanduser())
    out = default_folder(root)
    write_report(sweep, out, options, opening, [assumptions(source)])
    return out / "index.html"


def _container(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def seconds(text: str) -> float:
    """Seconds of a time such as 45s, 90m, 2h or 1h30m.

    Raises:
        UserError: where it is none.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not match or not text:
        raise UserError(f"--budget takes a time such as 45s, 90m, 2h or 1h30m, not {text!r}")
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + rest


if __name__ == "__main__":
    main()
