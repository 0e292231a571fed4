"""Load a run's model and weights from its folder, by an allow-list: a folder from elsewhere is data, not a program.

`hydra.utils.instantiate` imports and calls whatever a `_target_` names. A config that a user composes is theirs; one
that is read from a result.json may be anybody's.
"""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from hydra.utils import get_object, instantiate
from torch import Tensor, nn

from cifarbn.data import Augmentation
from cifarbn.data.images import IMAGE_SIZE
from cifarbn.errors import UserError
from cifarbn.runs.checkpoints import verify
from cifarbn.runs.identity import completed, todays_target
from cifarbn.runs.schema import CHECKPOINT, RESULT, Status
from cifarbn.runs.untrusted import clean, stored_result

PACKAGES = ("cifarbn.models", "cifarbn.data", "torch.nn", "torchvision.models")
KINDS = (nn.Module, pl.LightningDataModule, Augmentation)
DIRECTIVES = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
PREFIX = "net."  # of the model's weights in the LightningModule's state_dict


@dataclass(frozen=True, eq=False)
class TrainedNet:
    """The net of a finished run, with what it must know of the pictures it was trained on.

    Attributes:
        net: in eval mode, on the CPU, in float32.
        mean, std: per channel, in units of 255.
        classes: the name of each output.
    """

    net: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """The softmax (N, C) of the outputs for uint8 pictures (N, 3, 32, 32).

        These are probabilities as far as the loss made them so: cross entropy does. A net that was trained with MSE
        gives each class about 0 or 1, whose softmax is flat although the net may be sure.
        """
        return self.net(self.normalised(pixels)).softmax(1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the net takes in place of uint8 pictures (N, 3, 32, 32): float32, mean 0 and std 1 in each channel."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


def load_run(folder: Path, trust: Sequence[str] = ()) -> TrainedNet:
    """Rebuild the net of a finished run from its config and load its weights.

    Nothing in the folder is executed: the checkpoint is read as plain data, and of the classes that the config names
    only those are built that this module allows.

    Args:
        folder: of the run.
        trust: packages of the user's own, whose classes may be built too.

    Raises:
        UserError: where there is no run, it is not finished, its checkpoint is missing, damaged or of another net, or
            its config names something else than a trusted network.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: name the run folder, {folder.parent}")
    try:
        result = stored_result(folder)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    if result is None:
        raise UserError(f"{folder} is not a run folder: it has no {RESULT}. Name one under multirun_outputs/")
    if result["status"] == Status.DIVERGED:
        raise UserError(f"the run in {folder} diverged ({result.get('error')}): it has no net to ask; name another run")
    if result["status"] != Status.DONE:
        raise UserError(
            f"the run in {folder} is not finished ({result['status']}): finish it with the command that began it, "
            "or name another run"
        )
    facts = result.get("data", {})
    if not facts.get("classes"):
        raise UserError(f"the run in {folder} does not classify pictures (its data is {facts.get('name', 'unknown')})")
    if "mean" not in facts or "std" not in facts:
        raise UserError(f"{folder}: {RESULT} does not say the mean and std of the pictures; name another run")
    net = build_net(result["config"], trust)
    _load_weights(net, folder / CHECKPOINT)
    trained = TrainedNet(net.eval(), tuple(facts["mean"]), tuple(facts["std"]), tuple(facts["classes"]))
    _try_out(trained, folder)
    return trained


def build_net(config: Mapping[str, Any], trust: Sequence[str] = ()) -> nn.Module:
    """The net that a run's config describes, with fresh weights, leaving torch's generator as it was.

    Raises:
        UserError: where it names something else than a trusted network, or this version of the code cannot build it.
    """
    if "model" not in config:
        raise UserError("cannot build the run's model: its config has none")
    try:
        with torch.random.fork_rng(devices=[]):
            net = build(completed(config)["model"], trust)
    except UserError as error:
        raise UserError(f"cannot build the run's model: {error}") from error
    except Exception as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(
            f"cannot build the run's model ({clean(reason)}): its config is of another version of this program; "
            f"{RESULT} tells which under versions and git_commit"
        ) from error
    if not isinstance(net, nn.Module):
        raise UserError("cannot build the run's model: its config describes no network")
    return net


def build(config: Any, trust: Sequence[str] = (), **arguments: Any) -> Any:
    """Instantiate a stored config, after all of it was checked.

    Args:
        config: of a model or a data module, as result.json holds it.
        trust: packages or modules of the user's own, whose classes may be built as well.
        **arguments: further arguments of the constructor, from the program itself.

    Raises:
        UserError: if anything in it is not allowed. Nothing is built then.
    """
    return instantiate(checked(config, trust), **arguments)


def checked(config: Any, trust: Sequence[str] = ()) -> Any:
    """Return the config, which holds only allowed targets; what would download weights is taken out.

    Only allowed names are imported, and nothing is built. In strings, `${` is refused: it would make OmegaConf compute
    a value after this check.

    Raises:
        UserError: if a target or a key is not allowed.
    """
    if isinstance(config, str) and "${" in config:
        raise UserError(f"its config holds the interpolation {_brief(config)}; a stored config has only values")
    if isinstance(config, (list, tuple)):
        return [checked(item, trust) for item in config]
    if not isinstance(config, Mapping):
        return config
    for key in config:
        if "${" in str(key) or (str(key).startswith("_") and key not in DIRECTIVES):
            raise UserError(f"its config holds the key {_brief(key)}, which is none of {', '.join(DIRECTIVES)}")
    target = todays_target(config.get("_target_"))
    found = target_class(target, trust) if "_target_" in config else None
    node = {key: checked(value, trust) for key, value in config.items() if key != "_target_"}
    if found is None:
        return node
    if not isinstance(found, type):
        node = _without_weights(found, node)
    return {"_target_": target, **node}


def target_class(target: Any, trust: Sequence[str]) -> Any:
    """Return the class, or torchvision's builder, that a target names; it is imported only if its name is allowed.

    Raises:
        UserError: if it is not allowed, or there is no such class.
    """
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise _refusal(target)
    module, _, name = target.rpartition(".")
    if not _within(module, (*PACKAGES, *trust)):
        raise _refusal(target)
    try:
        # Not attribute by attribute: `cifarbn.data.cifar10.pickle` is an attribute, and not a module of that name.
        found = getattr(importlib.import_module(module), name)
        same = get_object(target) is found
    except Exception as error:  # whatever a module of the user's own does when it is imported
        reason = str(error).split("\n")[0]
        raise UserError(
            f"there is no {_brief(target)} ({type(error).__name__}: {_brief(reason)}). If it is your own, run this "
            f"where it can be imported; else the run is of another version, which {RESULT} tells under versions and "
            "git_commit"
        ) from error
    if not same or not _allowed(found, (*PACKAGES, *trust)):
        raise _refusal(target)
    return found


def check_prefixes(trust: Sequence[str]) -> tuple[str, ...]:
    """Return the packages that a user named after `--trust`.

    Raises:
        UserError: if one is not the dotted name of a package or module.
    """
    for prefix in trust:
        if not all(part.isidentifier() for part in prefix.split(".")):
            raise UserError(f"--trust takes the name of a Python package such as my_nets, not {prefix!r}")
    return tuple(trust)


def _allowed(found: Any, packages: Sequence[str]) -> bool:
    """Whether it is a class of ours, torch's or the user's own, or a builder of torchvision's, where it is defined."""
    home = getattr(found, "__module__", None)
    if not isinstance(home, str) or not _within(home, packages):
        return False
    if isinstance(found, type):
        # A GraphModule compiles the text of its graph.
        return issubclass(found, KINDS) and not issubclass(found, torch.fx.GraphModule)
    name = getattr(found, "__name__", "")
    return name in torchvision.models.list_models() and torchvision.models.get_model_builder(name) is found


def _without_weights(builder: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one of torchvision's builders, such that it downloads nothing.

    The weights are those of the run's checkpoint, whatever the training began with. Positional arguments, which a
    builder of torchvision's may take for `pretrained`, are refused.
    """
    if "_args_" in node or node.get("_partial_"):
        raise UserError(f"its config calls {builder.__module__}.{builder.__name__} with _args_ or _partial_")
    kept = {key: value for key, value in node.items() if not key.startswith(("weights", "pretrained"))}
    return kept | {key: None for key in inspect.signature(builder).parameters if key.startswith("weights")}


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _refusal(target: Any) -> UserError:
    return UserError(
        f"its config names {_brief(target)}, and only the networks and data of {', '.join(PACKAGES)} are built. "
        "If it is a class of your own, name its package with --trust PACKAGE"
    )


def _brief(value: Any) -> str:
    """A value from a config, at most 100 characters of it, in printable ASCII."""
    text = value if isinstance(value, str) else ascii(value)
    return re.sub(r"[^ -~]", "?", text[:100])


def _load_weights(net: nn.Module, checkpoint: Path) -> None:
    if not checkpoint.exists():
        raise UserError(
            f"{checkpoint} is missing, so the weights are lost: train again with resume=false, or name another run"
        )
    verify(checkpoint)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        weights = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        net.load_state_dict(weights)
    except Exception as error:  # whatever a damaged file may lead to
        reason = clean(str(error).strip().split("\n")[0])
        raise UserError(
            f"{checkpoint} is damaged, or of another net than {RESULT} describes ({type(error).__name__}: {reason}). "
            "Train again with resume=false, or name another run"
        ) from error


def _try_out(trained: TrainedNet, folder: Path) -> None:
    """Classify a black picture: a net need not fit the pictures and classes that the result names beside it."""
    try:
        probabilities = trained.probabilities(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8))
    except Exception as error:  # whatever the layers make of an input that they are not for
        reason = clean(str(error).split("\n")[0])
        raise UserError(
            f"the model of {folder} takes no picture of 3x{IMAGE_SIZE}x{IMAGE_SIZE} ({reason}); name another run"
        ) from error
    shape = tuple(probabilities.shape)
    if not probabilities.isfinite().all():
        raise UserError(f"the model of {folder} gives no finite numbers for an image; name another run")
    if shape != (1, len(trained.classes)):
        raise UserError(f"the model of {folder} gives {shape[1:]} outputs for {len(trained.classes)} classes")
