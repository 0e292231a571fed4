"""The command line of the benchmarks."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cifarbn import benchmark
from cifarbn.benchmark.checks import measure_checks
from cifarbn.benchmark.gpu import PARTS, measure_gpu
from cifarbn.benchmark.harness import as_text, write_json
from cifarbn.benchmark.kernels import measure_kernels
from cifarbn.benchmark.kills import measure_kills
from cifarbn.benchmark.loader import measure_passes
from cifarbn.benchmark.loop import measure_loop
from cifarbn.benchmark.probe import measure_probe
from cifarbn.benchmark.speedrun import COMPILE_MODES, measure_speedrun
from cifarbn.benchmark.step import MODELS, measure_step
from cifarbn.benchmark.sweep import measure_sweep
from cifarbn.benchmark.threads import measure_threads
from cifarbn.cli.command_line import data_root, friendly_errors
from cifarbn.errors import UserError
from cifarbn.fast.hardware import Hardware
from cifarbn.runs.provenance import environment
from cifarbn.terminal import outlive_reader


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark, print its table, and write it as JSON if requested."""
    outlive_reader()
    parser = argparse.ArgumentParser(prog="python -m cifarbn.benchmark", description=str(benchmark.__doc__))
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    common = argparse.ArgumentParser(add_help=False, parents=[output])
    common.add_argument("--rounds", type=_positive, default=5, help="runs of each side, in turn (default 5)")
    common.add_argument("--batch-size", type=_positive, default=128)
    images = argparse.ArgumentParser(add_help=False)
    images.add_argument("--root", default=data_root(), help="folder that contains CIFAR-10")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", choices=MODELS, default="resnet18")
    model.add_argument("--steps", type=_positive, default=8, help="training steps of a side in a round (default 8)")
    parts = parser.add_subparsers(metavar="PART", required=True)

    data = parts.add_parser("data", parents=[common, images], help="the data loader against torchvision's transforms")
    data.add_argument("--images", type=_positive, default=50_000, help="images in a pass (default 50000)")
    data.set_defaults(measure=measure_passes)

    step = parts.add_parser("step", parents=[common, model], help="a training step in each mode, against peak FLOP/s")
    step.add_argument("--compile", action="store_true", help="also measure compiled modes; compiling takes a minute")
    step.set_defaults(measure=measure_step)

    kernels = parts.add_parser(
        "kernels", parents=[common, model], help="a step with the faster layers for CPUs and without"
    )
    kernels.set_defaults(measure=measure_kernels)

    loop = parts.add_parser("loop", parents=[common, images, model], help="cifarbn.train, a bare loop, the usual way")
    loop.add_argument("--compile", action="store_true", help="compile the model in cifarbn.train and the bare loop")
    loop.add_argument("--without-usual", action="store_true", help="leave out the usual way, which is slow on a GPU")
    loop.set_defaults(measure=measure_loop)

    probe = parts.add_parser("probe", parents=[common, model], help="the cost of each recorder")
    probe.set_defaults(measure=measure_probe)

    threads = parts.add_parser(
        "threads", parents=[common, model], help="trainer.threads=auto against fixed numbers, on idle and busy cores"
    )
    threads.set_defaults(measure=measure_threads)

    sweep = parts.add_parser("sweep", parents=[common], help="runs of a sweep in parallel against one after another")
    sweep.add_argument("--runs", type=_positive, default=4, help="runs of the sweep (default 4)")
    sweep.add_argument("--images", type=_positive, default=5000, help="training images of a run (default 5000)")
    sweep.add_argument("--width", type=_positive, default=16, help="width of the model (default 16)")
    sweep.set_defaults(measure=measure_sweep)

    speedrun = parts.add_parser(
        "speedrun", parents=[output, images], help="seconds and accuracy of a speedrun, and of airbench94_muon.py"
    )
    switch = argparse.BooleanOptionalAction
    speedrun.add_argument("--runs", type=_positive, default=5, help="timed runs of each side, after a warm-up run")
    speedrun.add_argument("--full", action=switch, default=True, help="measure cifarbn.train as well (default)")
    speedrun.add_argument("--peer", type=Path, metavar="FILE", help="a copy of airbench94_muon.py to measure as well")
    speedrun.add_argument("--peer-minutes", type=float, default=5.0, help="time limit of the peer (default 5)")
    speedrun.add_argument("--compile", action=switch, help="use torch.compile, not in the peer (default: on a GPU)")
    speedrun.add_argument("--compile-mode", choices=COMPILE_MODES, default="default", help="mode of torch.compile")
    speedrun.add_argument("--graph", action=switch, help="the bare loop's step as a CUDA graph (default: on a GPU)")
    speedrun.add_argument("--images", type=_positive, default=50_000, help="training images, five for each test image")
    speedrun.add_argument("--epochs", type=_positive, help="default: that of the experiment")
    speedrun.add_argument("--batch-size", type=_positive, help="default: that of the experiment")
    speedrun.add_argument("--width-scale", type=float, default=1.0, help="multiplies the model's widths (default 1)")
    speedrun.set_defaults(measure=measure_speedrun)

    kills = parts.add_parser("kills", parents=[output], help="time to N steps of a run that is killed every T seconds")
    kills.add_argument("--rounds", type=_positive, default=3, help="runs of each side, in turn (default 3)")
    kills.add_argument("--steps", type=_positive, default=300, help="training steps of the run (default 300)")
    kills.add_argument("--every", type=float, default=30.0, metavar="T", help="seconds between kills (default 30)")
    kills.add_argument("--checkpoint", type=float, default=5.0, help="seconds between checkpoints (default 5)")
    kills.add_argument("--width", type=_positive, default=16, help="width of the ResNet-18 (default 16)")
    kills.add_argument("--batch-size", type=_positive, default=128)
    kills.set_defaults(measure=measure_kills)

    checks = parts.add_parser("checks", parents=[output], help="correctness checks on a GPU, with small runs")
    checks.add_argument("--seconds", type=float, default=600.0, help="start no check after this time (default 600)")
    checks.set_defaults(measure=measure_checks)

    gpu = parts.add_parser("gpu", parents=[output, images], help="all checks and measurements of a GPU")
    gpu.add_argument("--minutes", type=float, default=8.0, help="time limit in total (default 8)")
    gpu.add_argument("--only", nargs="+", choices=PARTS, help="run only these parts")
    gpu.add_argument("--peer", type=Path, metavar="FILE", help="a copy of airbench94_muon.py, for the speedrun")
    gpu.set_defaults(measure=measure_gpu)

    args = parser.parse_args(arguments)
    with friendly_errors(resumable=False):
        if args.json and (args.json.is_dir() or not os.access(args.json.absolute().parent, os.W_OK)):
            raise UserError(f"--json {args.json}: no file can be written there; create its folder, or use another")
        results = args.measure(args) | {"device": Hardware.choose().device} | environment()
        print(as_text(results))
        if args.json:
            write_json(args.json, results)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    main()
