"""How all figures look: one palette, one type size, quiet axes."""

import functools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito 2008, Color Universal Design: told apart with every kind of colour vision. Without its yellow, with its
# pink, orange and sky blue darkened to a contrast of 3:1 on white, and ordered so that neighbours differ in lightness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#b57c00", "#3a8fc7", "#5b4a9e")
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
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}

Draw = TypeVar("Draw", bound=Callable[..., Figure])


def styled(draw: Draw) -> Draw:
    """Let a function draw its figure in this style, whatever the user's own matplotlib settings are.

    A dollar in what it is given is a dollar: between two of them matplotlib would read a formula.
    """

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with _style():
            return draw(*map(_literal, args), **{key: _literal(value) for key, value in kwargs.items()})

    return drawn  # type: ignore[return-value]


def save(figure: Figure, file: BinaryIO, **options: Any) -> None:
    """Write a figure to a file in this style: fonts and resolution are chosen at this moment, not when it is drawn."""
    with _style():
        figure.savefig(file, **options)


def shades(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of several ordered names, from light to dark, all with a contrast of 3:1 on white."""
    if len(names) == 1:
        return {names[0]: PALETTE[0]}
    places = np.linspace(0.6, 0, len(names))  # above 0.63 plasma is too pale
    return {name: to_hex(mpl.colormaps["plasma"](place)) for name, place in zip(names, places, strict=True)}


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with at least two labelled ticks however little it spans.

    One whose data have nothing positive stays linear. Call it when everything is drawn.
    """
    if not np.isfinite(getattr(axes.dataLim, f"minpos{which}")):
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(_LogTicks())
    axis.set_major_formatter(FuncFormatter(_as_power))
    axis.set_minor_locator(NullLocator())


class _LogTicks(Locator):
    """Powers of ten where the view holds three, else with 2 and 5 between them, else round numbers."""

    def __call__(self) -> Any:
        return self.tick_values(*self.axis.get_view_interval())  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((vmin, vmax))
        for enough, locator in (
            (3, LogLocator(numticks=7)),
            (3, LogLocator(subs=(1, 2, 5), numticks=9)),
            (0, MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])),
        ):
            ticks = np.asarray(locator.tick_values(low, high))
            ticks = ticks[(low <= ticks) & (ticks <= high) & (ticks > 0)]
            if len(ticks) >= enough:
                break
        return ticks


def _as_power(value: float, _: Any) -> str:
    """0.05, 20, 10⁴, 2×10⁻⁶."""
    if value <= 0 or 0.999e-3 < value < 0.999e4:
        return f"{value:.6g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = f"{value / 10**exponent:.3g}"
    return f"$10^{{{exponent}}}$" if mantissa == "1" else rf"${mantissa}\times10^{{{exponent}}}$"


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


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
