"""The structure of the nets, traced through the modules themselves."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from cifarbn import figures
from cifarbn.data.images import IMAGE_SIZE
from cifarbn.errors import UserError
from cifarbn.figures import Layer
from cifarbn.report.captions import count, slugs
from cifarbn.report.gather import Group, RunSet
from cifarbn.report.section import Drawing, Options, Section
from cifarbn.runs.load import build_model
from cifarbn.runs.untrusted import clean

LONG = 24  # boxes; in a longer net equal neighbours share one
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolution": (nn.Conv2d,),
    "linear": (nn.Linear,),
    "pool": (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
}


def structures(sweep: RunSet, options: Options) -> Section | None:
    """A diagram of each net whose modules are not those of one before it."""
    drawings: list[Drawing] = []
    seen: list[Any] = []
    drawn: set[tuple[Layer, ...]] = set()
    missing: list[str] = []
    for group, name in zip(sweep.counted, slugs(sweep.counted), strict=True):
        if len(drawings) == options.nets:
            break
        if (model := group.config.get("model")) in seen:
            continue
        seen.append(model)
        try:
            net = build_model(group.config, options.trust)
            shape, layers = _traced(net)
        except UserError as error:  # such as a run of an older version: its numbers are still good
            missing.append(f"Not drawn: {group.label}: {error}.")
            continue
        if tuple(layers) not in drawn:
            drawn.add(tuple(layers))
            drawings.append(_drawing(group, name, net, shape, layers))
    text = "Drawn from the modules themselves. A box counts the parameters of its normalisation too."
    return Section("Structure of the nets", text, drawings, points=missing) if drawings or missing else None


def trace(net: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """The boxes of a net's diagram, in the order in which it applies its modules.

    A residual block is one box; layers that keep the shape (norms, activations, dropout) belong to the box before them.
    Where a vector is taken after maps were given, a box for the pool over positions stands between; where it is as
    long as the channels of all blocks together, it is the pool of all, which are `pooled`.

    Args:
        net: maps (N, *shape) to (N, C) logits. It is put into eval mode, and its buffers stay as they are.
        shape: of the input for one picture.
    """
    layers: list[Layer] = []
    for name, module, taken, given in _calls(net.eval(), shape):
        kind = next((kind for kind, types in KINDS.items() if isinstance(module, types)), None)
        if layers and len(taken) < len(layers[-1].shape):
            layers = _pooled(layers, taken)
            what = "pool of every block" if any(layer.pooled for layer in layers) else "pool over positions"
            layers.append(Layer("", "pool", what, taken, 0))
        if is_block(module):
            block = Layer(name, "block", _convolutions(module), given, _parameters(module), skip=_shortcut(module))
            layers.append(block)
        elif kind:
            layers.append(Layer(name, kind, _operation(module), given, _parameters(module)))
        elif not layers or taken != given:
            layers.append(Layer(name, "other", type(module).__name__, given, _parameters(module)))
        elif not _does_nothing(module):
            last = layers[-1]
            what, parameters = f"{last.what} · {type(module).__name__}", last.parameters + _parameters(module)
            layers[-1] = last._replace(what=what, shape=given, parameters=parameters)
    return layers


def is_block(module: nn.Module) -> bool:
    """Whether a module is a residual block: it has a child that is named as torchvision names the shortcut."""
    return "downsample" in dict(module.named_children())


def input_shape(net: nn.Module) -> tuple[int, ...]:
    """What a net takes: a picture (3, 32, 32) if it has convolutions, else as many numbers as its first matrix."""
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        return 3, IMAGE_SIZE, IMAGE_SIZE
    return (next(module.in_features for module in net.modules() if isinstance(module, nn.Linear)),)


def _traced(net: nn.Module) -> tuple[tuple[int, ...], list[Layer]]:
    """A net's input and its boxes.

    Raises:
        UserError: where it cannot be traced, such as one of a user's own that takes something else.
    """
    try:
        shape = input_shape(net)
        return shape, trace(net, shape)
    except Exception as error:  # whatever its layers make of an input that they are not for
        reason = clean(f"{type(error).__name__}: {error}".split("\n")[0])
        raise UserError(f"its structure cannot be traced ({reason})") from error


def _drawing(group: Group, name: str, net: nn.Module, shape: tuple[int, ...], layers: list[Layer]) -> Drawing:
    total = sum(layer.parameters for layer in layers)
    shown = _collapsed(layers) if len(layers) > LONG else layers
    inside = [m for block in net.modules() if is_block(block) for m in block.modules() if not list(m.children())]
    others = dict.fromkeys(type(m).__name__ for m in inside if not isinstance(m, (nn.Conv2d, nn.Identity)))
    caption = f"Structure of the net of {group.label}."
    if any(layer.skip for layer in layers):
        caption += f" A line round a block is its shortcut; its convolutions come with {' and '.join(others)}."
    if any(layer.pooled for layer in layers):
        caption += " The line on the right takes every block's output, pooled, to the head."
    boxes = "; ".join(f"{layer.name} {layer.what}" for layer in shown)
    size = f"{count(len(layers), 'layer')} and {count(total, 'parameter')}"
    alt = f"Diagram of a net of {size}, from the picture down: {boxes}."
    return Drawing(f"structure-{name}", figures.structure(shown, group.label, shape), caption, alt)


def _calls(net: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """(name, module, shape taken, shape given) of every block and every leaf outside of blocks, as they are called."""
    calls = []

    def note(name: str, module: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> None:
        calls.append((name, module, tuple(taken[0].shape[1:]), tuple(given.shape[1:])))

    handles = [m.register_forward_hook(lambda *call, name=name: note(name, *call)) for name, m in _boxes(net)]
    try:
        with torch.inference_mode():
            net(torch.zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _boxes(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    children = list(module.named_children())
    if is_block(module) or not children:
        yield name, module
        return
    for child_name, child in children:
        yield from _boxes(child, f"{name}.{child_name}" if name else child_name)


def _pooled(layers: Sequence[Layer], taken: tuple[int, ...]) -> list[Layer]:
    """The layers, with the blocks marked if a vector of that size can only be the means of all of them."""
    blocks = sum(layer.shape[0] for layer in layers if layer.kind == "block")
    every = taken == (blocks,) != layers[-1].shape[:1]
    return [layer._replace(pooled=every and layer.kind == "block") for layer in layers]


def _collapsed(layers: Sequence[Layer]) -> list[Layer]:
    alike = [list(some) for _, some in groupby(layers, key=lambda layer: layer._replace(name=""))]
    return [some[0]._replace(repeat=len(some), name=_range([layer.name for layer in some])) for some in alike]


def _range(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('.')[2]}"


def _convolutions(block: nn.Module) -> str:
    shortcut = set(dict(block.named_children())["downsample"].modules())
    return ", ".join(_operation(m) for m in block.modules() if isinstance(m, nn.Conv2d) and m not in shortcut)


def _shortcut(block: nn.Module) -> str:
    shortcut = dict(block.named_children())["downsample"]
    return ", ".join(_operation(m) for m in shortcut.modules() if isinstance(m, nn.Conv2d)) or "identity"


def _operation(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    kinds = {nn.Conv2d: "conv", nn.MaxPool2d: "max pool", nn.AvgPool2d: "mean pool"}
    kind = next((word for type_, word in kinds.items() if isinstance(module, type_)), type(module).__name__)
    size, stride = getattr(module, "kernel_size", None), getattr(module, "stride", 1)
    if size is None:
        return kind
    side = size[0] if isinstance(size, tuple) else size
    step = stride[0] if isinstance(stride, tuple) else stride
    return f"{kind} {side}×{side}" + (f" /{step}" if step != 1 else "")


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
