"""What a section of the report is: a heading, a paragraph, figures, and files for whoever wants the numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from matplotlib.figure import Figure

from cifarbn.report.gather import RunSet


@dataclass(frozen=True)
class Drawing:
    """One figure with its words.

    Attributes:
        name: of its files, without suffix; unique in the report.
        figure: the figure; at most 5.5 inches wide, a phone shows no more without scrolling.
        caption: shown under it, plain text: what is drawn, of which data, how many runs.
        alt: for who cannot see it: what there is to be seen, with the numbers that matter.
        pictorial: whether it shows pictures, whose colours must stay as they are in the dark.
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
        title: its heading.
        text: a paragraph under it, plain text; may be empty.
        drawings: its figures.
        files: name -> text of files to put beside the page, such as the numbers behind a figure.
        table: heading -> cells, shown under the text; may be empty.
        points: a list under that, plain text; may be empty.
    """

    title: str
    text: str = ""
    drawings: list[Drawing] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Sequence[str]] = field(default_factory=dict)
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    """What the user may choose about the report.

    Attributes:
        picture: the test picture whose feature maps are drawn: a class's name for its first one, or a number. None
            takes the first ship, or the first picture where there are no ships.
        data_root: the folder that holds CIFAR-10; result.json does not know where that is on this machine.
        nets: for how many groups, from the best, to look into the trained net.
        trust: packages of the user's own, whose classes may be built for that.
    """

    picture: str | None = None
    data_root: Path = Path("data")
    nets: int = 4
    trust: tuple[str, ...] = ()


MakeSection: TypeAlias = Callable[[RunSet, Options], Section | None]
"""Makes a section, or None where the runs have nothing to show in it."""
