"""What groups are compared on: pictures that none of them was trained on, where there are any."""

import csv
import json

import numpy as np
import pytest

from cifarbn.report.curves import training_curves
from cifarbn.report.gather import gather
from cifarbn.report.section import Options
from cifarbn.training.callbacks.metrics_logger import COLUMNS


def write_run(root, model, *parts, loss="a"):
    """A run of two epochs that measured these parts of the data."""
    folder = root / f"model={model}"
    folder.mkdir(parents=True)
    result = {
        "status": "done",
        "config": {"model": {"_target_": f"cifarbn.models.{model}"}, "seed": 0, "loss": {"_target_": loss}},
        "overrides": [f"model={model}"],
        "metrics": {"test/acc": 0.5},
        "data": {"name": "shapes"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for epoch in range(2):
            row = {f"{part}/{what}": 0.25 + epoch / 4 for part in ("train", *parts) for what in ("loss", "acc")}
            writer.writerow({"step": epoch, "epoch": epoch, "step/loss": 1.0, "step/grad_norm": 1.0} | row)


def comparisons(root):
    section = training_curves(gather(root), Options())
    return {d.name.rpartition("-")[2]: d for d in section.drawings if d.name.startswith("comparison-")}


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ([("val",), ("val",)], "Validation"),
        ([("val", "test_curve"), ("val", "test_curve")], "Validation"),
        ([("test_curve",), ("test_curve",)], "Test"),
        ([("val", "test_curve"), ("test_curve",)], "Test"),
        ([(), ()], "Training"),
        ([("val",), ()], "Training"),
        ([("val",), ("val",), ("test_curve",)], "Training"),
    ],
)
def test_the_part_that_groups_are_compared_on(tmp_path, groups, word):
    for i, parts in enumerate(groups):
        write_run(tmp_path, f"m{i}", *parts)
    found = comparisons(tmp_path)
    assert set(found) == {"accuracy", "loss"}
    for noun, drawing in found.items():
        assert drawing.caption.startswith(f"{word} {noun} of all groups")
        title = drawing.figure.get_suptitle().replace("\n", " ")
        assert title.startswith(f"{word} {noun}: shapes, n"), "the title says which"
        assert drawing.figure.axes[0].get_ylabel() == f"{word.lower()} {noun}"
        assert len(drawing.figure.axes[0].lines) == len(groups)


def test_a_group_that_did_not_measure_it_is_named(tmp_path):
    write_run(tmp_path, "m0", "test_curve")
    write_run(tmp_path, "m1", "test_curve")
    write_run(tmp_path, "m2")
    drawing = comparisons(tmp_path)["accuracy"]
    assert drawing.caption.startswith("Test accuracy of the groups that measured it, without m2, best")
    assert "for 2 groups" in drawing.alt and len(drawing.figure.axes[0].lines) == 2
    assert np.allclose(drawing.figure.axes[0].lines[0].get_ydata(), [0.25, 0.5])


def test_losses_of_different_kinds_do_not_compare(tmp_path):
    write_run(tmp_path, "m0")
    write_run(tmp_path, "m1")
    assert "do not compare" not in comparisons(tmp_path)["loss"].caption
    write_run(tmp_path, "m2", loss="b")
    found = comparisons(tmp_path)
    assert "do not compare" in found["loss"].caption and "do not compare" not in found["accuracy"].caption
