"""Draw measures of recorded runs against the step: one panel per measure, one color per model.

    python examples/plot_measures.py multirun_outputs/layers.record "covariate shift" "activation std change"

A line is the median over seeds; the paler area is the range over seeds. `python -m cifarbn.report` draws most measures
in figures of their own. Use this script to put some of them in one figure, or as the start of a figure of your own.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from cifarbn.report.families import find_families
from cifarbn.report.gather import gather
from cifarbn.runs.measures import MEASURES, curves
from cifarbn.smoothness.bands import over_seeds

BY_NAME = {measure.name: measure for measure in MEASURES}


def main() -> None:
    """Read the run folders, compute the measures and save one figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder of runs")
    parser.add_argument("measures", nargs="+", choices=list(BY_NAME), metavar="MEASURE", help=", ".join(BY_NAME))
    parser.add_argument("--lr", help="draw the runs with this learning rate; the default is the first one found")
    parser.add_argument("--out", type=Path, default=Path("measures.png"), help="PNG, PDF or SVG file")
    args = parser.parse_args()

    families = [family for family in find_families(gather(args.folder)) if family.runs]
    rates = list(dict.fromkeys(rate for family in families for rate in family.runs))
    rate = rates[0] if args.lr is None else args.lr
    if rate not in rates:
        parser.error(f"no run has the learning rate {rate}; use one of {', '.join(rates)}")

    figure = Figure(figsize=(6, 0.8 + 2 * len(args.measures)), layout="constrained")
    panels = figure.subplots(len(args.measures), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, args.measures, strict=True):
        for family in families:
            recorded = [curves(run.recordings).get(name) for run in family.runs.get(rate, [])]
            lines = [(steps, values, values) for steps, values in filter(None, recorded)]
            if lines:
                seeds = over_seeds(lines)
                axes.plot(seeds.steps, seeds.low, label=f"{family.label} (n = {seeds.seeds})")
                axes.fill_between(seeds.steps, seeds.lowest, seeds.highest, alpha=0.2)
        if not axes.lines:
            parser.error(f"no run in {args.folder} with learning rate {rate} has recorded {name!r}")
        axes.set_title(f"{name}, lr {rate}", loc="left", fontweight="bold")
        axes.set(ylabel=BY_NAME[name].unit, yscale="log")
        axes.grid(alpha=0.3)
    panels[-1].set(xlabel="step")
    panels[0].legend()
    figure.savefig(args.out, dpi=130)
    print(args.out)


if __name__ == "__main__":
    main()
