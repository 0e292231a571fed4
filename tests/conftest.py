"""Data for tests: tiny pictures made on the spot, and the real CIFAR-10 where CIFARBN_DATA names it."""

import gc
import hashlib
import os
import pickle
import socket
import tarfile
from pathlib import Path

# As many test processes as cores: further threads would only wait for each other. And tests compare runs bit for bit,
# while a run on a busy machine changes its number of threads. Read when numpy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import torchvision

from cifarbn.data import Images
from cifarbn.fast.kernels import library


def pytest_collection_finish() -> None:
    """Let no garbage collection scan what the tests import, as in a command; see `finish_imports`."""
    gc.freeze()


@pytest.fixture
def make_images():
    """A maker of `n` random pictures; picture i has the label i, so that a batch shows which pictures it holds."""

    def make(n: int, seed: int = 0) -> Images:
        pixels = torch.randint(256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
        return Images(pixels.byte(), torch.arange(n))

    return make


@pytest.fixture(scope="session")
def kernels() -> None:
    """The C of `cifarbn.fast.kernels` is there."""
    if reason := library.why_unavailable():
        pytest.skip(f"no kernels: {reason}")


@pytest.fixture(scope="module")
def kernels_for_any_number_of_channels(kernels):
    """Odd numbers of channels show more mistakes; that the kernels are slow for them is no matter here."""
    before, library.LANES = library.LANES, 1
    yield
    library.LANES = before


@pytest.fixture
def cifar10_root() -> Path:
    """The folder that holds the real CIFAR-10."""
    root = os.environ.get("CIFARBN_DATA")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("the real CIFAR-10 is not here: CIFARBN_DATA names no folder that holds cifar-10-batches-py")
    return Path(root)


@pytest.fixture
def tiny_cifar10(tmp_path, monkeypatch) -> Path:
    """The root of a CIFAR-10 of 50 + 10 random pictures in torchvision's layout, with torchvision's MD5s patched."""
    root = tmp_path / "data"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch() -> dict:
        return {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": rng.permutation(10).tolist()}

    dataset = torchvision.datasets.CIFAR10
    meta = {**dataset.meta, "md5": write("batches.meta", {"label_names": list("abcdefghij")})}
    monkeypatch.setattr(
        dataset, "train_list", [[f"data_batch_{k}", write(f"data_batch_{k}", batch())] for k in range(1, 6)]
    )
    monkeypatch.setattr(dataset, "test_list", [["test_batch", write("test_batch", batch())]])
    monkeypatch.setattr(dataset, "meta", meta)
    return root


@pytest.fixture
def tiny_archive(tiny_cifar10, tmp_path, monkeypatch) -> Path:
    """The archive of `tiny_cifar10`, where torchvision's url, patched, finds it without a network."""
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tiny_cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", archive.as_uri())
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Torchvision's url leads to a port of this machine at which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
