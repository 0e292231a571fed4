"""The command line: `python -m cifarbn.report DIR ...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cifarbn.cli.command_line import data_root, friendly_errors
from cifarbn.errors import UserError
from cifarbn.figures import STYLES
from cifarbn.report.gather import gather
from cifarbn.report.section import FORMATS, Options
from cifarbn.report.trained_model import best_models
from cifarbn.report.write import default_folder, write_report
from cifarbn.runs.load import check_prefixes
from cifarbn.terminal import outlive_reader

OLD_OPTIONS = {"--picture": "--image", "--nets": "--models"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Gather the runs under some folders and write their report.

    Args:
        arguments: of the command line; None for those of this process.
    """
    outlive_reader()
    parser = argparse.ArgumentParser(
        prog="python -m cifarbn.report",
        description="Write tables, figures and an HTML page about all runs under each DIR.",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folder of a run or a sweep, or multirun_outputs/ itself; several folders share one report",
    )
    parser.add_argument("--out", type=Path, help="output folder (default: report/ in the first DIR)")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="also instantiate classes of this package, such as your own models; may be given several times",
    )
    parser.add_argument(
        "--image", help="test image for the feature maps: a class name or an index (default: the first ship)"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path(data_root()),
        help="folder of the data set, as in data.root=DIR, for images and feature maps (default: the environment "
        "variable CIFARBN_DATA, else ./data)",
    )
    parser.add_argument(
        "--models",
        type=int,
        default=4,
        metavar="N",
        help="draw feature maps, filters, mistakes and structure of the N best groups (default: 4)",
    )
    parser.add_argument(
        "--format",
        default="png,pdf",
        metavar="KINDS",
        help=f"file formats of the figures: a list of {', '.join(FORMATS)}; PNG is always written (default: png,pdf)",
    )
    parser.add_argument(
        "--style",
        choices=STYLES,
        default="page",
        help="paper: 8 pt serif fonts, column width, 300 dpi; slides: 18 pt fonts, bold lines (default: page)",
    )
    parser.add_argument(
        "--x", metavar="KEY", help="add a figure of the test accuracy against this config key, such as lr"
    )
    parser.add_argument("--group", metavar="KEY", help="with --x: draw one line for each value of KEY, such as model")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="with --x: draw this metric, such as val/acc, or smoothness measure (default: test/acc)",
    )
    args = parser.parse_intermixed_args(modern(sys.argv[1:] if arguments is None else arguments))
    with friendly_errors(resumable=False):
        for folder in args.folders:
            if not folder.is_dir():
                raise UserError(f"there is no folder {folder}; `python -m cifarbn.train` creates multirun_outputs/")
        if args.models < 0:
            raise UserError(f"--models must be at least 0, not {args.models}")
        if args.x is None and (args.group, args.metric) != (None, None):
            raise UserError("--group and --metric need --x, the config key on the horizontal axis, such as --x lr")
        formats = tuple(dict.fromkeys(args.format.lower().split(",")))
        if unknown := [kind for kind in formats if kind not in FORMATS]:
            raise UserError(f"--format {args.format}: {unknown[0]!r} is not one of {', '.join(FORMATS)}")
        options = Options(
            args.image,
            args.data_root,
            args.models,
            check_prefixes(args.trust),
            style=args.style,
            formats=formats,
            x=args.x,
            group=args.group,
            metric=Options.metric if args.metric is None else args.metric,
        )
        out = args.out or default_folder(args.folders[0])
        runs = gather(*args.folders)
        write_report(runs, out, options)
        for run, _, reason in runs.excluded:
            print(f"excluded: {run}: {reason}")
        for run, _, reason in runs.read_in_part:
            print(f"partly read: {run}: {reason}")
        # Printed but not on the page, because these messages contain paths of this machine.
        for reason in dict.fromkeys(model.exclusion_reason for model in best_models(runs, options)):
            if reason:
                print(f"no feature maps, filters and mistakes: {reason}")
        print(out / "index.html")


def modern(arguments: Sequence[str]) -> list[str]:
    """Replace the old spelling of options, with a notice on standard error."""
    renamed = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in OLD_OPTIONS:
            print(f"note: {option} is now called {OLD_OPTIONS[option]}", file=sys.stderr)
            argument = OLD_OPTIONS[option] + equals + value
        renamed.append(argument)
    return renamed


if __name__ == "__main__":
    main()
