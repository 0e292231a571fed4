"""Classify pictures with a trained run: `python -m cifarbn.predict RUN picture.png ...`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from cifarbn.cli.command_line import plain_errors
from cifarbn.data.images import SIDE
from cifarbn.errors import UserError
from cifarbn.runs.checkpoints import verify
from cifarbn.runs.durable import check_ordinary
from cifarbn.runs.load import build, check_prefixes
from cifarbn.runs.schema import CHECKPOINT, RESULT, Status
from cifarbn.runs.untrusted import clean, stored_result

AT_ONCE = 64  # pictures that are read and classified together: memory does not grow with their number
PREFIX = "net."  # of the net's weights in the LightningModule's state_dict


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
    only those are built that `cifarbn.runs.load` allows.

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
            net = build(config["model"], trust)
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


def read_picture(file: Path) -> Tensor:
    """Any picture file as uint8 (3, 32, 32).

    It is turned as its camera says, laid on white where it is transparent, scaled until its shorter side has 32
    pixels, and cropped to the centre.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        check_ordinary(file)
        with Image.open(file) as image:
            if image.mode in ("I", "F"):
                raise ValueError("its pixels have 32 bits a channel: save it with 8 or 16")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # of which Pillow would cut off all that is above 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return pil_to_tensor(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's readers and their libraries raise whatever a damaged file leads them to
        reason = clean(str(error) or type(error).__name__)
        raise UserError(
            f"cannot read {clean(str(file))} as a picture ({reason}); any format that Pillow knows will do"
        ) from error


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
        probabilities = trained.probabilities(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    except Exception as error:  # whatever the layers make of an input that they are not for
        reason = clean(str(error).split("\n")[0])
        raise UserError(
            f"the model of {folder} takes no picture of 3x{SIDE}x{SIDE} ({reason}); name another run"
        ) from error
    shape = tuple(probabilities.shape)
    if not probabilities.isfinite().all():
        raise UserError(f"the model of {folder} gives no finite numbers for an image; name another run")
    if shape != (1, len(trained.classes)):
        raise UserError(f"the model of {folder} gives {shape[1:]} outputs for {len(trained.classes)} classes")


def table(files: Sequence[Path], trained: TrainedNet, top: int, failed: Callable[[UserError], None]) -> Iterator[str]:
    """The `top` most probable classes of each file, most probable first, line by line as pictures are classified.

    A picture that cannot be read has no line: `failed` is called with what is wrong, and the others go on.
    """
    names, classes = [clean(str(file)) for file in files], trained.classes
    width, wide = max(map(len, [*names, "picture"])), max(map(len, [*classes, "class"]))
    yield f"{'picture':{width}}  {'class':{wide}}  probability"
    for first in range(0, len(files), AT_ONCE):
        pictures = []
        for name, file in zip(names[first:], files[first : first + AT_ONCE], strict=False):
            try:
                pictures.append((name, read_picture(file)))
            except UserError as error:
                failed(error)
        if not pictures:
            continue
        chances = trained.probabilities(torch.stack([pixels for _, pixels in pictures]))
        for (name, _), row in zip(pictures, chances, strict=True):
            values, labels = row.topk(min(top, len(classes)))
            for value, label in zip(values.tolist(), labels.tolist(), strict=True):
                yield f"{name:{width}}  {classes[label]:{wide}}  {value:10.2%}"
                name = ""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cifarbn.predict", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, under multirun_outputs/")
    parser.add_argument("pictures", type=Path, nargs="+", help="picture files of any format and size")
    parser.add_argument("--top", type=int, default=3, help="how many classes to show for each (default 3)")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="build the run's model from this package of your own as well; may be given several times",
    )
    options = parser.parse_args(arguments)
    with plain_errors():
        if options.top < 1:
            raise UserError(f"--top must be at least 1, not {options.top}")
        trained = load_run(options.run, check_prefixes(options.trust))
        print(f"pictures scaled and cropped at the centre to {SIDE}x{SIDE} pixels, RGB")
        failures: list[UserError] = []

        def failed(error: UserError) -> None:
            failures.append(error)
            print(f"error: {error}", file=sys.stderr)

        for line in table(options.pictures, trained, options.top, failed):
            print(line)
        if failures:
            sys.exit(1)


if __name__ == "__main__":
    main()
