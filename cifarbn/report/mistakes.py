"""What the nets get wrong: confusion matrices and misclassified pictures."""

import numpy as np
import torch

from cifarbn import figures
from cifarbn.report.captions import accuracy, count, heading
from cifarbn.report.gather import RunSet
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.report.trained_model import Inside, best, look_inside

MISTAKES = 15  # pictures in a figure
AT_ONCE, AT_MOST = 100, 2000  # pictures to look at until there are so many mistakes


def confusion_matrices(sweep: RunSet, options: Options) -> Section | None:
    """Which classes are taken for which, summed over the runs of a group."""
    drawings = []
    for group, slug in best(sweep, options):
        results = [run.result for run in group.runs if "confusion" in run.result]
        if len({len(result["confusion"]) for result in results}) != 1:
            continue  # there is none, or the runs do not have the same classes
        counts = np.sum([result["confusion"] for result in results], axis=0)
        classes = results[0].get("data", {}).get("classes") or [str(label) for label in range(len(counts))]
        wrong = counts * (1 - np.eye(len(counts), dtype=int))
        true, called = np.unravel_index(wrong.argmax(), wrong.shape)
        caption = f"{group.label}: the test pictures of {group.data}, summed over n = {len(results)}."
        most = f"the most frequent mistake is {classes[true]} called {classes[called]}, {count(wrong.max(), 'time')}"
        alt = (
            f"Confusion matrix: {accuracy(np.trace(counts) / max(counts.sum(), 1))} of the pictures are on the "
            f"diagonal; {most if wrong.any() else 'no mistakes'}."
        )
        figure = figures.confusion_matrix(counts, classes, heading(group))
        drawings.append(Drawing(f"confusion-{slug}", figure, caption, alt))
    return Section("Confusion", "", drawings) if drawings else None


def misclassified(sweep: RunSet, options: Options) -> Section | None:
    """Test pictures that the nets take for something else, the surest mistakes first."""
    drawings = [drawing for inside in look_inside(sweep, options) if (drawing := _misclassified(inside))]
    text = "True class → what it was called, and how sure the net was."
    return Section("Misclassified pictures", text, drawings) if drawings else None


def _misclassified(inside: Inside) -> Drawing | None:
    if inside.trained is None or inside.test is None:
        return None
    chances, seen = [], 0
    wrong = torch.empty(0, dtype=torch.long)
    # In pieces, for on a CPU a large net takes a minute for a whole test set.
    while len(wrong) < MISTAKES and seen < min(AT_MOST, len(inside.test)):
        chances.append(inside.trained.probabilities(inside.test.pixels[seen : seen + AT_ONCE]))
        seen += len(chances[-1])
        sure, called = torch.cat(chances).max(1)
        wrong = (called != inside.test.labels[:seen]).nonzero().flatten()
    if not len(wrong):
        return None
    wrong = wrong[sure[wrong].argsort(descending=True)][:MISTAKES]
    names = inside.trained.classes
    true = [names[label] for label in inside.test.labels[wrong].tolist()]
    taken_for = [names[label] for label in called[wrong].tolist()]
    pixels = inside.test.pixels[wrong].permute(0, 2, 3, 1).numpy()
    figure = figures.misclassified(pixels, true, taken_for, sure[wrong].tolist(), inside.heading)
    caption = f"The surest mistakes among the first {seen:,} test pictures, of {inside.whose}."
    alt = "Misclassified pictures: " + "; ".join(f"{t} called {c}" for t, c in zip(true, taken_for, strict=True)) + "."
    return Drawing(f"mistakes-{inside.slug}", figure, caption, alt, pictorial=True)
