"""The parameters of a model after an update, with the model and the optimizer left as they were."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifarbn.smoothness.evaluation import restore_parameters
from cifarbn.smoothness.preserve_state import preserve_state

Update = Optimizer | Callable[[], object] | Mapping[str, Tensor]
"""An optimizer, whose next step is taken; a callable that moves the parameters; or the parameters after it, by name."""


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with `requires_grad`, by name.

    Raises:
        ValueError: if there are none.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("the model has no trained parameter: none has requires_grad=True")
    return parameters


def parameters_after(
    model: nn.Module, update: Update, gradient: Sequence[Tensor], train: bool | None = None
) -> list[Tensor]:
    """Return copies of the trained parameters as the update would leave them.

    Args:
        model: restored bit for bit: parameters, `.grad`, buffers, modes, and the global random generators.
        update: an optimizer, whose state is restored, too; a callable without arguments, whose effects on anything but
            the model remain; or a mapping from the parameters' names to their new values, such as a `state_dict`.
        gradient: what `.grad` of each trained parameter holds when the update begins.
        train: the mode of the model during the update, see `preserve_state`.

    Raises:
        ValueError: if the optimizer has none of the model's parameters, or the names or shapes of a mapping differ.
        TypeError: if the update is none of the three.
    """
    parameters = trained_parameters(model)
    if isinstance(update, Mapping):
        return _from_mapping(parameters, update, {*model.state_dict(), *dict(model.named_parameters())})
    with preserve_state(model, train=train), restore_parameters(list(model.parameters())), torch.enable_grad():
        for parameter, value in zip(parameters.values(), gradient, strict=True):
            parameter.grad = value.to(parameter.dtype, copy=True)
        if isinstance(update, Optimizer):
            if not {p for group in update.param_groups for p in group["params"]} & set(parameters.values()):
                raise ValueError("the optimizer holds no trained parameter of this model")
            with _optimizer_restored(update):
                update.step()
        elif callable(update):
            update()
        else:
            raise TypeError(
                "update must be an optimizer, a callable, or a mapping of parameter names to tensors, "
                f"not {type(update).__name__}"
            )
        return [p.detach().clone() for p in parameters.values()]


def _from_mapping(parameters: Mapping[str, Tensor], after: Mapping[str, Tensor], known: set[str]) -> list[Tensor]:
    if missing := [name for name in parameters if name not in after]:
        raise ValueError(f"update lacks the parameters {missing}")
    if unknown := [name for name in after if name not in known]:
        raise ValueError(f"update has {unknown}, which the model does not have")
    for name, parameter in parameters.items():
        if after[name].shape != parameter.shape:
            shapes = f"{tuple(after[name].shape)}, not {tuple(parameter.shape)}"
            raise ValueError(f"update has {name} of shape {shapes}")
    return [after[name].detach().to(p.device, p.dtype, copy=True) for name, p in parameters.items()]


@contextmanager
def _optimizer_restored(optimizer: Optimizer) -> Iterator[None]:
    """Let the optimizer step on copies of its state, and put the original back."""
    state = dict(optimizer.state)
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.state.update({p: copy.deepcopy(s) for p, s in state.items()})
        for group, saved in zip(optimizer.param_groups, options, strict=True):
            group.update(copy.deepcopy(saved))
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, saved in zip(optimizer.param_groups, options, strict=True):
            for name in group.keys() - saved.keys() - {"params"}:
                del group[name]
            group.update(saved)
