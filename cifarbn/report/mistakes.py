"""Confusion matrices and misclassified images."""

import numpy as np
import torch

from cifarbn import figures
from cifarbn.report.captions import accuracy, count, heading
from cifarbn.report.gather import RunSet
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.report.trained_model import GroupModel, best, best_models

MISTAKES = 15  # images in a figure
BATCH, AT_MOST = 100, 2000  # test images classified at once, and in total, to find that many mistakes


def confusion_matrices(sweep: RunSet, options: Options) -> Section | None:
    """Return the confusion matrix of each group, summed over its runs."""
    drawings = []
    for group, slug in best(sweep, options):
        results = [run.result for run in group.runs if "confusion" in run.result]
        if len({len(result["confusion"]) for result in results}) != 1:
            continue  # no run has a confusion matrix, or the numbers of classes differ
        counts = np.sum([result["confusion"] for result in results], axis=0)
        classes = results[0].get("data", {}).get("classes") or [str(label) for label in range(len(counts))]
        wrong = counts * (1 - np.eye(len(counts), dtype=int))
        true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
        caption = f"{group.label}: test images of {group.data}, summed over n = {len(results)}."
        pair = f"{classes[true]} predicted as {classes[predicted]}"
        most = f"the most frequent mistake is {pair}, {count(wrong.max(), 'time')}"
        alt = (
            f"Confusion matrix: {accuracy(np.trace(counts) / max(counts.sum(), 1))} of the images are on the "
            f"diagonal; {most if wrong.any() else 'no mistakes'}."
        )
        figure = figures.confusion_matrix(counts, classes, heading(group))
        drawings.append(Drawing(f"confusion-{slug}", figure, caption, alt))
    return Section("Confusion matrices", "", drawings) if drawings else None


def misclassified(sweep: RunSet, options: Options) -> Section | None:
    """Return misclassified test images, the most confident mistakes first."""
    drawings = [drawing for model in best_models(sweep, options) if (drawing := _misclassified(model))]
    text = "True class → predicted class, and its softmax, which is a probability if the loss is cross entropy."
    return Section("Misclassified images", text, drawings) if drawings else None


def _misclassified(model: GroupModel) -> Drawing | None:
    if model.trained is None or model.test is None:
        return None
    probabilities, seen = [], 0
    wrong = torch.empty(0, dtype=torch.long)
    # Stop early: on a CPU a large model takes a minute for a whole test set.
    while len(wrong) < MISTAKES and seen < min(AT_MOST, len(model.test)):
        probabilities.append(model.trained.probabilities(model.test.pixels[seen : seen + BATCH]))
        seen += len(probabilities[-1])
        confidence, predicted = torch.cat(probabilities).max(1)
        wrong = (predicted != model.test.labels[:seen]).nonzero().flatten()
    if not len(wrong):
        return None
    wrong = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
    names = model.trained.classes
    true = [names[label] for label in model.test.labels[wrong].tolist()]
    called = [names[label] for label in predicted[wrong].tolist()]
    pixels = model.test.pixels[wrong].permute(0, 2, 3, 1).numpy()
    figure = figures.misclassified(pixels, true, called, confidence[wrong].tolist(), model.heading)
    caption = f"The most confident mistakes among the first {seen:,} test images, by {model.description}."
    alt = "Misclassified images: " + "; ".join(f"{t} predicted as {c}" for t, c in zip(true, called, strict=True)) + "."
    return Drawing(f"mistakes-{model.slug}", figure, caption, alt, pictorial=True)
