"""CIFAR-10 from its original files, verified by MD5 and downloaded if missing."""

import hashlib
import http.client
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm

from cifarbn.data.images import IMAGE_SIZE, Images
from cifarbn.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The name of each label, as in `batches.meta`."""

TRAIN_SIZE = 50_000

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Per channel, of all training pixels scaled to [0, 1]."""

ARCHIVE = torchvision.datasets.CIFAR10.filename
"""Name of the downloaded archive; if a file of this name is in the root, it is used instead of a download."""

_SCRATCH = ".cifar-10-download-"
_TIMEOUT = 30.0  # seconds without data from the server

_REMEDY = (
    "Set data.root=PATH or the environment variable CIFARBN_DATA to the folder that contains cifar-10-batches-py, "
    "or use the embedded data set with data=shapes."
)


def read_cifar10(root: str | Path, download: bool = True) -> tuple[Images, Images]:
    """Read CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images).

    The MD5 of every file is compared with torchvision's before the file is unpickled.

    Args:
        root: the folder that contains torchvision's `cifar-10-batches-py`, or that folder itself.
        download: download the data set into `root` if neither the folder nor the archive `ARCHIVE` is there.

    Returns:
        The 50,000 training and the 10,000 test images, in the order of the files, channels_last, on the CPU.

    Raises:
        UserError: if the data set is missing and cannot be downloaded, or a file is missing, truncated or altered.
    """
    files = _read_verified(find_cifar10(root, download))
    return _decode(files, torchvision.datasets.CIFAR10.train_list), _decode(
        files, torchvision.datasets.CIFAR10.test_list
    )


def find_cifar10(root: str | Path, download: bool = True) -> Path:
    """Return the folder `cifar-10-batches-py` of `root`, after unpacking or downloading it if it is missing.

    The files of an existing folder are not verified here: `read_cifar10` verifies the bytes that it reads.

    Raises:
        UserError: if the folder is missing and cannot be downloaded.
    """
    base = torchvision.datasets.CIFAR10.base_folder
    if not str(root):
        raise UserError(f"data.root is empty. {_REMEDY}")
    root = Path(root).expanduser().absolute()
    folder = root if root.name == base else root / base
    if not os.path.exists(folder):  # unlike `Path.exists`, False for a folder without read permission
        if not download and not os.path.exists(folder.parent / ARCHIVE):
            raise UserError(f"CIFAR-10 is not in {folder}, and data.download is false. {_REMEDY}")
        _install(folder)
    return folder


def _expected_md5() -> dict[str, str]:
    dataset = torchvision.datasets.CIFAR10
    return dict([*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])])


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read_verified(folder: Path) -> dict[str, bytes]:
    """Return the content of each file by name.

    Raises:
        UserError: naming every file that is missing, unreadable or altered.
    """
    files: dict[str, bytes] = {}
    faults = []
    for name, md5 in _expected_md5().items():
        try:
            files[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            faults.append(f"{name} is missing")
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror})")
        else:
            if (actual := _md5(files[name])) != md5:
                faults.append(f"{name} is truncated or altered (MD5 {actual}, expected {md5})")
    if faults:
        raise UserError(
            f"CIFAR-10 in {folder} is damaged: {'; '.join(faults)}. Delete that folder to download it again. {_REMEDY}"
        )
    return files


def _decode(files: dict[str, bytes], batches: list[list[str]]) -> Images:
    pixels, labels = [], []
    for name, _ in batches:
        batch = pickle.loads(files[name], encoding="latin1")
        pixels.append(torch.from_numpy(batch["data"]).view(-1, 3, IMAGE_SIZE, IMAGE_SIZE))
        labels.extend(batch["labels"])
    return Images(torch.cat(pixels).contiguous(memory_format=torch.channels_last), torch.tensor(labels))


def _install(folder: Path) -> None:
    """Create `folder` from the archive next to it or, without one, from a download.

    The folder appears complete or not at all: files are written to a hidden folder, which is renamed at the end. If
    two processes need the data set at the same time, the second waits for the first.
    """
    url, archive = torchvision.datasets.CIFAR10.url, folder.parent / ARCHIVE
    has_archive = os.path.exists(archive)
    # The hidden folder is created in the nearest existing ancestor: a failure then leaves no empty folder behind, and
    # missing write permission shows before the download.
    ancestor = next(parent for parent in folder.parents if os.path.exists(parent))
    try:
        with _locked(ancestor) as locked:
            if os.path.exists(folder):
                return
            for leftover in ancestor.glob(f"{_SCRATCH}*") if locked else ():
                shutil.rmtree(leftover, ignore_errors=True)  # of a killed process: a live one would hold the lock
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=ancestor) as scratch:
                unpacked = Path(scratch) / folder.name
                if has_archive:
                    _check_archive(archive)
                else:
                    archive = Path(scratch) / ARCHIVE
                    _fetch(url, archive)
                _unpack(archive, unpacked)
                _publish(unpacked, folder)
    except (OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error, KeyError) as error:
        action = f"unpacking {archive}" if has_archive else f"the download from {url}"
        remedy = "Delete that archive to download it again. " if has_archive else ""
        raise UserError(f"CIFAR-10 is not in {folder}, and {action} failed: {error}. {remedy}{_REMEDY}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Wait for and hold an exclusive lock on a folder; yield False if the system or file system has no such lock.

    The lock is on the folder itself, so it leaves no file behind, and the system releases it when the process ends.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):  # Windows has no fcntl
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            print(f"another process is downloading CIFAR-10 to {folder}; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        except OSError:  # some network file systems
            locked = False
        yield locked
    finally:
        os.close(handle)


def _fetch(url: str, target: Path) -> None:
    """Download the archive.

    torchvision's `download_url` is not used: it has no timeout, while the lock is held here, and it falls back to plain
    http if https fails.
    """
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, target.open("wb") as file:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, desc="CIFAR-10") as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    _check_archive(target)


def _check_archive(archive: Path) -> None:
    actual, expected = _md5(archive.read_bytes()), torchvision.datasets.CIFAR10.tgz_md5
    if actual != expected:
        raise OSError(f"the archive is incomplete or altered: MD5 {actual}, expected {expected}")


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for name, md5 in _expected_md5().items():
            # Read by name instead of `extractall`, so that paths in the archive have no influence on where files go.
            member = tar.extractfile(f"{torchvision.datasets.CIFAR10.base_folder}/{name}")
            content = member.read() if member else b""
            if _md5(content) != md5:
                raise OSError(f"{name} in the archive is incomplete or altered")
            (folder / name).write_bytes(content)


def _publish(unpacked: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process has published the same verified files
            raise
