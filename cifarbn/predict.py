"""Classify images with a trained run: `python -m cifarbn.predict RUN image.png folder ...`."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from cifarbn.cli.command_line import friendly_errors
from cifarbn.durable import check_regular_file, replace_file
from cifarbn.errors import UserError
from cifarbn.formatting import text_row
from cifarbn.runs.load import TrainedModel, load
from cifarbn.runs.transform import Transform
from cifarbn.runs.untrusted import clean
from cifarbn.terminal import open_standard_streams

BATCH_SIZE = 64  # images in memory at a time


class Prediction(NamedTuple):
    """The classes of one image, or the reason why it cannot be read.

    Attributes:
        file: the image file.
        pixels: uint8 (3, H, W); None if the file cannot be read.
        probabilities: (C,) float32; None if the file cannot be read.
        error: why the file cannot be read.
    """

    file: Path
    pixels: Tensor | None = None
    probabilities: Tensor | None = None
    error: str = ""


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files among `paths` as they are, and folders replaced by their image files, recursively and sorted.

    In folders, files without the extension of an image format, hidden files and hidden folders are skipped.

    Raises:
        UserError: if a folder contains no image files.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        extensions = Image.registered_extensions()
        images = sorted(
            file
            for file in inside
            if file.suffix.lower() in extensions
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not images:
            raise UserError(f"{clean(str(path))} contains no image files; use a folder of images such as .png or .jpg")
        files += images
    return files


def read_image(file: Path, transform: Transform) -> Tensor:
    """Read an image file of any format and size as uint8 (3, H, W); see `Transform.pixels`.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        check_regular_file(file)
        with Image.open(file) as image:
            return transform.pixels(image)
    except Exception as error:  # for damaged files, Pillow's decoders raise exceptions of any type
        reason = clean(str(error) or type(error).__name__)
        absent = isinstance(error, OSError) and error.errno
        supported = "use an image file that Pillow supports, with 8 or 16 bits per channel"
        remedy = "check its path and permissions" if absent else supported
        raise UserError(f"cannot read {clean(str(file))} as an image ({reason}); {remedy}") from error


def predict(files: Sequence[Path], trained: TrainedModel) -> Iterator[Prediction]:
    """Yield the prediction for each file, in order; `BATCH_SIZE` images are read and classified at a time."""
    for first in range(0, len(files), BATCH_SIZE):
        batch: list[Prediction] = []
        for file in files[first : first + BATCH_SIZE]:
            try:
                batch.append(Prediction(file, read_image(file, trained.transform)))
            except UserError as error:
                batch.append(Prediction(file, error=str(error)))
        images = [prediction.pixels for prediction in batch if prediction.pixels is not None]
        rows = iter(trained.probabilities(torch.stack(images)) if images else ())
        for prediction in batch:
            yield prediction if prediction.pixels is None else prediction._replace(probabilities=next(rows))


def as_rows(prediction: Prediction, classes: Sequence[str], top: int) -> list[tuple[str, str, str]]:
    """Return (file, class, score) of the `top` highest classes; the file only in the first row."""
    name = clean(str(prediction.file))
    values, labels = _most_probable(prediction, top)
    return [
        ("" if rank else name, classes[label], f"{value:.2%}")
        for rank, (value, label) in enumerate(zip(values, labels, strict=True))
    ]


def as_json(prediction: Prediction, classes: Sequence[str], top: int, score: str) -> str:
    """Return one line of JSON: `image` and `classes`, each with its `score`, or `image` and `error`."""
    line: dict[str, object] = {"image": clean(str(prediction.file))}
    if prediction.error:
        return json.dumps(line | {"error": prediction.error})
    values, labels = _most_probable(prediction, top)
    ranked = [{"class": classes[label], score: value} for value, label in zip(values, labels, strict=True)]
    return json.dumps(line | {"classes": ranked})


def _most_probable(prediction: Prediction, top: int) -> tuple[list[float], list[int]]:
    assert prediction.probabilities is not None
    values, labels = prediction.probabilities.topk(min(top, len(prediction.probabilities)))
    return values.tolist(), labels.tolist()


def draw_feature_maps(prediction: Prediction, trained: TrainedModel, title: str, file: Path) -> None:
    """Draw an image and the outputs of the model's stages, as in figure 9 of the course report, into a PNG file.

    Raises:
        UserError: if the model has no stages of feature maps, or the file cannot be written.
    """
    from cifarbn import figures
    from cifarbn.report.features import evenly_spaced, stage_outputs

    pixels, probabilities = prediction.pixels, prediction.probabilities
    assert pixels is not None and probabilities is not None
    stages = stage_outputs(trained.model, trained.transform.normalise(pixels[None]))
    if not stages:
        raise UserError("the run's model has no convolutions, so it has no feature maps; leave out --feature-maps")
    subtitle = f"{clean(prediction.file.name)},\n{trained.prediction(probabilities)}"
    figure = figures.feature_maps(pixels.permute(1, 2, 0).numpy(), title, subtitle, evenly_spaced(stages))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda opened: figure.savefig(opened, format="png", dpi=150))
    except OSError as error:
        raise UserError(
            f"cannot write feature maps into {file.parent}: {error.strerror}; choose another folder with --feature-maps"
        ) from error


def feature_map_files(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Return the PNG in the folder `out` for each image file, numbered if several images have the same name.

    Raises:
        UserError: if a PNG would replace one of the images.
    """
    names: dict[Path, Path] = {}
    for file in files:
        name, number = file.stem, 1
        while out / f"{name}-feature-maps.png" in names.values():
            number += 1
            name = f"{file.stem}-{number}"
        names.setdefault(file, out / f"{name}-feature-maps.png")
    images = {file.resolve() for file in files}
    if replaced := [figure for figure in names.values() if figure.resolve() in images]:
        raise UserError(
            f"feature maps would replace the image {clean(str(replaced[0]))}; choose another folder with --feature-maps"
        )
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    open_standard_streams()
    parser = argparse.ArgumentParser(prog="python -m cifarbn.predict", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, under multirun_outputs/")
    parser.add_argument(
        "images", type=Path, nargs="+", help="image files of any format and size, or folders of images (recursive)"
    )
    parser.add_argument("--top", type=int, default=3, help="number of classes to print per image (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image and line")
    parser.add_argument(
        "--feature-maps",
        type=Path,
        metavar="FOLDER",
        help="draw the feature maps of each image into a file NAME-feature-maps.png in this folder",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="allow classes of your own package in the run's model; can be repeated",
    )
    args = parser.parse_args(arguments)
    with friendly_errors(resumable=False):
        if args.top < 1:
            raise UserError(f"--top must be at least 1, not {args.top}")
        trained = load(args.run, args.trust)
        files = image_files(args.images)
        maps = feature_map_files(files, args.feature_maps) if args.feature_maps else {}
        height, width = trained.transform.image_size
        widths = (
            max(len("image"), *(len(clean(str(file))) for file in files)),
            max(len("class"), *map(len, trained.classes)),
            len(trained.score),
        )
        if not args.json:
            print(f"images are scaled and cropped at the centre to {width}x{height} pixels, RGB")
            print(text_row(("image", "class", trained.score), "<<>", widths))
        failed = False
        for prediction in predict(files, trained):
            if args.json:
                print(as_json(prediction, trained.classes, args.top, trained.score))
            elif not prediction.error:
                for row in as_rows(prediction, trained.classes, args.top):
                    print(text_row(row, "<<>", widths))
            sys.stdout.flush()
            if prediction.error:
                failed = True
                print(f"error: {prediction.error}", file=sys.stderr)
            elif args.feature_maps:
                draw_feature_maps(prediction, trained, clean(args.run.absolute().name), maps[prediction.file])
        if args.feature_maps and any(file.exists() for file in maps.values()):
            print(f"feature maps are in {args.feature_maps}", file=sys.stderr)
        if failed:
            sys.exit(1)


if __name__ == "__main__":
    main()
