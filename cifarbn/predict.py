"""Classify images with a trained run: `python -m cifarbn.predict RUN image.png ...`."""

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
from cifarbn.runs.durable import check_regular_file
from cifarbn.runs.load import TrainedModel, check_prefixes, load_run
from cifarbn.runs.untrusted import clean

BATCH_SIZE = 64  # images in memory at a time


def read_image(file: Path) -> Tensor:
    """Read an image file of any format as uint8 (3, 32, 32).

    The image is rotated as its EXIF orientation demands, put on a white background if it is transparent, scaled so that
    its shorter side has 32 pixels, and cropped to its centre.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        check_regular_file(file)
        with Image.open(file) as image:
            if image.mode in ("I", "F"):
                raise ValueError("its pixels have 32 bits per channel: save it with 8 or 16")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # Pillow would clip the values at 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return pil_to_tensor(ImageOps.fit(image.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    except Exception as error:  # for damaged files, Pillow's decoders raise exceptions of any type
        reason = clean(str(error) or type(error).__name__)
        raise UserError(
            f"cannot read {clean(str(file))} as an image ({reason}); use a format that Pillow supports"
        ) from error


def table(files: Sequence[Path], trained: TrainedModel, top: int, failed: Callable[[UserError], None]) -> Iterator[str]:
    """Yield the lines of a table with the `top` most probable classes of each file, as images are classified.

    An image that cannot be read has no line; `failed` is called with the error instead.
    """
    names, classes = [clean(str(file)) for file in files], trained.classes
    head = ("image", "class", "probability")
    widths = (max(map(len, [*names, head[0]])), max(map(len, [*classes, head[1]])), len(head[2]))
    yield text_row(head, "<<>", widths)
    for first in range(0, len(files), BATCH_SIZE):
        images = []
        for name, file in zip(names[first:], files[first : first + BATCH_SIZE], strict=False):
            try:
                images.append((name, read_image(file)))
            except UserError as error:
                failed(error)
        if not images:
            continue
        probabilities = trained.probabilities(torch.stack([pixels for _, pixels in images]))
        for (name, _), row in zip(images, probabilities, strict=True):
            values, labels = row.topk(min(top, len(classes)))
            for value, label in zip(values.tolist(), labels.tolist(), strict=True):
                yield text_row((name, classes[label], f"{value:.2%}"), "<<>", widths)
                name = ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m cifarbn.predict", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, under multirun_outputs/")
    parser.add_argument("images", type=Path, nargs="+", help="image files of any format and size")
    parser.add_argument("--top", type=int, default=3, help="number of classes to print per image (default 3)")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="allow classes of your own package in the run's model; can be repeated",
    )
    args = parser.parse_args(arguments)
    with friendly_errors():
        if args.top < 1:
            raise UserError(f"--top must be at least 1, not {args.top}")
        trained = load_run(args.run, check_prefixes(args.trust))
        print(f"images are scaled and cropped at the centre to {IMAGE_SIZE}x{IMAGE_SIZE} pixels, RGB")
        failures: list[UserError] = []

        def failed(error: UserError) -> None:
            failures.append(error)
            print(f"error: {error}", file=sys.stderr)

        for line in table(args.images, trained, args.top, failed):
            print(line)
        if failures:
            sys.exit(1)


if __name__ == "__main__":
    main()
