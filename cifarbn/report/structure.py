"""Diagrams of the models, traced through their modules."""

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

LONG = 24  # boxes; in a longer model, equal consecutive boxes are merged
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolution": (nn.Conv2d,),
    "linear": (nn.Linear,),
    "pool": (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
}


def structures(sweep: RunSet, options: Options) -> Section | None:
    """Return a diagram of each model that differs from the ones before it."""
    drawings: list[Drawing] = []
    seen: list[Any] = []
    drawn: set[tuple[Layer, ...]] = set()
    missing: list[str] = []
    for group, name in zip(sweep.counted, slugs(sweep.counted), strict=True):
        if len(drawings) == options.models:
            break
        height, width = group.runs[0].result.get("data", {}).get("image_size", (IMAGE_SIZE, IMAGE_SIZE))
        if (config := (group.config.get("model"), height, width)) in seen:
            continue
        seen.append(config)
        try:
            model = build_model(group.config, options.trust)
            shape, layers = _traced(model, (height, width))
        except UserError as error:  # for example a run of an older version; the rest of its report is still valid
            missing.append(f"Not drawn: {group.label}: {error}.")
            continue
        if tuple(layers) not in drawn:
            drawn.add(tuple(layers))
            drawings.append(_drawing(group, name, model, shape, layers))
    text = "Traced through the modules of each model. The parameters of a box include those of its normalisation."
    return Section("Model structure", text, drawings, points=missing) if drawings or missing else None


def trace(model: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """Return the boxes of a model's diagram, in the order of the forward pass.

    A residual block is one box; layers that keep the shape (normalisation, activation, dropout) are added to the box
    before them. A global-pool box is inserted where the input changes from feature maps to a vector; if that vector is
    as long as the channels of all blocks together, it is the pool of every block, and the blocks are marked `pooled`.

    Args:
        model: maps (N, *shape) to (N, C) logits. It is set to eval mode; its buffers do not change.
        shape: of the input for one image.
    """
    layers: list[Layer] = []
    for name, module, input_size, output_size in _calls(model.eval(), shape):
        kind = next((kind for kind, types in KINDS.items() if isinstance(module, types)), None)
        if layers and len(input_size) < len(layers[-1].shape):
            layers = _pooled(layers, input_size)
            text = "pool of every block" if any(layer.pooled for layer in layers) else "global pool"
            layers.append(Layer("", "pool", text, input_size, 0))
        if is_block(module):
            skip = _shortcut(module)
            layers.append(Layer(name, "block", _convolutions(module), output_size, _parameters(module), skip=skip))
        elif kind:
            layers.append(Layer(name, kind, _operation(module), output_size, _parameters(module)))
        elif not layers or input_size != output_size:
            layers.append(Layer(name, "other", type(module).__name__, output_size, _parameters(module)))
        elif not _does_nothing(module):
            last = layers[-1]
            text, parameters = f"{last.text} · {type(module).__name__}", last.parameters + _parameters(module)
            layers[-1] = last._replace(text=text, shape=output_size, parameters=parameters)
    return layers


def is_block(module: nn.Module) -> bool:
    """Return whether a module is a residual block: it has a child `downsample`, torchvision's name for the shortcut."""
    return "downsample" in dict(module.named_children())


def input_shape(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, ...]:
    """Return a model's input shape: an image if it has convolutions, else the input size of its first linear layer."""
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return 3, *image_size
    return (next(module.in_features for module in model.modules() if isinstance(module, nn.Linear)),)


def _traced(model: nn.Module, image_size: tuple[int, int]) -> tuple[tuple[int, ...], list[Layer]]:
    """Return a model's input shape and the boxes of its diagram.

    Raises:
        UserError: if the model cannot be traced, for example because it expects a different input.
    """
    try:
        shape = input_shape(model, image_size)
        return shape, trace(model, shape)
    except Exception as error:  # a layer may raise anything on an unexpected input
        reason = clean(f"{type(error).__name__}: {error}".split("\n")[0])
        raise UserError(f"the model cannot be traced ({reason})") from error


def _drawing(group: Group, name: str, model: nn.Module, shape: tuple[int, ...], layers: list[Layer]) -> Drawing:
    total = sum(layer.parameters for layer in layers)
    boxes = _collapsed(layers) if len(layers) > LONG else layers
    leaves = [m for block in model.modules() if is_block(block) for m in block.modules() if not list(m.children())]
    others = dict.fromkeys(type(m).__name__ for m in leaves if not isinstance(m, (nn.Conv2d, nn.Identity)))
    caption = f"Model structure of {group.label}."
    if any(layer.skip for layer in layers):
        caption += f" A line around a block is its shortcut; blocks also contain {' and '.join(others)}."
    if any(layer.pooled for layer in layers):
        caption += " The line on the right connects the pooled output of every block to the head."
    text = "; ".join(f"{layer.name} {layer.text}" for layer in boxes)
    size = f"{count(len(layers), 'layer')} and {count(total, 'parameter')}"
    alt = f"Diagram of a model with {size}, from input to output: {text}."
    return Drawing(f"structure-{name}", figures.structure(boxes, group.label, shape), caption, alt)


def _calls(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """Return (name, module, input shape, output shape) of every block and every leaf outside blocks, in call order."""
    calls = []

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((name, module, tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

    handles = [m.register_forward_hook(lambda *call, name=name: note(name, *call)) for name, m in _boxes(model)]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *shape))
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


def _pooled(layers: Sequence[Layer], vector: tuple[int, ...]) -> list[Layer]:
    """Return the layers, with blocks marked `pooled` if a vector of this size must be the pool of all blocks."""
    channels = sum(layer.shape[0] for layer in layers if layer.kind == "block")
    every = vector == (channels,) != layers[-1].shape[:1]
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
