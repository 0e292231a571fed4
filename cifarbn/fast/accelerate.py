"""The one place where speed touches a model: lay it out for the device, and give its layers this package's code."""

import torch
from torch import nn

from cifarbn.fast.batch_norm import FusedBatchNorm2d
from cifarbn.fast.blocks import FusedSequential, fused_block, plain_block
from cifarbn.fast.convolution import GemmConv2d
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.max_pool import FastMaxPool2d
from cifarbn.fast.training_step import contiguous_inputs

FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.Conv2d: GemmConv2d,
    nn.MaxPool2d: FastMaxPool2d,
    nn.Sequential: FusedSequential,
}
PLAIN = {fast: plain for plain, fast in FAST.items()}


def accelerate(model: nn.Module, hardware: Hardware) -> nn.Module:
    """Make a model as fast as this hardware allows, in place, and return it.

    It keeps its modules, parameters, hooks and `state_dict`. See `use_fast_layers`, which is applied if
    `hardware.kernels`; otherwise the model has torch's own layers. The process is set up too: how it uses the GPU's
    units and keeps freed memory.

    Args:
        model: of this package, torchvision or the user's own.
        hardware: what to compute on, and how.
    """
    hardware.set_up_process()
    if hardware.channels_last:
        model.to(memory_format=torch.channels_last)
    elif contiguous_inputs not in model._forward_pre_hooks.values():
        # A convolution goes by the layout of its weights or of its inputs, and images come channels_last.
        model.register_forward_pre_hook(contiguous_inputs)
    (use_fast_layers if hardware.kernels else use_torch_layers)(model)
    return model


def use_fast_layers(model: nn.Module) -> None:
    """Let layers compute by this package's code where it is faster than torch's, which is in bf16 on a CPU.

    Each layer stays the object that it is and becomes a subclass of its class: convolutions `GemmConv2d`, 2x2 max pools
    `FastMaxPool2d`, batch norms `FusedBatchNorm2d`; an `nn.Sequential` and the residual blocks of this package compute
    a batch norm together with the residual add and ReLU behind it, unless one of these has a hook. Layers of any other
    class, a subclass of the user's own included, are left alone.
    """
    for module in model.modules():
        if type(module) is nn.MaxPool2d and not FastMaxPool2d.suits(module):
            continue
        if fast := FAST.get(type(module)) or fused_block(type(module)):
            module.__class__ = fast


def use_torch_layers(model: nn.Module) -> None:
    """Undo `use_fast_layers`."""
    for module in model.modules():
        if plain := PLAIN.get(type(module)) or plain_block(type(module)):
            module.__class__ = plain
