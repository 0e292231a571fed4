"""Data for tests: tiny random images, and the real CIFAR-10 if CIFARBN_DATA is set."""

import gc
import hashlib
import os
import pickle
import signal
import socket
import tarfile
from pathlib import Path

# There is one test process per core, so more threads would only slow the tests down. Besides, tests compare runs bit
# for bit, and a run on a busy machine would change its number of threads. Must be set before numpy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import torchvision

from cifarbn.data import Images
from cifarbn.fast.kernels import library

# Tests that are started in the background of a shell, or by nohup, would ignore these, and so would their commands.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The files that take longest come first, so that no test process waits for another at the end.
LONGEST = ("docs", "reproduce", "local_launcher", "ddp", "faults", "config", "scales", "command_line", "sweep")
LONGEST += ("sweep_contract", "launchers", "optuna_sweeper", "examples", "benchmark", "report", "fuzz_command_line")
LONGEST += ("recorders",)


def pytest_collection_modifyitems(items) -> None:
    """Sort the files by duration; their tests stay in order."""
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    """Exempt everything imported by the tests from garbage collection, as in a command; see `finish_imports`."""
    gc.freeze()


@pytest.fixture
def make_images():
    """Function that returns `n` random images; image i has label i, so labels identify the images of a batch."""

    def make(n: int, seed: int = 0) -> Images:
        pixels = torch.randint(256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
        return Images(pixels.byte(), torch.arange(n))

    return make


@pytest.fixture(scope="session")
def kernels() -> None:
    """Skip the test if the C kernels of `cifarbn.fast.kernels` are not available."""
    if reason := library.why_unavailable(torch.bfloat16):
        pytest.skip(f"no kernels: {reason}")


@pytest.fixture(scope="module")
def kernels_for_any_number_of_channels(kernels):
    """Use the kernels for any number of channels: odd numbers find more errors, although they are slow."""
    before, library.LANES = library.LANES, 1
    yield
    library.LANES = before


@pytest.fixture(scope="module", params=library.TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def each_kernel_dtype(request) -> None:
    """Run the module's tests once for each dtype of the kernels, which its global `dtype` holds."""
    request.module.dtype = request.param


@pytest.fixture
def cifar10_root() -> Path:
    """The folder with the real CIFAR-10."""
    root = os.environ.get("CIFARBN_DATA")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("needs the real CIFAR-10; set CIFARBN_DATA to the folder with cifar-10-batches-py")
    return Path(root)


@pytest.fixture
def tiny_cifar10(tmp_path, monkeypatch) -> Path:
    """Root of a CIFAR-10 with 50 + 10 random images in torchvision's layout; patches torchvision's MD5s."""
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
    """Archive of `tiny_cifar10`; patches torchvision's url to it, so that no network is needed."""
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tiny_cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", archive.as_uri())
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Set torchvision's url to a closed port of this machine."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
