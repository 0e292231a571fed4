"""Load a run's model and weights from its folder, restricted to an allow-list of classes.

`hydra.utils.instantiate` imports and calls any object that a `_target_` names. A config that the user composes may do
that; a config in a `result.json` may come from anyone, so it is treated as data and never executed.
"""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from hydra.utils import get_object, instantiate
from torch import Tensor, nn

from cifarbn.data import Augmentation
from cifarbn.errors import UserError
from cifarbn.runs.checkpoints import verify
from cifarbn.runs.old_names import modern_config, modern_target
from cifarbn.runs.schema import CHECKPOINT, RESULT, Status
from cifarbn.runs.transform import Transform
from cifarbn.runs.untrusted import clean, stored_result

PACKAGES = ("cifarbn.models", "cifarbn.data", "torch.nn", "torchvision.models")
KINDS = (nn.Module, pl.LightningDataModule, Augmentation)
DIRECTIVES = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
BUILDERS = ("cifarbn.models.external.torchvision_model", "cifarbn.models.external.timm_model")
PREFIX = "net."  # of the model's weights in the state_dict of the LightningModule


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """The model of a finished run, with the transform of its images and the names of its classes.

    Attributes:
        model: a plain torch module with torch's own layers, in eval mode, on the CPU, in float32.
        transform: converts a PIL image or a uint8 tensor (3, H, W) to an input (3, H, W) of the model.
        classes: the name of each output.
        config: the config that the run was trained with.
    """

    model: nn.Module
    transform: Transform
    classes: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> str:
        """What `probabilities` returns: "probability" if the loss is cross entropy, otherwise "softmax".

        A model trained with MSE outputs about 0 or 1 per class, whose softmax is nearly flat even for a confident
        prediction.
        """
        loss = self.config.get("loss")
        target = loss.get("_target_") if isinstance(loss, Mapping) else "torch.nn.CrossEntropyLoss"  # the default
        return "probability" if str(target).endswith((".CrossEntropyLoss", ".cross_entropy")) else "softmax"

    def prediction(self, probabilities: Tensor) -> str:
        """Return the predicted class and its score as text, for the probabilities (C,) of one image."""
        confidence, label = probabilities.max(0)
        return f"predicted {self.classes[int(label)]} ({self.score} {float(confidence):.0%})"

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the softmax (N, C) of the logits for uint8 images (N, 3, H, W); see `score`."""
        return self.model(self.transform.normalise(pixels)).softmax(1)


def load(run: str | Path, trust: Sequence[str] = ()) -> TrainedModel:
    """Load the trained model of a run folder, ready for inference, `torch.export`, ONNX or further training in torch.

    Example:
        >>> trained = cifarbn.load("multirun_outputs/train/model=vgg_a")  # doctest: +SKIP
        >>> trained.model(trained.transform(PIL.Image.open("cat.jpg"))[None]).argmax()  # doctest: +SKIP

    Args:
        run: the folder of a finished run.
        trust: your own packages; only these and this package's, torch's and torchvision's models are instantiated.

    Raises:
        UserError: if the run cannot be loaded; see `load_run`.
    """
    return load_run(Path(run), check_prefixes(trust))


def load_run(folder: Path, trust: Sequence[str] = ()) -> TrainedModel:
    """Rebuild the model of a finished run from its config and load its weights.

    Nothing in the folder is executed: the checkpoint is read as plain data, and only classes on this module's
    allow-list are instantiated.

    Args:
        folder: the run folder.
        trust: the user's own packages, whose classes may be instantiated too.

    Raises:
        UserError: if the folder is not a run folder, the run is not finished, its checkpoint is missing, damaged or of
            another model, or its config names a class that is not allowed.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file; use its run folder, {folder.parent}")
    try:
        result = stored_result(folder)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    if result is None:
        raise UserError(f"{folder} is not a run folder: it has no {RESULT}. Use one under multirun_outputs/")
    if result["status"] == Status.DIVERGED:
        raise UserError(
            f"the run in {folder} diverged ({result.get('error')}): it has no usable model; use another run"
        )
    if result["status"] != Status.DONE:
        raise UserError(
            f"the run in {folder} is not finished ({result['status']}): run the command that started it again, or use "
            "another run"
        )
    data = result.get("data", {})
    if not data.get("classes"):
        raise UserError(
            f"the run in {folder} has no class names (its data is {data.get('name', 'unknown')}): only a run of "
            "`python -m cifarbn.train` that classifies images has a model to load"
        )
    if "mean" not in data or "std" not in data:
        raise UserError(
            f"{folder}: {RESULT} lacks the images' mean and std; use another run. The describe() of a data module of "
            "your own must return `mean`, `std` and `image_size`"
        )
    model = build_model(result["config"], trust)
    _load_weights(model, folder / CHECKPOINT)
    height, width = data.get("image_size", (32, 32))
    transform = Transform(tuple(data["mean"]), tuple(data["std"]), (height, width))
    trained = TrainedModel(model.eval(), transform, tuple(data["classes"]), result["config"])
    _try_out(trained, folder)
    return trained


def build_model(config: Mapping[str, Any], trust: Sequence[str] = ()) -> nn.Module:
    """Build the model that a run's config describes, with initial weights; torch's random generator is unchanged.

    Raises:
        UserError: if the config names a class that is not allowed, or this version of the code cannot build it.
    """
    if "model" not in config:
        raise UserError("cannot build the run's model: its config has none")
    try:
        with torch.random.fork_rng(devices=[]):
            model = build(modern_config(config)["model"], trust)
    except UserError as error:
        raise UserError(f"cannot build the run's model: {error}") from error
    except Exception as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(
            f"cannot build the run's model ({clean(reason)}): its config belongs to another version of cifarbn; see "
            f"versions and git_commit in {RESULT}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError("cannot build the run's model: its config does not describe an nn.Module")
    return model


def build(config: Any, trust: Sequence[str] = (), **arguments: Any) -> Any:
    """Instantiate a stored config, after checking all of it.

    Args:
        config: config of a model or a data module, as in result.json.
        trust: the user's own packages or modules, whose classes may be instantiated too.
        **arguments: further arguments of the constructor, supplied by this program.

    Raises:
        UserError: if any part of it is not allowed; nothing is instantiated then.
    """
    return instantiate(checked(config, trust), **arguments)


def checked(config: Any, trust: Sequence[str] = ()) -> Any:
    """Return the config if it names only allowed targets, without arguments that would download weights.

    Only allowed modules are imported, and nothing is instantiated. `${` in a string is an error, since OmegaConf would
    compute the value after this check.

    Raises:
        UserError: if a target or a key is not allowed.
    """
    if isinstance(config, str) and "${" in config:
        raise UserError(f"its config holds the interpolation {_brief(config)}, but stored configs hold only values")
    if isinstance(config, (list, tuple)):
        return [checked(item, trust) for item in config]
    if not isinstance(config, Mapping):
        return config
    for key in config:
        if "${" in str(key) or (str(key).startswith("_") and key not in DIRECTIVES):
            raise UserError(f"its config holds the key {_brief(key)}, but only {', '.join(DIRECTIVES)} are allowed")
    target = modern_target(config.get("_target_"))
    target_object = target_class(target, trust) if "_target_" in config else None
    node = {key: checked(value, trust) for key, value in config.items() if key != "_target_"}
    if target_object is None:
        return node
    if not isinstance(target_object, type):
        node = _without_weights(target_object, node)
    return {"_target_": target, **node}


def target_class(target: Any, trust: Sequence[str]) -> Any:
    """Return the class, or torchvision's model builder, that a target names; only allowed modules are imported.

    Raises:
        UserError: if the target is not allowed or does not exist.
    """
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise _not_allowed(target)
    module, _, name = target.rpartition(".")
    if not _within(module, (*PACKAGES, *trust)):
        raise _not_allowed(target)
    try:
        # Import the module by its name: `cifarbn.data.cifar10.pickle` is an attribute, but not a module.
        target_object = getattr(importlib.import_module(module), name)
        same = get_object(target) is target_object
    except Exception as error:  # importing a module of the user's own may raise anything
        reason = str(error).split("\n")[0]
        raise UserError(
            f"there is no {_brief(target)} ({type(error).__name__}: {_brief(reason)}). If it is your own class, run "
            f"this command where it can be imported; otherwise the run belongs to another version of cifarbn, see "
            f"versions and git_commit in {RESULT}"
        ) from error
    if not same or not _allowed(target_object, (*PACKAGES, *trust)):
        raise _not_allowed(target)
    return target_object


def check_prefixes(trust: Sequence[str]) -> tuple[str, ...]:
    """Return the packages that the user passed with `--trust`.

    Raises:
        UserError: if one is not the dotted name of a package or module.
    """
    for prefix in trust:
        if not all(part.isidentifier() for part in prefix.split(".")):
            raise UserError(f"--trust takes the name of a Python package such as my_models, not {prefix!r}")
    return tuple(trust)


def _allowed(target: Any, packages: Sequence[str]) -> bool:
    """Return whether an object is a model or data class, or a torchvision model builder, defined in these packages."""
    module = getattr(target, "__module__", None)
    if not isinstance(module, str) or not _within(module, packages):
        return False
    if isinstance(target, type):
        # A GraphModule compiles the text of its graph.
        return issubclass(target, KINDS) and not issubclass(target, torch.fx.GraphModule)
    name = getattr(target, "__name__", "")
    if f"{module}.{name}" in BUILDERS:
        return True
    return name in torchvision.models.list_models() and torchvision.models.get_model_builder(name) is target


def _without_weights(builder: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a torchvision model builder without those that would download weights.

    The weights come from the run's checkpoint in any case. Positional arguments are an error, since a builder may take
    them for `pretrained`.
    """
    if "_args_" in node or node.get("_partial_"):
        raise UserError(f"its config calls {builder.__module__}.{builder.__name__} with _args_ or _partial_")
    kept = {key: value for key, value in node.items() if not key.startswith(("weights", "pretrained"))}
    return kept | {key: None for key in inspect.signature(builder).parameters if key.startswith("weights")}


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _not_allowed(target: Any) -> UserError:
    return UserError(
        f"its config names {_brief(target)}, but only the models and data of {', '.join(PACKAGES)} are loaded. "
        "If it is a class of your own, add --trust PACKAGE with its package"
    )


def _brief(value: Any) -> str:
    """Return at most 100 characters of a value from a config, in printable ASCII."""
    text = value if isinstance(value, str) else ascii(value)
    return re.sub(r"[^ -~]", "?", text[:100])


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the model's `state_dict` in a checkpoint, which is read as plain data.

    Raises:
        UserError: if the checkpoint is missing or damaged.
    """
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is missing: train again with resume=false, or use another run")
    verify(checkpoint)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        return {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    except Exception as error:  # a damaged file may raise anything
        reason = clean(str(error).strip().split("\n")[0])
        raise UserError(
            f"{checkpoint} is damaged ({type(error).__name__}: {reason}). Train again with resume=false, or use "
            "another run"
        ) from error


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    weights = read_weights(checkpoint)
    try:
        model.load_state_dict(weights)
    except Exception as error:  # such as weights that are not tensors
        reason = clean(str(error).strip().split("\n")[0])
        raise UserError(
            f"{checkpoint} is damaged, or belongs to another model than {RESULT} describes ({type(error).__name__}: "
            f"{reason}). Train again with resume=false, or use another run"
        ) from error


def _try_out(trained: TrainedModel, folder: Path) -> None:
    """Classify a black image, since the model in a result.json need not fit the images and classes in it."""
    height, width = trained.transform.image_size
    try:
        probabilities = trained.probabilities(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    except Exception as error:  # layers raise anything for an input of the wrong shape
        reason = clean(str(error).split("\n")[0])
        raise UserError(
            f"the model of {folder} does not accept images of 3x{height}x{width} ({reason}); use another run"
        ) from error
    shape = tuple(probabilities.shape)
    if not probabilities.isfinite().all():
        raise UserError(f"the model of {folder} returns numbers that are not finite; use another run")
    if shape != (1, len(trained.classes)):
        raise UserError(
            f"the model of {folder} has {shape[1:]} outputs for {len(trained.classes)} classes; use another run"
        )
