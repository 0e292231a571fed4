"""The command line of the benchmarks."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cifarbn import benchmark
from cifarbn.benchmark.loop import measure_loop
from cifarbn.benchmark.passes import measure_passes
from cifarbn.benchmark.probe import measure_probe
from cifarbn.benchmark.sides import as_text
from cifarbn.benchmark.step import NETS, measure_step
from cifarbn.command_line import data_root, finish_imports
from cifarbn.errors import UserError
from cifarbn.hardware import Hardware
from cifarbn.runs import surroundings


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one part, print the table, and write it as JSON where asked."""
    finish_imports()
    parser = argparse.ArgumentParser(prog="python -m cifarbn.benchmark", description=str(benchmark.__doc__))
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--rounds", type=_positive, default=5, help="how often each side runs, in turn (default 5)")
    common.add_argument("--batch-size", type=_positive, default=128)
    common.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    pictures = argparse.ArgumentParser(add_help=False)
    pictures.add_argument("--root", default=data_root(), help="where CIFAR-10 is")
    net = argparse.ArgumentParser(add_help=False)
    net.add_argument("--net", choices=NETS, default="resnet18")
    net.add_argument("--steps", type=_positive, default=8, help="training steps of a side in a round (default 8)")
    parts = parser.add_subparsers(metavar="PART", required=True)

    data = parts.add_parser("data", parents=[common, pictures], help="the loader against torchvision's transforms")
    data.add_argument("--pictures", type=_positive, default=50_000, help="pictures in a pass (default 50000)")
    data.set_defaults(measure=measure_passes)

    step = parts.add_parser("step", parents=[common, net], help="a training step in each mode, against the peak")
    step.add_argument("--compile", action="store_true", help="the compiled modes as well; compiling takes a minute")
    step.set_defaults(measure=measure_step)

    loop = parts.add_parser("loop", parents=[common, pictures, net], help="our loop, a bare loop, and the usual way")
    loop.add_argument("--compile", action="store_true", help="compile the net of ours and of the bare loop")
    loop.set_defaults(measure=measure_loop)

    probe = parts.add_parser("probe", parents=[common, net], help="what each recorder costs")
    probe.set_defaults(measure=measure_probe)

    chosen = parser.parse_args(arguments)
    try:
        report = chosen.measure(chosen) | {"device": Hardware.choose().device} | surroundings()
        print(as_text(report))
        if chosen.json:
            chosen.json.write_text(json.dumps(report, indent=1) + "\n")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    main()
