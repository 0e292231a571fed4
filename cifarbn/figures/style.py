"""The style of all figures: palette, fonts and axes."""

import functools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito 2008, Color Universal Design, which is safe for colour-blind readers. Yellow is left out; pink, orange
# and sky blue are darkened to a contrast of 3:1 on white; neighbours differ in lightness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#b57c00", "#3a8fc7", "#5b4a9e")
INK, MUTED, FAINT = "#24292f", "#6b7280", "#e3e6ea"


@dataclass(frozen=True)
class Style:
    """How large and in which font figures are drawn.

    Attributes:
        scale: multiplies every length: the figure's size, fonts and lines.
        lines: multiplies the width of curves once more.
        fonts: families in order of preference; later ones provide symbols that the first lacks.
        math: font set of formulas, see matplotlib's `mathtext.fontset`.
        dpi: resolution of PNG files.
    """

    scale: float = 1.0
    lines: float = 1.0
    fonts: tuple[str, ...] = ("DejaVu Sans",)
    math: str = "dejavusans"
    dpi: int = 160


STYLES = {
    "page": Style(),
    # 8 pt serif; the narrow figures fit a column of 3.3 inches, the wide ones a page of 5 inches.
    "paper": Style(0.8, 0.9, ("STIXGeneral", "DejaVu Serif", "DejaVu Sans"), "stix", 300),
    # 18 pt, with bold curves: the narrow figures fill half of a 16:9 slide of 13.3 inches, the wide ones most of it.
    "slides": Style(1.8, 1.3),
}
"""The styles of figures by name; "page" is the default."""
_current: ContextVar[Style] = ContextVar("style", default=STYLES["page"])

# Matplotlib's settings in the page style; every number is a length.
SETTINGS: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelpad": 4,
    "axes.titlepad": 6,
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
    **{
        f"{axis}tick.major.{length}": default
        for axis in "xy"
        for length, default in (("size", 3.5), ("width", 0.8), ("pad", 3.5))
    },
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.06,
}

Draw = TypeVar("Draw", bound=Callable[..., Figure])


def styled(draw: Draw) -> Draw:
    """Decorate a function so that it draws in this style, independent of the user's matplotlib settings.

    Dollar signs in the arguments are escaped, because matplotlib reads text between two of them as a formula.
    """

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with _style():
            return draw(*map(_literal, args), **{key: _literal(value) for key, value in kwargs.items()})

    return drawn  # type: ignore[return-value]


def save(figure: Figure, file: BinaryIO, **options: Any) -> None:
    """Write a figure to a file in this style: matplotlib reads font and resolution settings when it saves."""
    with _style():
        figure.savefig(file, **options)


def shades(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each of several ordered names, from light to dark, with a contrast of 3:1 on white."""
    if len(names) == 1:
        return {names[0]: PALETTE[0]}
    places = np.linspace(0.6, 0, len(names))  # above 0.63 plasma is too pale
    return {name: to_hex(mpl.colormaps["plasma"](place)) for name, place in zip(names, places, strict=True)}


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with at least two labelled ticks over any range.

    An axis without positive data stays linear. Call this after everything is drawn.
    """
    if not np.isfinite(getattr(axes.dataLim, f"minpos{which}")):
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(_LogTicks())
    axis.set_major_formatter(FuncFormatter(_as_power))
    axis.set_minor_locator(NullLocator())


class _LogTicks(Locator):
    """Ticks at powers of ten if at least three are in view, else also at 2 and 5 times those, else at round numbers."""

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
    """Format a tick: 0.05, 20, 10⁴, 2×10⁻⁶."""
    if value <= 0 or 0.999e-3 < value < 0.999e4:
        return f"{value:.6g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = f"{value / 10**exponent:.3g}"
    return f"$10^{{{exponent}}}$" if mantissa == "1" else rf"${mantissa}\times10^{{{exponent}}}$"


@contextmanager
def using(name: str) -> Iterator[Style]:
    """Draw and save figures in one of `STYLES` within the block."""
    token = _current.set(STYLES[name])
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def sized(length: float) -> float:
    """Convert a length of the page style, in points or inches, to the current style."""
    return length * _current.get().scale


def line(width: float) -> float:
    """Convert the width of a curve of the page style, in points, to the current style."""
    return sized(width) * _current.get().lines


@contextmanager
def _style() -> Iterator[None]:
    style = _current.get()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {key: sized(value) if type(value) in (int, float) else value for key, value in SETTINGS.items()}
        )
        mpl.rcParams.update(
            {
                "lines.linewidth": line(SETTINGS["lines.linewidth"]),
                "font.family": list(style.fonts),
                "mathtext.fontset": style.math,
                "pdf.fonttype": 42,  # TrueType; many journals reject Type 3 fonts
                "svg.hashsalt": "cifarbn",  # the same figure gives the same file
            }
        )
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
    """Return the text with line breaks, so that it fits a width in inches at a font size in points, bold or not."""
    # DejaVu Sans Bold takes about 0.67 of its size per character, and 72 points are an inch.
    filled = textwrap.fill(text.replace(r"\$", "$"), max(int(inches * 72 / (0.67 * size)), 8))
    return filled.replace("$", r"\$")  # a line break may have separated the backslash from the dollar


def bare(axes: Axes) -> None:
    """Remove ticks, grid and spines from the axes, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
