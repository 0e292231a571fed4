"""Classify pictures with a trained run: `python -m cifarbn.predict RUN picture.png ...`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from cifarbn.cli.command_line import friendly_errors
from cifarbn.data.images import IMAGE_SIZE
from cifarbn.errors import UserError
from cifarbn.formatting import text_row
from cifarbn.runs.durable import check_ordinary
from cifarbn.runs.load import TrainedNet, check_prefixes, load_run
from cifarbn.runs.untrusted import clean

AT_ONCE = 64  # pictures that are read and classified together: memory does not grow with their number


def read_image(file: Path) -> Tensor:
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
            return pil_to_tensor(ImageOps.fit(image.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's readers and their libraries raise whatever a damaged file leads them to
        reason = clean(str(error) or type(error).__name__)
        raise UserError(
            f"cannot read {clean(str(file))} as a picture ({reason}); any format that Pillow knows will do"
        ) from error


def table(files: Sequence[Path], trained: TrainedNet, top: int, failed: Callable[[UserError], None]) -> Iterator[str]:
    """The `top` most probable classes of each file, most probable first, line by line as pictures are classified.

    A picture that cannot be read has no line: `failed` is called with what is wrong, and the others go on.
    """
    names, classes = [clean(str(file)) for file in files], trained.classes
    head = ("picture", "class", "probability")
    widths = (max(map(len, [*names, head[0]])), max(map(len, [*classes, head[1]])), len(head[2]))
    yield text_row(head, "<<>", widths)
    for first in range(0, len(files), AT_ONCE):
        pictures = []
        for name, file in zip(names[first:], files[first : first + AT_ONCE], strict=False):
            try:
                pictures.append((name, read_image(file)))
            except UserError as error:
                failed(error)
        if not pictures:
            continue
        chances = trained.probabilities(torch.stack([pixels for _, pixels in pictures]))
        for (name, _), row in zip(pictures, chances, strict=True):
            values, labels = row.topk(min(top, len(classes)))
            for value, label in zip(values.tolist(), labels.tolist(), strict=True):
                yield text_row((name, classes[label], f"{value:.2%}"), "<<>", widths)
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
    with friendly_errors():
        if options.top < 1:
            raise UserError(f"--top must be at least 1, not {options.top}")
        trained = load_run(options.run, check_prefixes(options.trust))
        print(f"pictures scaled and cropped at the centre to {IMAGE_SIZE}x{IMAGE_SIZE} pixels, RGB")
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
