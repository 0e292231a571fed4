"""TensorBoard with short run names: `python -m cifarbn.tensorboard multirun_outputs/train`.

TensorBoard names a run by its folder, which begins with whatever comes first in the alphabet. Here a name is what sets
the run apart from the others. The names are links in a temporary folder, and runs that begin meanwhile get theirs.
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

SECONDS_BETWEEN_LOOKS = 10


def run_names(overrides: Mapping[Path, Sequence[str]]) -> dict[Path, str]:
    """The name of each run folder: the overrides that not all runs beside it have, and its sweep if there are several.

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
    """Make `links` hold a link for each run under the roots, by its name, and nothing else."""
    overrides = {}
    for folder in (folder for root in roots for folder in find_runs(root)):
        try:
            overrides[folder] = (read_result(folder) or {}).get("overrides", [])
        except UserError:  # a run that cannot be read has a name all the same
            overrides[folder] = []
    wanted = {name: str(folder.absolute()) for folder, name in run_names(overrides).items()}
    there = {link.name: os.readlink(link) for link in links.iterdir()}
    for name in there.keys() - wanted.keys():
        (links / name).unlink()
    for name in wanted.keys() - there.keys():
        (links / name).symlink_to(wanted[name])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cifarbn.tensorboard", description="TensorBoard with short run names.", allow_abbrev=False
    )
    parser.add_argument("folders", type=Path, nargs="+", help="folders of runs, such as multirun_outputs/train")
    options, rest = parser.parse_known_args(arguments)
    with friendly_errors(), tempfile.TemporaryDirectory(prefix="cifarbn-tensorboard-") as links:
        for folder in options.folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is not a folder; name one that holds runs, such as multirun_outputs/train")
        stopped = threading.Event()

        def keep_up() -> None:
            while not stopped.wait(SECONDS_BETWEEN_LOOKS):
                link_runs(options.folders, Path(links))

        link_runs(options.folders, Path(links))
        threading.Thread(target=keep_up, daemon=True).start()
        server = program.TensorBoard()
        server.configure(argv=["tensorboard", "--logdir", links, *rest])
        try:
            server.main()
        finally:
            stopped.set()


if __name__ == "__main__":
    main()
