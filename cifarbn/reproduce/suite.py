"""`python -m cifarbn.reproduce SUITE`: run a publication's experiments within a time budget, then write its page."""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from cifarbn.cli.command_line import CONF, data_root, friendly_errors
from cifarbn.cli.outcomes import End, Outcome, conflict_outcome, is_failure, read_outcome, table
from cifarbn.errors import UserError
from cifarbn.formatting import duration
from cifarbn.report.assumptions import assumptions
from cifarbn.report.comparison import Row, comparison
from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.report.write import default_folder, write_report
from cifarbn.reproduce.parallel_runs import SideBySide, Slot, make_slots, parse_jobs, print_line
from cifarbn.reproduce.scales import COMPARABLE, SCALES, SUITES, Planned, container, suite
from cifarbn.runs.code_hash import sources
from cifarbn.runs.folder import Run, is_running
from cifarbn.runs.identity import Role, Tag, folder_name, key_of, keys_of_role, keys_with, role_of
from cifarbn.runs.schema import RESULT
from cifarbn.training.trainer import starts_processes

# What may be said of every run: whatever does not define the experiment, but what is chosen here already.
HOW = (Role.EXECUTION, Role.PLACE, Role.DEVICE, Role.WATCHING)
CHOSEN_HERE = keys_with(Tag.SUITE)


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
    parser.add_argument(
        "--jobs",
        default="1",
        metavar="N|auto",
        help="runs at a time, on one GPU, spread over several, or with the CPU cores divided; auto: as many as the "
        "machine has room for (default: 1)",
    )
    # `record` stands for all that is below it.
    keys = [key for key in keys_of_role(*HOW) if key not in CHOSEN_HERE and not key.startswith("record.")]
    parser.add_argument("how", nargs="*", metavar="KEY=VALUE", help=f"for every run: {', '.join(keys)}")
    chosen = parser.parse_intermixed_args(arguments)
    with friendly_errors():
        if strange := [said for said in chosen.how if role_of(said) not in HOW or key_of(said) in CHOSEN_HERE]:
            raise UserError(
                f"{strange[0]}: this would change the experiments, which are those of the source and the scale. Only "
                f"these can be said of every run: {', '.join(keys)}. `python -m cifarbn.train` changes anything"
            )
        if chosen.seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {chosen.seeds}")
        jobs = parse_jobs(chosen.jobs)
        deadline = time.monotonic() + seconds(chosen.budget) if chosen.budget else None
        # The runs that this process makes must not outlive it.
        earlier = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            sys.exit(reproduce(chosen.source, chosen.scale, chosen.seeds, deadline, chosen.how, jobs))
        finally:
            signal.signal(signal.SIGTERM, earlier)


def reproduce(
    source: str,
    scale: str,
    seeds: int,
    deadline: float | None = None,
    how: Sequence[str] = (),
    jobs: int | None = 1,
) -> int:
    """Make the runs, one process each, then the page. Returns the exit code.

    Args:
        source: a key of `SUITES`.
        scale: a key of `SCALES`.
        seeds: runs of each experiment.
        deadline: of time.monotonic(); then the runs save and end.
        how: overrides for every run that do not define the experiment.
        jobs: runs at a time; None for as many as the machine has room for.
    """
    root = Path("multirun_outputs") / f"{source}_{scale}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        planned = [Planned.of(name, scale, how) for name in suite(source, scale)]
        # Every experiment once before any a second time.
        runs = [(plan, seed) for seed in range(seeds) for plan in planned]
        outcomes = _make(runs, root, deadline, list(how), _slots(jobs, planned, len(runs)))
    print(f"\n{table(outcomes)}")
    if left := len(runs) - len(outcomes):
        print(f"\nthe time is up, {left} of {len(runs)} runs not begun; the same command goes on")
    refused = {outcome.run: str(outcome.reason) for outcome in outcomes if outcome.status is End.CONFLICT}
    if any(outcome.status not in (End.CONFLICT, End.LOCKED) for outcome in outcomes):
        print(f"\n{_write_page(source, planned, root, scale, seeds, refused, how)}")
    return 1 if is_failure(outcomes) else 0


def _make(
    runs: Sequence[tuple[Planned, int]], root: Path, deadline: float | None, how: list[str], slots: Sequence[Slot]
) -> list[Outcome]:
    """Make what is missing, one process a run, and return how each ended, in the order of `runs`.

    At the deadline the running ones save and end; those that have never begun are left out.
    """
    outcomes: dict[int, Outcome] = {}
    begun: list[int] = []
    folders = [root / _folder(plan, seed) for plan, seed in runs]
    experiments = [[*plan.overrides, f"seed={seed}"] for plan, seed in runs]
    # The bars of several runs would overwrite each other; what the user says comes later, and counts.
    quiet = ["trainer.enable_progress_bar=false"] if len(slots) > 1 else []
    with SideBySide(slots) as processes:
        for index, (plan, seed) in enumerate(runs):
            folder, overrides = folders[index], experiments[index]
            run = [*overrides, f"name={root.name}", *quiet, *_carried_out(plan, how)]
            try:
                there = _finished(run, folder)
            except (UserError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                outcomes[index] = conflict_outcome(folder, overrides, error)
                continue
            if there:
                outcomes[index] = _outcome(folder, overrides, ended_before=True, stopped=False)
            elif processes.wait_for_slot(deadline):
                left = processes.seconds_left(len(runs) - index)
                togo = "" if left is None else f", about {duration(left)} to go"
                print_line(f"\nrun {index + 1} of {len(runs)}: {' '.join(overrides)}{togo}")
                processes.start(index, _command(run), _label(plan, seed, runs))
                begun.append(index)
            elif (folder / RESULT).exists():
                outcomes[index] = _outcome(folder, overrides, ended_before=False, stopped=True)
        processes.wait_for_all(deadline)
    for index in begun:
        stopped = index in processes.stopped
        if not stopped or (folders[index] / RESULT).exists():  # else it was stopped before it had begun
            outcomes[index] = _outcome(folders[index], experiments[index], ended_before=False, stopped=stopped)
    return [outcomes[index] for index in sorted(outcomes)]


def _command(overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "cifarbn.train", *overrides]


def _label(plan: Planned, seed: int, runs: Sequence[tuple[Planned, int]]) -> str:
    """A few words that tell a run from the others: its experiment without the source, and its seed if they differ."""
    name = plan.name.partition("/")[2]
    return f"{name} seed={seed}" if any(other for _, other in runs) else name


def _slots(jobs: int | None, planned: Sequence[Planned], runs: int) -> list[Slot]:
    """Divide the machine between the runs.

    Raises:
        UserError: if several runs at a time are asked for and each would take several devices.
    """
    trainers = [plan.scaled.trainer for plan in planned]
    if jobs != 1 and any(starts_processes(trainer) or str(trainer.devices) != "1" for trainer in trainers):
        if jobs is None:
            return [{}]
        raise UserError(
            f"--jobs {jobs} makes several runs at a time, each on one device: leave out --jobs, or trainer.devices and "
            "trainer=ddp. CUDA_VISIBLE_DEVICES chooses among the GPUs"
        )
    slots = make_slots(jobs, runs, on_gpus=any(trainer.accelerator != "cpu" for trainer in trainers))
    if len(slots) > 1:
        gpus = len({slot.get("CUDA_VISIBLE_DEVICES") for slot in slots})
        threads = slots[0].get("OMP_NUM_THREADS") or os.environ["OMP_NUM_THREADS"]
        over = f" on {gpus} GPUs" if gpus > 1 else ""
        print_line(f"up to {len(slots)} runs at a time{over}, CPU threads of each: {threads}")
    return slots


def _finished(overrides: list[str], folder: Path) -> bool:
    cfg = compose("train", overrides=overrides)
    if not cfg.resume:
        return False
    config = container(cfg)
    run = Run.open(folder, config, overrides, sources(config), retry=cfg.retry, on_code_change=cfg.on_code_change)
    return run.finished


def _carried_out(plan: Planned, how: Sequence[str]) -> list[str]:
    """What says only how a run is carried out, as far as it concerns this one: not every data set has a folder."""
    said = [override for override in how if role_of(override) in (Role.EXECUTION, Role.PLACE)]
    group = plan.scaled.data
    return [o for o in said if not key_of(o).startswith("data.") or key_of(o).removeprefix("data.") in group]


def _outcome(folder: Path, overrides: list[str], ended_before: bool, stopped: bool) -> Outcome:
    if not ended_before and is_running(folder):
        return Outcome(folder.name, overrides, End.LOCKED, reason="another process is executing it")
    missing = "it ended before it began; see above"
    return read_outcome(folder, overrides, missing=missing, ended_before=ended_before, stopped=stopped)


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
