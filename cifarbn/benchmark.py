"""How fast the parts are, each measured side by side with what one would use without it.

`python -m cifarbn.benchmark data` compares one pass over the augmented training pictures with the same pass through
torchvision's transforms.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifarbn.data import Augmentation, Images, InMemoryLoader, draw_shapes, read_cifar10
from cifarbn.data.cifar10 import MEAN, STD, find_cifar10
from cifarbn.errors import UserError
from cifarbn.hardware import Hardware
from cifarbn.runs import surroundings

Report = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cifarbn.benchmark", description=__doc__.splitlines()[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--rounds", type=int, default=5, help="how often each side runs, in turn (default 5)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    parts = parser.add_subparsers(metavar="PART", required=True)

    data = parts.add_parser("data", parents=[common], help="the loader against torchvision's transforms")
    data.add_argument("--root", default=os.environ.get("CIFARBN_DATA", "./data"), help="where CIFAR-10 is")
    data.add_argument("--pictures", type=int, default=50_000, help="pictures in a pass (default 50000)")
    data.add_argument("--batch-size", type=int, default=128)
    data.set_defaults(measure=measure_data)

    chosen = parser.parse_args(arguments)
    try:
        report = chosen.measure(chosen) | {"device": Hardware.choose().device} | surroundings()
        print(_as_text(report))
        if chosen.json:
            chosen.json.write_text(json.dumps(report, indent=1) + "\n")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


def measure_data(chosen: argparse.Namespace) -> Report:
    """Pass over the pictures, cropped at random, flipped, normalised and batched, in two ways.

    The usual way: torchvision's transforms picture by picture in a DataLoader with 2 worker processes, which live
    through all rounds. Ours: `InMemoryLoader`, which pads the whole set when it is made (not counted either).
    """
    name, images = _pictures(chosen.root, chosen.pictures)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usual = DataLoader(
        _PictureByPicture(images), chosen.batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )
    ours = InMemoryLoader(
        images.to(device), chosen.batch_size, mean=MEAN, std=STD, augmentation=Augmentation(), shuffle=True
    )
    seconds = in_turn(
        chosen.rounds, {"torchvision, 2 workers": lambda: _pass(usual, device), "cifarbn": lambda: _pass(ours, device)}
    )
    return {
        "what": f"one pass over {len(images):,} pictures of {name}, augment=flip_crop, batch {chosen.batch_size}",
        "unit": "images/s",
        "amount": len(images),
        "seconds": seconds,
    }


def in_turn(rounds: int, sides: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the seconds of each side in each round: A B A B, so that a machine that slows down slows both.

    Every side runs once beforehand, uncounted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for counted in [False] + rounds * [True]:
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if counted:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class _PictureByPicture(Dataset[tuple[torch.Tensor, int]]):
    """What `torchvision.datasets.CIFAR10` does with the usual transforms, for any pictures in memory."""

    def __init__(self, images: Images) -> None:
        self._pictures = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = images.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._pictures[index])), self._labels[index]


def _pictures(root: str, count: int) -> tuple[str, Images]:
    try:
        folder = find_cifar10(root, download=False)
    except UserError:
        return f"shapes (no CIFAR-10 in {root})", draw_shapes(count, seed=0)
    return "cifar10", read_cifar10(folder, download=False)[0][:count]


def _pass(loader: DataLoader[Any] | InMemoryLoader, device: torch.device) -> None:
    for pixels, labels in loader:
        pixels.to(device), labels.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()


def _as_text(report: Report) -> str:
    """The report as a table; each line's last column is how many times the first line's speed it has."""
    first, *_ = report["seconds"].values()
    lines = [report["what"], report["device"]]
    for name, seconds in report["seconds"].items():
        median, fastest, slowest = (report["amount"] / f(seconds) for f in (statistics.median, min, max))
        ratio = statistics.median(a / b for a, b in zip(first, seconds, strict=True))
        lines.append(
            f"{name:24} {median:>10,.0f} {report['unit']} "
            f"(median of {len(seconds)}; {slowest:,.0f} to {fastest:,.0f})  x{ratio:.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
