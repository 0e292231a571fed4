"""Loss and accuracy of every group against epoch."""

import csv
import io
from typing import NamedTuple

import numpy as np

from cifarbn import figures
from cifarbn.report.captions import accuracy, data_and_n, heading, names_and_n, slugs
from cifarbn.report.gather import Group, RunSet
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.runs.schema import EPOCH_COLUMNS, EpochColumn

MOST_FIGURES = 16  # of single groups; the comparison figures and curves.csv include all groups


class Split(NamedTuple):
    """A data split: its columns of metrics.csv, and its name."""

    loss: EpochColumn
    accuracy: EpochColumn
    name: str


TRAINING = Split("train/loss", "train/acc", "training")
VALIDATION = Split("val/loss", "val/acc", "validation")
TEST = Split("test_curve/loss", "test_curve/acc", "test")


def training_curves(sweep: RunSet, options: Options) -> Section | None:
    """Return the figures that compare accuracy and loss of all groups, then one figure per group."""
    groups = [group for group in sweep.counted if _measured(group.curves(TRAINING.loss))]
    if not groups:
        return None
    drawings = []
    for data in dict.fromkeys(group.data for group in groups):
        drawings += _comparisons(data, [group for group in groups if group.data == data])
    for group, name in zip(groups[:MOST_FIGURES], slugs(groups), strict=False):
        drawings.append(_procedure(group, name))
    text = "Each line is the mean over a group's runs; the band spans their minimum and maximum."
    if len(groups) > MOST_FIGURES:
        text += f" Only the first {MOST_FIGURES} groups have figures of their own; curves.csv has all {len(groups)}."
    return Section("Training curves", text, drawings, {"curves.csv": _as_csv(groups)})


def _comparisons(data: str, groups: list[Group]) -> list[Drawing]:
    drawings: list[Drawing] = []
    if len(groups) == 1:
        return drawings
    split = _compared(groups)
    for column, quantity, noun in ((split.accuracy, "acc", "accuracy"), (split.loss, "loss", "loss")):
        curves = {group.label: group.curves(column) for group in groups}
        curves = {label: values for label, values in curves.items() if _measured(values)}
        if not curves:
            continue
        drawn = [group for group in groups if group.label in curves]
        label = f"{split.name} {noun}"
        figure = figures.comparison(curves, quantity, label, f"{label.capitalize()}: {names_and_n(drawn)}")
        caption = f"{label.capitalize()} of all groups, in the order of the table. {data_and_n(drawn)}"
        if missing := [group.label for group in groups if group.label not in curves]:
            caption = caption.replace("of all groups", f"of the groups that measured it (not {', '.join(missing)})")
        if noun == "loss" and len({str(group.config.get("loss")) for group in drawn}) > 1:
            caption += " The groups minimise different losses, whose values are not comparable."
        ends = [f"{group} ends at {_last(values, quantity)}" for group, values in curves.items()]
        alt = f"Line chart of {label} against epoch for {len(curves)} groups. {'; '.join(ends[:10])}."
        drawings.append(Drawing(f"comparison-{data}-{noun}", figure, caption, alt))
    return drawings


def _compared(groups: list[Group]) -> Split:
    """Return the data split on which to compare groups, preferably one that they were not trained on.

    Validation if every group has it; else test if at least as many groups have a test curve; else training, which
    every group has. Nothing is selected by the test curve.
    """
    validated, tested = (sum(_measured(group.curves(split.loss)) for group in groups) for split in (VALIDATION, TEST))
    if validated == len(groups):
        return VALIDATION
    return TEST if tested and tested >= validated else TRAINING


def _procedure(group: Group, name: str) -> Drawing:
    curves: dict[str, np.ndarray] = {column: group.curves(column) for column in EPOCH_COLUMNS}
    ends = [f"{column} ends at {_last(v, column.partition('/')[2])}" for column, v in curves.items() if _measured(v)]
    alt = f"Line charts against epoch for {group.label}: {', '.join(ends)}."
    caption = f"Loss and accuracy of {group.label}. {data_and_n([group])}"
    return Drawing(f"curves-{name}", figures.training_curves(curves, heading(group)), caption, alt)


def _measured(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _last(values: np.ndarray, quantity: str) -> str:
    if not _measured(values):
        return "nothing"
    last = values[:, np.flatnonzero(np.isfinite(values).any(0))[-1]]
    return accuracy(float(np.nanmean(last))) if quantity == "acc" else f"{np.nanmean(last):.3f}"


def _as_csv(groups: list[Group]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("group", "data", "epoch", "curve", "n", "mean", "min", "max"))
    for group in groups:
        for column in EPOCH_COLUMNS:
            for epoch, values in enumerate(group.curves(column).T, 1):
                known = values[np.isfinite(values)]
                if len(known):
                    numbers = (len(known), known.mean(), known.min(), known.max())
                    writer.writerow((group.label, group.data, epoch, column, *numbers))
    return text.getvalue()
