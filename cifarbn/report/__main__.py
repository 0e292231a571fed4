"""The command line: `python -m cifarbn.report DIR ...`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cifarbn.cli.command_line import data_root, friendly_errors
from cifarbn.errors import UserError
from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.report.trained_model import look_inside
from cifarbn.report.write import default_folder, write_report
from cifarbn.runs.load import check_prefixes


def main(arguments: Sequence[str] | None = None) -> None:
    """Gather the runs under some folders and write their report."""
    parser = argparse.ArgumentParser(
        prog="python -m cifarbn.report", description="Tables, figures and one page from the run folders under each DIR."
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a sweep's folder, a run's, or multirun_outputs/ itself; of several, all runs are put into one report",
    )
    parser.add_argument("--out", type=Path, help="where the report goes (default: report/ in the first DIR)")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="build the runs' models and data from this package of your own as well; may be given several times",
    )
    parser.add_argument(
        "--picture", help="whose feature maps to draw: a class, or a test picture's number (default: ship)"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path(data_root()),
        help="the folder that holds cifar-10-batches-py (default: the environment variable CIFARBN_DATA, else ./data)",
    )
    parser.add_argument(
        "--nets", type=int, default=4, help="of how many groups, from the best, to look into the net (default: 4)"
    )
    chosen = parser.parse_intermixed_args(arguments)
    with friendly_errors():
        for folder in chosen.folders:
            if not folder.is_dir():
                raise UserError(f"there is no folder {folder}; `python -m cifarbn.train` makes multirun_outputs/")
        if chosen.nets < 0:
            raise UserError(f"--nets must be at least 0, not {chosen.nets}")
        options = Options(chosen.picture, chosen.data_root, chosen.nets, check_prefixes(chosen.trust))
        out = chosen.out or default_folder(chosen.folders[0])
        sweep = gather(*chosen.folders)
        write_report(sweep, out, options)
        for run, _, reason in sweep.excluded:
            print(f"left out: {run}: {reason}")
        for run, _, reason in sweep.read_in_part:
            print(f"read in part: {run}: {reason}")
        # Not on the page: it says where things are on this machine.
        for exclusion_reason in dict.fromkeys(
            inside.exclusion_reason for inside in look_inside(sweep, options) if inside.exclusion_reason
        ):
            print(f"no look into the net: {exclusion_reason}")
        print(out / "index.html")


if __name__ == "__main__":
    main()
