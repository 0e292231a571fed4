"""Tiny data sets in the layout of their own files, for tests; random pixels, a fixed number of images of each class."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image

TRAIN, TEST = 30, 10  # images

_rng = np.random.default_rng(0)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write `cifar-100-python`; patch torchvision's MD5s."""
    folder, dataset = root / "cifar-100-python", torchvision.datasets.CIFAR100
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return md5(folder / name)

    for attribute, name, count in (("train_list", "train", TRAIN), ("test_list", "test", TEST)):
        fine = [7 * k % 100 for k in range(count)]
        content = {
            "data": _rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": fine,
            "coarse_labels": [label // 5 for label in fine],
        }
        monkeypatch.setattr(dataset, attribute, [[name, write(name, content)]])
    meta = {"fine_label_names": [f"class {k}" for k in range(100)]}
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": write("meta", meta)})
    return root


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write `train_32x32.mat` and `test_32x32.mat`, the digit 0 labelled 10; patch torchvision's MD5s and URL."""
    root.mkdir(parents=True)
    splits = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        file = root / f"{part}_32x32.mat"
        pixels = _rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)[:, None] % 10
        labels[labels == 0] = 10
        scipy.io.savemat(file, {"X": pixels, "y": labels})
        splits[part] = [(root / file.name).as_uri(), file.name, md5(file)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    return root


def write_fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the gzipped IDX files of `FashionMNIST/raw`; patch torchvision's MD5s."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    resources = []

    def write(name: str, array: np.ndarray) -> None:
        header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
        resources.append((name, md5(folder / name)))

    for part, count in (("train", TRAIN), ("t10k", TEST)):
        write(f"{part}-images-idx3-ubyte.gz", _rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write(f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    return root


def write_folder(root: Path, classes: str = "abc", count: int = 10, size: tuple[int, int] = (20, 14)) -> Path:
    """Write `count` PNG files of (height, width) for each class, in `root/CLASS/K.png`."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = _rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


class ToyDataset:
    """A map-style dataset of `count` random images of three classes, of the type that `kind` names."""

    classes = ("red", "green", "blue")

    def __init__(self, count: int = 40, kind: str = "pil", size: tuple[int, int] = (12, 10)) -> None:
        pixels = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
        self.pixels, self.kind = pixels, kind

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        array = self.pixels[index]
        tensor = torchvision.transforms.functional.to_tensor(array)
        kinds = {
            "pil": Image.fromarray(array),
            "tensor": (tensor * 255).round().byte(),
            "array": array,
            "float tensor": tensor,
            "float array": array / 255,
        }
        return kinds[self.kind], index % 3
