"""The training curves: how every group got where the table says it is."""

import csv
import io
from typing import NamedTuple

import numpy as np

from cifarbn import figures
from cifarbn.report.captions import accuracy, data_and_n, heading, names_and_n, slugs
from cifarbn.report.gather import Group, RunSet
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.runs.schema import EPOCH_COLUMNS, EpochColumn

MOST_FIGURES = 16  # of single groups; the comparison and curves.csv have all of them


class Part(NamedTuple):
    """A part of the data: its columns of metrics.csv, and its name."""

    loss: EpochColumn
    accuracy: EpochColumn
    name: str


TRAINING = Part("train/loss", "train/acc", "training")
VALIDATION = Part("val/loss", "val/acc", "validation")
TEST = Part("test_curve/loss", "test_curve/acc", "test")


def training_curves(sweep: RunSet, options: Options) -> Section | None:
    """Accuracy and loss of all groups against each other, then the training procedure of each."""
    groups = [group for group in sweep.counted if _measured(group.curves(TRAINING.loss))]
    if not groups:
        return None
    drawings = []
    for data in dict.fromkeys(group.data for group in groups):
        drawings += _comparisons(data, [group for group in groups if group.data == data])
    for group, name in zip(groups[:MOST_FIGURES], slugs(groups), strict=False):
        drawings.append(_procedure(group, name))
    text = "Each line is the mean over a group's runs, and the band about it reaches from the least to the greatest."
    if len(groups) > MOST_FIGURES:
        text += f" Single figures of the first {MOST_FIGURES} groups only; curves.csv has all {len(groups)}."
    return Section("Training curves", text, drawings, {"curves.csv": _as_csv(groups)})


def _comparisons(data: str, groups: list[Group]) -> list[Drawing]:
    drawings: list[Drawing] = []
    if len(groups) == 1:
        return drawings
    part = _compared(groups)
    for column, quantity, noun in ((part.accuracy, "acc", "accuracy"), (part.loss, "loss", "loss")):
        curves = {group.label: group.curves(column) for group in groups}
        curves = {label: values for label, values in curves.items() if _measured(values)}
        if not curves:
            continue
        drawn = [group for group in groups if group.label in curves]
        what = f"{part.name} {noun}"
        figure = figures.comparison(curves, quantity, what, f"{what.capitalize()}: {names_and_n(drawn)}")
        caption = f"{what.capitalize()} of all groups, best in the table first. {data_and_n(drawn)}"
        if missing := [group.label for group in groups if group.label not in curves]:
            caption = caption.replace("of all groups", f"of the groups that measured it, without {', '.join(missing)}")
        if noun == "loss" and len({str(group.config.get("loss")) for group in drawn}) > 1:
            caption += " The groups were trained by different losses, whose values do not compare with each other."
        ends = [f"{label} ends at {_last(values, quantity)}" for label, values in curves.items()]
        alt = f"Line chart of {what} against epoch for {len(curves)} groups. {'; '.join(ends[:10])}."
        drawings.append(Drawing(f"comparison-{data}-{noun}", figure, caption, alt))
    return drawings


def _compared(groups: list[Group]) -> Part:
    """The part of the data that groups are compared on: what they did not train on, where that is known.

    Validation where every group has it, else the test curve where no fewer groups have that, else training, which every
    group has. Nothing is selected by the test curve.
    """
    validated, tested = (sum(_measured(group.curves(part.loss)) for group in groups) for part in (VALIDATION, TEST))
    if validated == len(groups):
        return VALIDATION
    return TEST if tested and tested >= validated else TRAINING


def _procedure(group: Group, name: str) -> Drawing:
    curves: dict[str, np.ndarray] = {column: group.curves(column) for column in EPOCH_COLUMNS}
    ends = [f"{column} ends at {_last(v, column.partition('/')[2])}" for column, v in curves.items() if _measured(v)]
    alt = f"Line charts against epoch for {group.label}: {', '.join(ends)}."
    caption = f"Training procedure of {group.label}. {data_and_n([group])}"
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
