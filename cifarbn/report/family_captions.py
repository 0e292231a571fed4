"""Phrases shared by captions of families: the data, the number of runs, and the meaning of a band."""

from collections.abc import Iterable, Mapping, Sequence

from cifarbn.report.captions import count
from cifarbn.report.families import Family
from cifarbn.runs.measures import Curve

SCALE = (
    "Multiplying a weight that precedes batch normalisation by c leaves the loss unchanged and divides the curvature "
    "by c²: beta is not invariant to reparametrisation, so compare models also by the scale-invariant beta (each "
    "weight perturbed alone, relative to its own norm; the median over weights)."
)
SEEDS = "Each band spans the median edges over the seeds; the pale band spans all seeds."
SEED_LINES = "Each line is the median over the seeds; the pale band spans all seeds."


def ending(families: list[Family], drawn: Mapping[str, str]) -> str:
    """Return the end of every caption: the data, and how many runs of each family are drawn."""
    families = [family for family in families if family.label in drawn]
    counts = "; ".join(f"{label}: {number}" for label, number in drawn.items())
    return data_of(families).replace(" Nothing", f" {counts}. Nothing")


def data_of(families: list[Family]) -> str:
    """Return which data the families were trained on, and in which batches."""
    run = families[0].each()[0][1]
    data = run.result.get("data", {})
    batches = dict.fromkeys(
        str(run.config.get("data", {}).get("batch_size", "full")) for family in families for _, run in family.each()
    )
    size = f", {data['train_size']:,} training images" if "train_size" in data else ""
    return f"Data: {run.data}{size}, batch size {' or '.join(batches)}. Nothing is smoothed."


def runs_at(by_rate: Mapping[str, int]) -> str:
    """Return for example: n = 1 run at each of lr 0.001, 0.002 and n = 3 runs at lr 0.004."""
    parts = []
    for n in dict.fromkeys(by_rate.values()):
        rates = [rate for rate, runs in by_rate.items() if runs == n]
        each = "each of " if len(rates) > 1 else ""
        parts.append(f"n = {count(n, 'run')} at {each}lr {', '.join(rates)}")
    return " and ".join(parts)


def runs_of(by_rate: Mapping[str, Sequence[Curve]]) -> str:
    """Return the same, given the curves at each rate."""
    return runs_at({rate: len(runs) for rate, runs in by_rate.items()})


def span(numbers: Iterable[int], noun: str) -> str:
    """Return the range of some numbers: "15 probes", "14 to 15 probes"."""
    ordered = sorted(set(numbers))
    return count(ordered[0], noun) if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]} {noun}s"
