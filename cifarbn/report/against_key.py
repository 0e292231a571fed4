"""A figure on request: a metric against a config key, with one line for each value of another key."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np

from cifarbn import figures
from cifarbn.errors import UserError
from cifarbn.report.captions import accuracy
from cifarbn.report.gather import RunRecord, RunSet
from cifarbn.report.labels import TARGET, UNNAMED, class_name, leaves, of_readers, overrides_of, short
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.runs.identity import CUSTOM, SEED
from cifarbn.runs.measures import MEASURES, curves

Values = dict[str, dict[str, list[tuple[RunRecord, float]]]]
"""Line -> value of the horizontal key -> each run with its metric."""

ALL = "all runs"  # the line of a figure without --group
SPLITS = {"train": "training", "val": "validation", "test": "test"}
QUANTITIES = {"acc": "accuracy", "loss": "loss"}


def against_key(sweep: RunSet, options: Options) -> Section | None:
    """Return the figure of a metric against a config key, one for each data set; None if the user asks for none.

    Raises:
        UserError: if the runs lack the key or the metric, or the name of a key is ambiguous.
    """
    runs = [run for group in sweep.counted for run in group.runs]
    if options.x is None or not runs:
        return None
    x = resolve_key(options.x, runs)
    group = resolve_key(options.group, runs) if options.group is not None else None
    by_data: dict[str, Values] = {}
    for run in runs:
        if (measured := metric_of(run, options.metric)) is not None:
            by_line = by_data.setdefault(run.data, {})
            by_x = by_line.setdefault(_line(run, group), {})
            by_x.setdefault(value_of(run, x), []).append((run, measured))
    if not by_data:
        names = dict.fromkeys(
            name for run in runs for name in (*run.result.get("metrics", {}), *curves(run.recordings))
        )
        raise UserError(f"no run has the metric {options.metric!r}; the runs have {', '.join(names) or 'none'}")
    by_data = {data: {line: _sorted(by_x) for line, by_x in values.items()} for data, values in by_data.items()}
    drawings = [_drawing(values, x, group, options.metric, data) for data, values in by_data.items()]
    return Section("Comparison", "", drawings, {"comparison_by_key.csv": _as_csv(by_data, x, group, options.metric)})


def resolve_key(name: str, runs: Sequence[RunRecord]) -> str:
    """Return the full name of a key that the runs have, given as "optim.lr" or "lr"; a config group such as "model".

    Raises:
        UserError: if there is no such key, or several.
    """
    keys = {key: None for run in runs for key in (*overrides_of(run.result), *dict(leaves(run.config)), SEED)}
    groups = {key.partition(".")[0] for key in keys if key.endswith(TARGET) and key.count(".") == 1}
    if name in keys or name in groups:
        return name
    matches = [key for key in keys if key.rpartition(".")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"the key {name!r} is ambiguous; use one of {', '.join(sorted(matches))}")
    varying = [key for key in of_readers(keys) if len({value_of(run, key) for run in runs}) > 1]
    raise UserError(
        f"no run has the key {name!r}; the keys that differ between runs are {', '.join(varying) or 'none'}"
    )


def value_of(run: RunRecord, key: str) -> str:
    """Return a run's value of a key, as overridden, else as in its config; for a config group, its class."""
    config = dict(leaves(run.config))
    if key == SEED:
        return short(run.seed)
    option = overrides_of(run.result).get(key, config.get(key, CUSTOM))
    return class_name(config.get(f"{key}{TARGET}", "none")) if option == CUSTOM else option


def metric_of(run: RunRecord, name: str) -> float | None:
    """Return a run's final metric, or the median over its steps of a smoothness measure; None if it has neither."""
    if (metric := run.result.get("metrics", {}).get(name)) is not None:
        return metric
    if name not in {measure.name for measure in MEASURES} or name not in (measured := curves(run.recordings)):
        return None
    _, values = measured[name]
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _line(run: RunRecord, group: str | None) -> str:
    value = value_of(run, group) if group else ""
    return ": ".join(part for part in (run.root, value) if part) or ALL


def _sorted(by_x: Mapping[str, list[tuple[RunRecord, float]]]) -> dict[str, list[tuple[RunRecord, float]]]:
    """Sort the values of the horizontal key, if all of them are numbers."""
    try:
        return dict(sorted(by_x.items(), key=lambda item: float(item[0])))
    except ValueError:
        return dict(by_x)


def _drawing(values: Values, x: str, group: str | None, metric: str, data: str) -> Drawing:
    split, _, quantity = metric.partition("/")
    title = f"{SPLITS.get(split, split)} {QUANTITIES.get(quantity, quantity)}".strip()
    percent = quantity.startswith("acc")
    unit = next((f" ({measure.unit})" for measure in MEASURES if measure.name == metric), "")
    numbers = {line: {at: [value for _, value in runs] for at, runs in by_x.items()} for line, by_x in values.items()}
    heading = f"{title.capitalize()} against {x} ({data})"
    lines = {"" if line == ALL else line: by_x for line, by_x in numbers.items()}
    figure = figures.against_key(lines, x, f"{title}{unit}", heading, percent=percent)
    counts = sorted({len(runs) for by_x in values.values() for runs in by_x.values()})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    caption = f"{title.capitalize()} against {x}" + (f", one line for each value of {group}" if group else "")
    caption += f": mean over runs, with bars from minimum to maximum. Data: {data}. {n} per point."
    if others := _other_differences(values, {x, group or x}):
        caption += f" The runs of a point also differ in {', '.join(others)}."

    def text(value: float) -> str:
        return accuracy(value) if percent else f"{value:.3g}"

    means = "; ".join(
        f"{line}: " + ", ".join(f"{text(float(np.mean(of_runs)))} at {at}" for at, of_runs in by_x.items())
        for line, by_x in numbers.items()
    )
    name = re.sub(r"[^\w. +-]", "_", f"comparison-by-{x}-{data}", flags=re.ASCII)  # a key may contain a slash
    return Drawing(name, figure, caption, f"{title.capitalize()} against {x}. {means}.")


def _other_differences(values: Values, keys: set[str]) -> list[str]:
    """Return the config keys in which runs of one point differ, besides the seed and the keys of the figure."""
    differing: dict[str, None] = {}
    for by_x in values.values():
        for runs in by_x.values():
            configs = [dict(leaves(run.config)) for run, _ in runs]
            for key in dict.fromkeys(key for config in configs for key in config):
                if key not in (*keys, *UNNAMED) and len({config.get(key) for config in configs}) > 1:
                    differing[key] = None
    return of_readers(differing)


def _as_csv(by_data: Mapping[str, Values], x: str, group: str | None, metric: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("data", group or "line", x, "metric", "n", "mean", "min", "max"))
    for data, values in by_data.items():
        for line, by_x in values.items():
            for at, runs in by_x.items():
                numbers = [value for _, value in runs]
                writer.writerow((data, line, at, metric, len(runs), np.mean(numbers), min(numbers), max(numbers)))
    return text.getvalue()
