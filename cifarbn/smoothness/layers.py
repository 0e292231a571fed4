"""The layers of a model: its trained parameters in groups, each named after a module."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters of each layer, by the name of its module.

    A module that owns a weight of two or more dimensions (a convolution, a linear map, an embedding, an LSTM) starts a
    layer. Modules after it that own vectors only, such as its normalisation, belong to it; if there is no layer before
    them, they are a layer of their own. Layers without a trained parameter are left out, and a shared parameter belongs
    to the first layer that has it.

    Trap: layers are in the order in which the model registers its modules. For most models, but not for all, that is
    the order of the forward pass.
    """
    layers: dict[str, list[nn.Parameter]] = {}
    current, assigned = None, set()
    for name, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if parameters and (current is None or any(p.ndim > 1 for p in parameters)):
            current = name
        for parameter in parameters:
            if parameter.requires_grad and parameter not in assigned and current is not None:
                assigned.add(parameter)
                layers.setdefault(current, []).append(parameter)
    return layers


def default_head(model: nn.Module) -> str | None:
    """Return the name of the last linear layer: `head`, or else the last registered `nn.Linear`; None without one."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return "head" if "head" in linear else linear[-1] if linear else None


def norm_per_layer(
    values: Tensor, parameters: Sequence[Tensor], layers: Mapping[str, Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Return the norm of each layer from the norms of its parameters.

    Args:
        values: norms of shape (..., P), such as distances, of the P parameters by themselves.
        parameters: these parameters.
        layers: the parameters of each layer by its name, as `layers_of` returns them.

    Returns:
        By the layer's name its norms, shape (...).
    """
    position = {parameter: i for i, parameter in enumerate(parameters)}
    return {
        name: torch.linalg.vector_norm(values[..., [position[p] for p in layer]], dim=-1)
        for name, layer in layers.items()
    }
