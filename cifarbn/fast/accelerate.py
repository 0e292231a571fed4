"""Prepare a model for the device: memory format and accelerated layers."""

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
    """Prepare a model for fast training on this hardware, in place, and return it.

    Modules, parameters, hooks and `state_dict` are kept. If `hardware.kernels` is true, layers are accelerated by
    `use_fast_layers`; otherwise the model uses torch's own layers. Also configures the process: TF32 and cuDNN on a
    GPU, memory allocation on a CPU.

    Args:
        model: any model, such as one of this package, of torchvision or the user's own.
        hardware: the hardware settings.
    """
    hardware.set_up_process()
    if hardware.channels_last:
        model.to(memory_format=torch.channels_last)
    elif contiguous_inputs not in model._forward_pre_hooks.values():
        # Images are channels_last, and a convolution would use the memory format of its inputs.
        model.register_forward_pre_hook(contiguous_inputs)
    (use_fast_layers if hardware.kernels else use_torch_layers)(model)
    return model


def use_fast_layers(model: nn.Module) -> None:
    """Switch layers to implementations that are faster than torch's in bf16 and fp32 on a CPU, in place.

    Each layer remains the same object; only its class changes, to a subclass: `nn.Conv2d` to `GemmConv2d`, 2x2
    `nn.MaxPool2d` to `FastMaxPool2d`, `nn.BatchNorm2d` to `FusedBatchNorm2d`. `nn.Sequential` and this package's
    residual blocks fuse a batch norm with the residual add and ReLU that follow it, unless one of these has a hook.
    Layers of other classes, including the user's own subclasses of the above, are not changed.
    """
    for module in model.modules():
        if type(module) is nn.MaxPool2d and not FastMaxPool2d.suits(module):
            continue
        if fast := FAST.get(type(module)) or fused_block(type(module)):
            module.__class__ = fast


def use_torch_layers(model: nn.Module) -> None:
    """Switch all layers back to torch's own, undoing `use_fast_layers`."""
    for module in model.modules():
        if plain := PLAIN.get(type(module)) or plain_block(type(module)):
            module.__class__ = plain
