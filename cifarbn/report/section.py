"""A section of the report: a heading, a paragraph, figures, and files with the numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from matplotlib.figure import Figure

from cifarbn.report.gather import RunSet

FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class Drawing:
    """One figure with its caption and description.

    Attributes:
        name: of its files, without suffix; unique in the report.
        figure: at most 5.5 inches wide, which a phone shows almost without scrolling.
        caption: shown under the figure, plain text: what is drawn, the data, the number of runs.
        alt: text alternative for screen readers, with the numbers that matter.
        pictorial: whether it shows photos, whose colours dark mode must not invert.
    """

    name: str
    figure: Figure
    caption: str
    alt: str
    pictorial: bool = False


@dataclass(frozen=True)
class Section:
    """One section of the report.

    Attributes:
        title: the heading.
        text: a paragraph under the heading, plain text; may be empty.
        drawings: the figures.
        files: name -> content of files written next to the page, such as the numbers of a figure.
        table: heading -> cells, shown under the text; may be empty.
        points: a list under the table, plain text; may be empty.
    """

    title: str
    text: str = ""
    drawings: list[Drawing] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Sequence[str]] = field(default_factory=dict)
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    """Options of the report.

    Attributes:
        image: test image whose feature maps are drawn: a class name, for its first image, or an index. None for the
            first ship, or image 0 if there is no such class.
        data_root: folder that holds CIFAR-10; result.json contains no paths.
        models: number of groups, from the best, whose trained model is loaded and drawn.
        trust: the user's own packages whose classes may be instantiated to load a model.
        style: of the figures, a key of `figures.STYLES`.
        formats: file formats of the figures, of `FORMATS`; PNG is always written, because report.md shows it.
        x: config key on the horizontal axis of an additional comparison figure, such as "lr"; None for no such figure.
        group: config key whose values are drawn as separate lines of that figure; None for one line.
        metric: the quantity of that figure, a metric of result.json or a smoothness measure.
    """

    image: str | None = None
    data_root: Path = Path("data")
    models: int = 4
    trust: tuple[str, ...] = ()
    style: str = "page"
    formats: tuple[str, ...] = ("png", "pdf")
    x: str | None = None
    group: str | None = None
    metric: str = "test/acc"


MakeSection: TypeAlias = Callable[[RunSet, Options], Section | None]
"""Return a section, or None if the runs have nothing to show in it."""
