"""The command line `python -m cifarbn.reproduce SUITE`: run the experiments of a publication, then write a page."""

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cifarbn.cli.command_line import CONF, data_root, friendly_errors
from cifarbn.cli.composition import check_name
from cifarbn.cli.outcomes import End, Outcome, error_outcome, is_failure, read_outcome, table
from cifarbn.cli.parallel_runs import (
    RUN,
    ParallelProcesses,
    ended_run,
    exit_on_signals,
    print_line,
)
from cifarbn.cli.resolvers import run_folder
from cifarbn.cli.slots import Slot, make_slots, parse_jobs
from cifarbn.errors import UserError
from cifarbn.formatting import duration
from cifarbn.report.assumptions import assumptions
from cifarbn.report.comparison import Row, comparison
from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.report.write import default_folder, write_report
from cifarbn.reproduce.scales import COMPARABLE, SCALES, SUITES, Planned, experiments
from cifarbn.runs import old_names
from cifarbn.runs.folder import is_running
from cifarbn.runs.identity import Role, Tag, key_of, keys_of_role, keys_with, role_of
from cifarbn.runs.schema import RESULT
from cifarbn.terminal import outlive_reader
from cifarbn.training.trainer import starts_processes

# Overrides allowed for every run: those that do not define the experiment, except keys that this command sets.
ALLOWED = (Role.EXECUTION, Role.PLACE, Role.DEVICE, Role.WATCHING)
SET_HERE = keys_with(Tag.SUITE)
OUTPUTS = Path("multirun_outputs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiments of a suite and write its page.

    Args:
        arguments: of the command line; None for those of this process.
    """
    outlive_reader()
    parser = argparse.ArgumentParser(
        prog="python -m cifarbn.reproduce",
        description="Run the missing experiments of a publication, then write a page that compares published and "
        "measured accuracies. Rerun the same command to continue an interrupted one.",
        epilog="\n".join(f"{name}: {text}" for name, text in SCALES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=SUITES, type=modern_suite, help="the publication")
    parser.add_argument("--scale", choices=SCALES, default="laptop", help="size of the experiments (default: laptop)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run seeds 0 to N-1 of each (default: 1)")
    parser.add_argument("--name", help="folder under multirun_outputs/ for runs and page (default: SUITE_SCALE)")
    parser.add_argument("--budget", metavar="TIME", help="stop, save and write the page after 90m, 2h or 1h30m")
    parser.add_argument(
        "--jobs",
        default="1",
        metavar="N|auto",
        help="number of parallel runs, spread over the GPUs or the CPU cores; auto: as many as fit the machine "
        "(default: 1)",
    )
    # `record` includes every key below it.
    keys = [key for key in keys_of_role(*ALLOWED) if key not in SET_HERE and not key.startswith("record.")]
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"for every run: {', '.join(keys)}")
    args = parser.parse_intermixed_args(arguments)
    with friendly_errors():
        if "trainer=smoke" in args.overrides:
            raise UserError("trainer=smoke trains on four batches only; use --scale smoke instead")
        if named := [o.partition("=")[2] for o in args.overrides if key_of(o) == "name"]:
            raise UserError(f"cannot override name={named[0]} here; use --name {named[0]} instead")
        if bad := [o for o in args.overrides if role_of(o) not in ALLOWED or key_of(o) in SET_HERE]:
            raise UserError(
                f"cannot override {bad[0]} here; only {', '.join(keys)} are allowed. Use `python -m cifarbn.train` to "
                "change an experiment"
            )
        if args.seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {args.seeds}")
        if args.name is not None:
            check_name(args.name)
        jobs = parse_jobs(args.jobs)
        deadline = time.monotonic() + seconds(args.budget) if args.budget is not None else None
        with exit_on_signals():
            sys.exit(reproduce(args.suite, args.scale, args.seeds, deadline, args.overrides, jobs, args.name))


def reproduce(
    suite: str,
    scale: str,
    seeds: int,
    deadline: float | None = None,
    overrides: Sequence[str] = (),
    jobs: int | None = 1,
    name: str | None = None,
) -> int:
    """Execute the runs, one process each, then write the page. Return the exit code.

    Args:
        suite: a key of `SUITES`.
        scale: a key of `SCALES`.
        seeds: number of runs of each experiment.
        deadline: in the time of time.monotonic(); then the runs save and end.
        overrides: for every run, which do not define the experiment.
        jobs: number of parallel runs; None for as many as fit the machine.
        name: folder under multirun_outputs/; None for SUITE_SCALE.
    """
    root = OUTPUTS / (name or f"{suite}_{scale}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        planned = [Planned.of(name, scale, overrides) for name in experiments(suite, scale)]
        # Run every experiment once before any second seed.
        runs = [(plan, seed) for seed in range(seeds) for plan in planned]
        outcomes = _execute(
            runs, root, deadline, list(overrides), _slots(jobs, [plan.scaled.trainer for plan, _ in runs])
        )
    print(f"\n{table(outcomes)}")
    if left := len(runs) - len(outcomes):
        print(f"\ntime budget exhausted, {left} of {len(runs)} runs not started; rerun the command to continue")
    conflicts = {outcome.run: str(outcome.reason) for outcome in outcomes if outcome.status is End.CONFLICT}
    if any(outcome.status not in (End.CONFLICT, End.LOCKED) for outcome in outcomes):
        print(f"\n{_write_page(suite, planned, root, scale, seeds, conflicts, overrides)}")
    return 1 if is_failure(outcomes) else 0


def _quoted(name: str) -> str:
    """Return a name as a string of Hydra's syntax, in which 2026_11_27 without quotes is a number."""
    escaped = name.replace('"', '\\"')
    return f'"{escaped}"'


def _execute(
    runs: Sequence[tuple[Planned, int]], root: Path, deadline: float | None, options: list[str], slots: Sequence[Slot]
) -> list[Outcome]:
    """Execute the missing runs, one process each, and return the outcome of each run, in the order of `runs`.

    At the deadline running processes save and end; runs that were never started have no outcome.
    """
    outcomes: dict[int, Outcome] = {}
    started: list[int] = []
    folders = [root / _folder(plan, seed) for plan, seed in runs]
    command_lines = [[*plan.overrides, f"seed={seed}"] for plan, seed in runs]
    # Progress bars of parallel runs would overwrite each other. The user's own override comes later and wins.
    quiet = ["trainer.enable_progress_bar=false"] if len(slots) > 1 else []
    arguments = [
        [*overrides, f"name={_quoted(str(root.relative_to(OUTPUTS)))}", *quiet, *_execution_options(plan, options)]
        for overrides, (plan, _) in zip(command_lines, runs, strict=True)
    ]
    configs = [compose("train", overrides=each) for each in arguments]  # a wrong option ends this before the first run
    processes = ParallelProcesses(slots)

    def all_outcomes() -> list[Outcome]:
        for index in started:
            stopped = index in processes.stopped
            if not stopped or (folders[index] / RESULT).exists():  # otherwise it was stopped before training started
                outcomes[index] = _outcome(folders[index], command_lines[index], ended_before=False, stopped=stopped)
        return [outcomes[index] for index in sorted(outcomes)]

    try:
        with processes:
            for index, (plan, seed) in enumerate(runs):
                folder, overrides = folders[index], command_lines[index]
                try:
                    ended = ended_run(folder, configs[index], arguments[index])
                except (UserError, OSError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    outcomes[index] = error_outcome(folder, overrides, error)
                    continue
                if ended:
                    outcomes[index] = _outcome(folder, overrides, ended_before=True, stopped=False)
                elif processes.wait_for_slot(deadline):
                    left = processes.seconds_left(len(runs) - index)
                    remaining = "" if left is None else f", about {duration(left)} remaining"
                    print_line(f"\nrun {index + 1} of {len(runs)}: {' '.join(overrides)}{remaining}")
                    processes.start(index, _command(arguments[index]), _label(plan, seed, runs))
                    started.append(index)
                elif (folder / RESULT).exists():
                    outcomes[index] = _outcome(folder, overrides, ended_before=False, stopped=True)
            processes.wait_for_all(deadline)
    except BaseException:  # Ctrl-C or a signal, after the runs have saved
        ended_so_far = all_outcomes()
        print(f"\n{table(ended_so_far)}\n\n{len(runs) - len(ended_so_far)} of {len(runs)} runs not started")
        raise
    return all_outcomes()


def _command(overrides: Sequence[str]) -> list[str]:
    return [*RUN, *overrides]


def _label(plan: Planned, seed: int, runs: Sequence[tuple[Planned, int]]) -> str:
    """Return a short label of a run: its experiment without the suite, and its seed if there are several."""
    name = plan.name.partition("/")[2]
    return f"{name} seed={seed}" if any(other for _, other in runs) else name


def _slots(jobs: int | None, trainers: Sequence[DictConfig]) -> list[Slot]:
    """Divide the machine between the runs.

    Raises:
        UserError: if parallel runs are requested and each would use several devices.
    """
    if jobs != 1 and any(starts_processes(trainer) or str(trainer.devices) != "1" for trainer in trainers):
        if jobs is None:
            return [{}]
        raise UserError(
            f"--jobs {jobs} starts parallel runs on one device each, which excludes trainer=ddp and trainer.devices; "
            "remove either. CUDA_VISIBLE_DEVICES selects the GPUs"
        )
    slots = make_slots(jobs, [trainer.accelerator for trainer in trainers])
    if len(slots) > 1:
        gpus = len({slot.get("CUDA_VISIBLE_DEVICES") for slot in slots})
        threads = slots[0].get("OMP_NUM_THREADS") or os.environ["OMP_NUM_THREADS"]
        over = f" on {gpus} GPUs" if gpus > 1 else ""
        print_line(f"up to {len(slots)} parallel runs{over}, {threads} CPU threads each")
    return slots


def _execution_options(plan: Planned, options: Sequence[str]) -> list[str]:
    """Return the execution options that apply to this run; for example, not every data set has a folder."""
    execution = [override for override in options if role_of(override) in (Role.EXECUTION, Role.PLACE)]
    group = plan.scaled.data
    return [o for o in execution if not key_of(o).startswith("data.") or key_of(o).removeprefix("data.") in group]


def _outcome(folder: Path, overrides: list[str], ended_before: bool, stopped: bool) -> Outcome:
    if not ended_before and is_running(folder):
        return Outcome(folder.name, overrides, End.LOCKED, reason="another process is executing it")
    missing = "it ended before training started; see the messages above"
    return read_outcome(folder, overrides, missing=missing, ended_before=ended_before, stopped=stopped)


def _folder(plan: Planned, seed: int) -> str:
    """Return the name of the run folder."""
    return run_folder([*plan.overrides, f"seed={seed}"])


def _write_page(
    suite: str,
    planned: Sequence[Planned],
    root: Path,
    scale: str,
    seeds: int,
    conflicts: Mapping[str, str],
    overrides: Sequence[str],
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
    lead = comparison(rows, sweep, text, comparable=scale in COMPARABLE, conflicts=conflicts)
    roots = [override.partition("=")[2].strip("\"'") for override in overrides if key_of(override) == "data.root"]
    options = Options(data_root=Path([data_root(), *roots][-1]).expanduser())
    out = default_folder(root)
    write_report(sweep, out, options, lead, [assumptions(suite)])
    return out / "index.html"


def modern_suite(name: str) -> str:
    """Return today's name of a suite; an old name is accepted with a notice."""
    if name not in old_names.SUITES:
        return name
    print(f"note: {name} is now called {old_names.SUITES[name]}", file=sys.stderr)
    return old_names.SUITES[name]


def seconds(text: str) -> float:
    """Convert a time such as 45s, 90m, 2h or 1h30m to seconds.

    Raises:
        UserError: if the text has another form.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not match or not text:
        raise UserError(f"--budget takes a time such as 45s, 90m, 2h or 1h30m, not {text!r}")
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + rest


if __name__ == "__main__":
    main()
