"""A diagram of a model: its layers from top to bottom, with shortcuts, output shapes and parameter counts."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cifarbn.figures.style import INK, MUTED, PALETTE, bare, sized, styled, wrapped

# Kind of layer -> edge and fill.
COLOURS = {
    "convolution": (PALETTE[0], "#dcebf7"),
    "block": (PALETTE[2], "#d9f0e8"),
    "pool": (MUTED, "#eceef1"),
    "other": (MUTED, "#eceef1"),
    "linear": (PALETTE[1], "#fae5d8"),
}


class Layer(NamedTuple):
    """One box of the diagram.

    Attributes:
        name: of the module, such as "layer1.0".
        kind: "convolution", "block" (residual), "linear", "pool" or "other"; determines the colour.
        text: in the box.
        shape: of the output for one image: (C, H, W) or (C,).
        parameters: number of parameters of one such box.
        skip: operation on the shortcut around the box: "identity", "conv 1×1", ...; empty without a shortcut.
        pooled: whether its output is also pooled and passed directly to the head.
        repeat: number of consecutive boxes of this kind.
    """

    name: str
    kind: str
    text: str
    shape: tuple[int, ...]
    parameters: int
    skip: str = ""
    pooled: bool = False
    repeat: int = 1


# Inches. Names and shortcuts are left of the boxes, pooling lines and numbers right of them.
LEFT, RIGHT = 1.5, 4.05
SHORTCUT, BUS, SHAPE, PARAMETERS = LEFT - 0.42, RIGHT + 0.16, 5.15, 5.9
BOX, GAP, TOP, WIDTH = 0.28, 0.26, 0.78, 6.0
LONG_TEXT = 34  # characters that fit into a box at the default font size


@styled
def structure(layers: Sequence[Layer], title: str, input_shape: tuple[int, ...]) -> Figure:
    """Draw a model from the input down to the logits, with the output shape and parameter count of every box.

    Args:
        layers: in the order of the forward pass.
        title: of the figure.
        input_shape: (C, H, W) of one image.
    """
    title = wrapped(title, WIDTH - 0.2)
    top = TOP + 0.19 * title.count("\n")
    height = top + len(layers) * (BOX + GAP) + 0.35
    figure = Figure(figsize=(sized(WIDTH), sized(height)))
    axes = figure.add_axes((0, 0, 1, 1))
    bare(axes)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.text(0.08, 0.1, title, fontweight="bold", va="top")
    middle = (LEFT + RIGHT) / 2
    axes.text(middle, top - GAP - 0.12, f"input {_size(input_shape)}", ha="center", va="center", fontsize=sized(9))
    for x, heading in ((SHAPE, "output"), (PARAMETERS, "parameters")):
        axes.text(x, top - GAP - 0.12, heading, ha="right", va="center", fontsize=sized(8), color=MUTED)

    tops = [top + i * (BOX + GAP) for i in range(len(layers))]
    for layer, down in zip(layers, tops, strict=True):
        axes.annotate("", (middle, down), (middle, down - GAP), arrowprops=_arrow(MUTED))
        _box(axes, layer, down)
        if layer.skip:
            _shortcut(axes, layer, down)
    pooled = [down for layer, down in zip(layers, tops, strict=True) if layer.pooled]
    if pooled:
        _pooling(axes, pooled)
    total = sum(layer.parameters * layer.repeat for layer in layers)
    axes.text(
        PARAMETERS, height - 0.22, f"{total:,} in total", ha="right", va="center", fontsize=sized(9), fontweight="bold"
    )
    return figure


def _box(axes: Axes, layer: Layer, top: float) -> None:
    edge, fill = COLOURS[layer.kind]
    box = FancyBboxPatch(
        (LEFT, top), RIGHT - LEFT, BOX, boxstyle="round,pad=0,rounding_size=0.06", fc=fill, ec=edge, lw=sized(1)
    )
    axes.add_patch(box)
    centre = top + BOX / 2
    text = f"{layer.repeat} × ( {layer.text} )" if layer.repeat > 1 else layer.text
    size = 9 if len(text) <= LONG_TEXT else 9 * LONG_TEXT / len(text)
    axes.text((LEFT + RIGHT) / 2, centre, text, ha="center", va="center", fontsize=sized(size), color=INK)
    axes.text(0.08, centre, layer.name, ha="left", va="center", fontsize=sized(8), color=MUTED)
    axes.text(SHAPE, centre, _size(layer.shape), ha="right", va="center", fontsize=sized(8))
    count = f"{layer.parameters * layer.repeat:,}" if layer.parameters else "–"
    axes.text(PARAMETERS, centre, count, ha="right", va="center", fontsize=sized(8))


def _shortcut(axes: Axes, layer: Layer, top: float) -> None:
    """Draw a line from above the box around its left side to below it, clear of the next shortcut."""
    colour = COLOURS[layer.kind][0]
    middle, above, below = (LEFT + RIGHT) / 2, top - 0.64 * GAP, top + BOX + 0.16 * GAP
    axes.plot([middle, SHORTCUT, SHORTCUT], [above, above, below], color=colour, lw=sized(1.1), solid_joinstyle="round")
    axes.annotate("", (middle, below), (SHORTCUT, below), arrowprops=_arrow(colour))
    if layer.skip != "identity":
        box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": colour, "lw": sized(0.8)}
        axes.text(SHORTCUT, top + BOX / 2, layer.skip, ha="center", va="center", fontsize=sized(7), bbox=box)


def _pooling(axes: Axes, pooled: Sequence[float]) -> None:
    """Draw a line from each pooled box along the right side down to the box that takes all of them."""
    colour = PALETTE[1]
    exits = [top + BOX / 2 for top in pooled]
    end = exits[-1] + BOX + GAP
    for y in exits:
        axes.plot([RIGHT, BUS], [y, y], color=colour, lw=sized(1.1))
    axes.plot([BUS, BUS], [exits[0], end], color=colour, lw=sized(1.1))
    axes.annotate("", (RIGHT, end), (BUS, end), arrowprops=_arrow(colour))


def _arrow(colour: str) -> dict[str, object]:
    style = "-|>,head_width=0.16,head_length=0.28"  # in units of the font size
    return {"arrowstyle": style, "color": colour, "lw": sized(1), "shrinkA": 0, "shrinkB": 0}


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
