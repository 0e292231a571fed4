"""What captions of figures of families say alike: the data, how many runs are drawn, and what a band shows."""

from collections.abc import Iterable, Mapping, Sequence

from cifarbn.report.captions import count
from cifarbn.report.families import Family
from cifarbn.runs.measures import Curve

SCALE = (
    "A weight before batch normalisation times c leaves the loss alone and divides the curvature by c²: raw beta is "
    "not invariant to reparametrisation, so compare it between nets together with the scale-invariant beta (each "
    "weight walked alone by shares of its own norm; the median over weights)."
)
SEEDS = "Filled: between the median edges over the seeds; paler: what any seed reaches."
SEED_LINES = "Lines: the median over the seeds; paler: what any seed reaches."


def ending(families: list[Family], drawn: Mapping[str, str]) -> str:
    """Return the end of every caption: the data, and how many runs of each family are drawn."""
    shown = [family for family in families if family.label in drawn]
    counts = "; ".join(f"{label}: {number}" for label, number in drawn.items())
    return data_of(shown).replace(" Nothing", f" {counts}. Nothing")


def data_of(families: list[Family]) -> str:
    """Return which data the families were trained on, and in which batches."""
    run = families[0].each()[0][1]
    data = run.result.get("data", {})
    batches = dict.fromkeys(
        str(run.config.get("data", {}).get("batch_size", "full")) for family in families for _, run in family.each()
    )
    size = f", {data['train_size']:,} training pictures" if "train_size" in data else ""
    return f"Data: {run.data}{size}, batch {' or '.join(batches)}. Nothing is smoothed."


def runs_at(by_rate: Mapping[str, int]) -> str:
    """Return such as: n = 1 run at each of lr 0.001, 0.002 and n = 3 runs at lr 0.004."""
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
