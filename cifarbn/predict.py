"""Classify pictures with a trained run: `python -m cifarbn.predict RUN picture.png ...`."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from cifarbn.checkpoints import verify
from cifarbn.command_line import plain_errors
from cifarbn.data.images import SIDE
from cifarbn.errors import UserError
from cifarbn.runs import CHECKPOINT, RESULT, read_result

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


def load_run(folder: Path) -> TrainedNet:
    """Rebuild the net of a finished run from its config and load its weights.

    The checkpoint is read as plain data. The config names the class to build, whose code is run: trust a run folder
    from elsewhere as you would trust a program.

    Raises:
        UserError: where there is no run, it is not finished, or its checkpoint is missing, damaged or of another net.
    """
    folder = Path(folder)
    result = read_result(folder)
    if result is None:
        raise UserError(f"{folder} is not a run folder: it has no {RESULT}. Name one under multirun_outputs/")
    if result.get("status") == "diverged":
        raise UserError(f"the run in {folder} diverged ({result.get('error')}): it has no net to ask; name another run")
    if result.get("status") != "done":
        raise UserError(
            f"the run in {folder} is not finished ({result.get('status')}): finish it with the command that began it, "
            "or name another run"
        )
    facts = result.get("data", {})
    if not facts.get("classes"):
        raise UserError(f"the run in {folder} does not classify pictures (its data is {facts.get('name', 'unknown')})")
    net = build_net(result["config"])
    _load_weights(net, folder / CHECKPOINT)
    return TrainedNet(net.eval(), tuple(facts["mean"]), tuple(facts["std"]), tuple(facts["classes"]))


def build_net(config: Mapping[str, Any]) -> nn.Module:
    """The net that a run's config describes, with fresh weights, leaving torch's generator as it was.

    Raises:
        UserError: where this version of the code cannot build it.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return instantiate(config["model"])
    except Exception as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(
            f"cannot build the run's model ({reason}): its config is of another version of this program; "
            f"{RESULT} tells which under versions and git_commit"
        ) from error


def read_picture(file: Path) -> Tensor:
    """Any picture file as uint8 (3, 32, 32).

    It is turned as its camera says, laid on white where it is transparent, scaled until its shorter side has 32
    pixels, and cropped to the centre.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        with Image.open(file) as image:
            if image.mode in ("I", "F"):
                raise ValueError("its pixels have 32 bits a channel: save it with 8 or 16")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # of which Pillow would cut off all that is above 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return pil_to_tensor(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read {file} as a picture ({error}); any format that Pillow knows will do") from error


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
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{checkpoint} is damaged, or of another net than {RESULT} describes ({type(error).__name__}: {reason}). "
            "Train again with resume=false, or name another run"
        ) from error


def table(files: Sequence[Path], probabilities: Tensor, classes: Sequence[str], top: int) -> str:
    """The `top` most probable classes of each file, most probable first, as text."""
    names = [str(file) for file in files]
    width, wide = max(map(len, [*names, "picture"])), max(map(len, [*classes, "class"]))
    lines = [f"{'picture':{width}}  {'class':{wide}}  probability"]
    for name, row in zip(names, probabilities, strict=True):
        values, labels = row.topk(min(top, len(classes)))
        for value, label in zip(values.tolist(), labels.tolist(), strict=True):
            lines.append(f"{name:{width}}  {classes[label]:{wide}}  {value:10.2%}")
            name = ""
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cifarbn.predict", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, under multirun_outputs/")
    parser.add_argument("pictures", type=Path, nargs="+", help="picture files of any format and size")
    parser.add_argument("--top", type=int, default=3, help="how many classes to show for each (default 3)")
    options = parser.parse_args(arguments)
    with plain_errors():
        if options.top < 1:
            raise UserError(f"--top must be at least 1, not {options.top}")
        pixels = torch.stack([read_picture(file) for file in options.pictures])
        trained = load_run(options.run)
        print(f"pictures scaled and cropped at the centre to {SIDE}x{SIDE} pixels, RGB")
        print(table(options.pictures, trained.probabilities(pixels), trained.classes, options.top))


if __name__ == "__main__":
    main()
