"""CIFAR-10 from its original files: found, verified, downloaded when missing."""

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
"""Over all pixels of the training pictures, per channel, in units of 255."""

ARCHIVE = torchvision.datasets.CIFAR10.filename
"""The name of the archive that is downloaded; one that lies in the root already is used instead."""

_SCRATCH = ".cifar-10-download-"
_SECONDS_OF_SILENCE = 30.0  # after which a download is given up

_REMEDY = (
    "Name the folder that holds cifar-10-batches-py with data.root=PATH or the environment variable CIFARBN_DATA, "
    "or use the drawn pictures with data=shapes."
)


def read_cifar10(root: str | Path, download: bool = True) -> tuple[Images, Images]:
    """Read CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images).

    The MD5 of every file is compared with torchvision's before a byte of it is unpickled.

    Args:
        root: the folder that holds torchvision's `cifar-10-batches-py`, or that folder itself.
        download: fetch it into `root` where neither the folder nor its archive, `ARCHIVE`, is there.

    Returns:
        The 50,000 training and the 10,000 test pictures, in the order of the files, channels_last, on the CPU.

    Raises:
        UserError: where it is missing and not to be had, or a file is missing, truncated or altered.
    """
    files = _read_verified(find_cifar10(root, download))
    return _decode(files, torchvision.datasets.CIFAR10.train_list), _decode(
        files, torchvision.datasets.CIFAR10.test_list
    )


def find_cifar10(root: str | Path, download: bool = True) -> Path:
    """Return the folder `cifar-10-batches-py` of `root`; where it is missing, unpacked or downloaded first.

    What stands there is not yet verified: `read_cifar10` does that on the very bytes it reads.

    Raises:
        UserError: where it is missing and not to be had.
    """
    base = torchvision.datasets.CIFAR10.base_folder
    if not str(root):
        raise UserError(f"data.root is empty. {_REMEDY}")
    root = Path(root).expanduser().absolute()
    folder = root if root.name == base else root / base
    if not os.path.exists(folder):  # False, where `Path.exists` may raise, for a folder one may not look into
        if not download and not os.path.exists(folder.parent / ARCHIVE):
            raise UserError(f"CIFAR-10 is not in {folder} and data.download is false. {_REMEDY}")
        _bring(folder)
    return folder


def _expected_md5() -> dict[str, str]:
    dataset = torchvision.datasets.CIFAR10
    return dict([*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])])


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read_verified(folder: Path) -> dict[str, bytes]:
    """Return every file's content by name, or name every file that is missing or wrong."""
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
            if (found := _md5(files[name])) != md5:
                faults.append(f"{name} is truncated or altered (MD5 {found} instead of {md5})")
    if faults:
        raise UserError(
            f"CIFAR-10 in {folder} is not intact: {'; '.join(faults)}. "
            f"Delete that folder to have it downloaded anew. {_REMEDY}"
        )
    return files


def _decode(files: dict[str, bytes], batches: list[list[str]]) -> Images:
    pixels, labels = [], []
    for name, _ in batches:
        batch = pickle.loads(files[name], encoding="latin1")
        pixels.append(torch.from_numpy(batch["data"]).view(-1, 3, IMAGE_SIZE, IMAGE_SIZE))
        labels.extend(batch["labels"])
    return Images(torch.cat(pixels).contiguous(memory_format=torch.channels_last), torch.tensor(labels))


def _bring(folder: Path) -> None:
    """Bring CIFAR-10 to `folder`, which does not exist yet, from the archive beside it or else from the network.

    It appears there whole or not at all: everything happens in a hidden folder beside it, renamed at the end. Of two
    processes that want it at once, the second waits for the first.
    """
    url, archive = torchvision.datasets.CIFAR10.url, folder.parent / ARCHIVE
    here = os.path.exists(archive)
    # The nearest ancestor that exists: a failure leaves no empty folder behind, and an ancestor in which
    # nothing can be written shows before the download rather than after it.
    ancestor = next(parent for parent in folder.parents if os.path.exists(parent))
    try:
        with _alone_in(ancestor) as alone:
            if os.path.exists(folder):
                return
            for left in ancestor.glob(f"{_SCRATCH}*") if alone else ():
                shutil.rmtree(left, ignore_errors=True)  # whoever made it was killed, or it would hold the lock
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=ancestor) as scratch:
                unpacked = Path(scratch) / folder.name
                if here:
                    _check_archive(archive)
                else:
                    archive = Path(scratch) / ARCHIVE
                    _fetch(url, archive)
                _unpack(archive, unpacked)
                _publish(unpacked, folder)
    except (OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error, KeyError) as error:
        what = f"unpacking {archive}" if here else f"downloading it there from {url}"
        remedy = "Delete that archive to have it downloaded anew. " if here else ""
        raise UserError(f"CIFAR-10 is not in {folder} and {what} failed: {error}. {remedy}{_REMEDY}") from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Hold the lock on a folder, waiting for it; yields False where this system or file system has no such lock.

    The lock is on the folder itself, so that no file is left behind, and ends with this process, however it ends.
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
            alone = True
        except BlockingIOError:
            print(f"another process is bringing CIFAR-10 to {folder}; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:  # some network file systems
            alone = False
        yield alone
    finally:
        os.close(handle)


def _fetch(url: str, target: Path) -> None:
    """Download the archive.

    Not torchvision's `download_url`: it waits for ever for a server that goes silent, here with the lock held, and
    tries plain http when https fails.
    """
    with urllib.request.urlopen(url, timeout=_SECONDS_OF_SILENCE) as response, target.open("wb") as file:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, desc="CIFAR-10") as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    _check_archive(target)


def _check_archive(archive: Path) -> None:
    found, expected = _md5(archive.read_bytes()), torchvision.datasets.CIFAR10.tgz_md5
    if found != expected:
        raise OSError(f"the archive is incomplete or altered: MD5 {found} instead of {expected}")


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for name, md5 in _expected_md5().items():
            # Read by name, not `extractall`: no path in the archive decides where anything is written.
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
        if not folder.is_dir():  # otherwise another process was first, with the same verified files
            raise
