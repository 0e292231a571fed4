"""Models of torchvision and timm by name, with an optional stem for small images."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torchvision
from torch import nn

from cifarbn.errors import UserError

# (convolution, pool) of the stems that `use_small_stem` can replace; the first pair that a model has is taken.
STEMS: tuple[tuple[str, str | None], ...] = (
    ("conv1", "maxpool"),  # ResNet, ResNeXt, Wide ResNet
    ("conv1.0", "maxpool"),  # ShuffleNet; timm's ResNets with a stem of three convolutions
    ("features.conv0", "features.pool0"),  # DenseNet
    ("stem.conv", "stem.pool"),  # timm's ResNet v2
    ("stem.conv", None),  # timm's RegNet
    ("stem.0", None),  # torchvision's RegNet
    ("conv_stem", None),  # timm's EfficientNet and MobileNet
    ("features.0.0", None),  # torchvision's EfficientNet and MobileNet
)
RESERVED = ("weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def torchvision_model(
    name: str, *, num_classes: int = 10, stem: str = "default", pretrained: bool = False, **arguments: Any
) -> nn.Module:
    """Return a classification model of torchvision.

    Trap: pretrained weights expect images normalised with ImageNet's mean and std, and large ones.

    Args:
        name: a name in `torchvision.models.list_models()`, such as "resnet18".
        num_classes: number of outputs.
        stem: "default", or "small" for a 3x3 convolution of stride 1 without a max pool, see `use_small_stem`.
        pretrained: whether to download ImageNet weights. The last linear layer, and a small stem, start from scratch.
        **arguments: more arguments of the model, such as `dropout`.

    Raises:
        UserError: If there is no such model, its stem cannot be replaced, or its weights cannot be downloaded.
    """
    _check_name("torchvision", name, torchvision.models.list_models(module=torchvision.models))
    _check_arguments(arguments)
    if not pretrained:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)
        return _with_stem(model, name, stem)
    model = _download("torchvision", name, lambda: torchvision.models.get_model(name, weights="DEFAULT", **arguments))
    linear = [(layer, module) for layer, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"torchvision's {name} has no linear layer to replace; use model.pretrained=false")
    last, module = linear[-1]
    model.set_submodule(last, nn.Linear(module.in_features, num_classes))
    return _with_stem(model, name, stem)


def timm_model(
    name: str, *, num_classes: int = 10, stem: str = "default", pretrained: bool = False, **arguments: Any
) -> nn.Module:
    """Return a classification model of timm.

    Trap: many models expect a fixed image size; for vision transformers, pass `img_size` and a small `patch_size`.

    Args:
        name: a name in `timm.list_models()`, such as "resnet18", optionally with a tag, such as "resnet18.a1_in1k".
        num_classes: number of outputs.
        stem: "default", or "small" for a 3x3 convolution of stride 1 without a max pool, see `use_small_stem`.
        pretrained: whether to download pretrained weights. The last layer, and a small stem, start from scratch.
        **arguments: more arguments of the model, such as `drop_rate`.

    Raises:
        UserError: If timm is not installed, there is no such model, its stem cannot be replaced, or its weights cannot
            be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("model=timm needs the package timm; install it with pip install 'cifarbn[timm]'") from error

    # Only registered names: timm would download a name such as "hf-hub:user/model" together with its config.
    _check_name("timm", name, timm.list_models())
    _check_arguments(arguments)
    options = {"num_classes": num_classes, **arguments}
    if not pretrained:
        return _with_stem(timm.create_model(name, pretrained=False, **options), name, stem)
    model = _download("timm", name, lambda: timm.create_model(name, pretrained=True, **options))
    return _with_stem(model, name, stem)


def use_small_stem(model: nn.Module) -> bool:
    """Replace the stem of a model for large images by a 3x3 convolution of stride 1 without a max pool, in place.

    Returns:
        Whether the model has a stem that can be replaced: a 3x3 or 7x7 convolution of stride 2 with a name in `STEMS`.
    """
    modules = dict(model.named_modules())
    for conv_name, pool_name in STEMS:
        conv = modules.get(conv_name)
        if not isinstance(conv, nn.Conv2d) or conv.stride != (2, 2) or (pool_name and pool_name not in modules):
            continue
        options: dict[str, Any] = {"stride": 1, "padding": 1, "bias": conv.bias is not None}
        small = type(conv)(conv.in_channels, conv.out_channels, 3, **options)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(conv_name, small)
        if pool_name:
            model.set_submodule(pool_name, nn.Identity())
        return True
    return False


def _with_stem(model: nn.Module, name: str, stem: str) -> nn.Module:
    if stem not in ("default", "small"):
        raise UserError(f"stem must be default or small, not {stem!r}")
    if stem == "small" and not use_small_stem(model):
        raise UserError(
            f"{name} has no stem that can be replaced (a convolution of stride 2 at the input); use model.stem=default"
        )
    return model


def _check_name(library: str, name: str, names: Sequence[str]) -> None:
    architecture = str(name).partition(".")[0] if library == "timm" else name
    if architecture not in names:
        close = difflib.get_close_matches(str(architecture), names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"{library}.list_models() shows all names"
        hint = hint.replace("torchvision.list_models", "torchvision.models.list_models")
        raise UserError(f"model.name={name}: {library} has no model of this name; {hint}")


def _check_arguments(arguments: dict[str, Any]) -> None:
    if reserved := sorted(arguments.keys() & set(RESERVED)):
        raise UserError(f"model.{reserved[0]} cannot be set; use model.pretrained=true for pretrained weights")


def _download(library: str, name: str, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"model.pretrained=true: the weights of {library}'s {name} cannot be loaded "
            f"({type(error).__name__}: {reason}); use model.pretrained=false, or check the network"
        ) from error
