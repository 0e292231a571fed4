"""TensorBoard with short run names: `python -m cifarbn.tensorboard multirun_outputs/train`.

TensorBoard shows the names of run folders, which list all overrides of a run. Here, a name consists of the overrides in
which the runs differ. The names are links in a temporary folder, which is updated while new runs start.
"""

import argparse
import os
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard import program

from cifarbn.cli.command_line import friendly_errors
from cifarbn.errors import UserError
from cifarbn.runs.folder import find_runs
from cifarbn.runs.identity import folder_name
from cifarbn.runs.result_file import read_result
from cifarbn.terminal import outlive_reader

SECONDS_BETWEEN_UPDATES = 10


def run_names(overrides: Mapping[Path, Sequence[str]]) -> dict[Path, str]:
    """Return a name for each run folder: the overrides that differ within its sweep, and the sweep if several.

    Runs with `data=shapes optim.lr=1e-3` and `data=shapes optim.lr=2e-3` are called `optim.lr=1e-3`, `optim.lr=2e-3`.
    """
    sweeps: dict[Path, list[Path]] = defaultdict(list)
    for folder in overrides:
        sweeps[folder.parent].append(folder)
    names = {}
    for sweep, folders in sweeps.items():
        in_all = set.intersection(*(set(overrides[folder]) for folder in folders))
        for folder in folders:
            own = [override for override in overrides[folder] if override not in in_all]
            names[folder] = (folder_name(own) if own else folder.name) + (f" ({sweep.name})" if len(sweeps) > 1 else "")
    counts: Counter[str] = Counter()
    for folder, name in names.items():
        counts[name] += 1
        if counts[name] > 1:
            names[folder] = f"{name} ({counts[name]})"
    return names


def link_runs(roots: Sequence[Path], links: Path) -> None:
    """Update the folder `links` so that it holds one link per run under the roots, named after the run."""
    overrides = {}
    for folder in (folder for root in roots for folder in find_runs(root)):
        try:
            overrides[folder] = (read_result(folder) or {}).get("overrides", [])
        except UserError:  # the run gets the name of its folder
            overrides[folder] = []
    wanted = {name: str(folder.absolute()) for folder, name in run_names(overrides).items()}
    existing = {link.name: os.readlink(link) for link in links.iterdir()}
    for name in existing.keys() - wanted.keys():
        (links / name).unlink()
    for name in wanted.keys() - existing.keys():
        (links / name).symlink_to(wanted[name])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    outlive_reader()
    parser = argparse.ArgumentParser(
        prog="python -m cifarbn.tensorboard",
        description="TensorBoard with short run names.",
        epilog="TensorBoard's own options follow the folders: multirun_outputs/train --port 6007",
        allow_abbrev=False,
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders of runs, such as multirun_outputs/train")
    args, rest = parser.parse_known_args(arguments)
    with friendly_errors(resumable=False), tempfile.TemporaryDirectory(prefix="cifarbn-tensorboard-") as links:
        for folder in args.folders:
            if not folder.is_dir():
                order = "; TensorBoard's own options follow the folders" if rest else ""
                raise UserError(
                    f"{folder} is not a folder; use one that contains runs, such as multirun_outputs/train{order}"
                )
        stopped = threading.Event()

        def keep_updated() -> None:
            while not stopped.wait(SECONDS_BETWEEN_UPDATES):
                link_runs(args.folders, Path(links))

        link_runs(args.folders, Path(links))
        threading.Thread(target=keep_updated, daemon=True).start()
        server = program.TensorBoard()
        server.configure(argv=["tensorboard", "--logdir", links, *rest])
        try:
            server.main()
        finally:
            stopped.set()


if __name__ == "__main__":
    main()
