"""How all figures look: one palette, one type size, quiet axes."""

import functools
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito 2008, Color Universal Design: told apart with every kind of colour vision. Without its yellow, too pale
# for a line on white, and ordered so that neighbours differ in lightness as well.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4a9e")
INK, MUTED, FAINT = "#24292f", "#6b7280", "#e3e6ea"

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.06,
}

Draw = TypeVar("Draw", bound=Callable[..., Figure])


def styled(draw: Draw) -> Draw:
    """Let a function draw its figure in this style, whatever the user's own matplotlib settings are.

    A dollar in what it is given is a dollar: between two of them matplotlib would read a formula.
    """

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            return draw(*map(_literal, args), **{key: _literal(value) for key, value in kwargs.items()})

    return drawn  # type: ignore[return-value]


def _literal(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$", r"\$")
    if isinstance(value, Mapping):
        return {_literal(key): _literal(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a named tuple
        return value._make(map(_literal, value))
    return type(value)(map(_literal, value)) if isinstance(value, (list, tuple)) else value


def wrapped(text: str, inches: float, size: float = 10) -> str:
    """The text with line breaks, so that it fits in so many inches at a size in points, bold or not."""
    # DejaVu Sans Bold takes about 0.67 of its size per character, and 72 points are an inch.
    filled = textwrap.fill(text.replace(r"\$", "$"), max(int(inches * 72 / (0.67 * size)), 8))
    return filled.replace("$", r"\$")  # for the line may have ended between the two


def bare(axes: Axes) -> None:
    """Take everything off the axes but what is drawn in them: for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
