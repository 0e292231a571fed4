"""The files of published data sets: verified by MD5, downloaded if missing."""

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cifarbn.durable import sync_file
from cifarbn.errors import UserError

_TIMEOUT = 30.0  # seconds without data from the server


@dataclass(frozen=True)
class PublishedFiles(ABC):
    """The files of a published data set, in torchvision's layout.

    Attributes:
        title: the name of the data set in messages.
        folder: the folder that holds the files, relative to `data.root`; "." for the root itself.
        md5s: file name -> MD5.
    """

    title: str
    folder: str
    md5s: Mapping[str, str]

    def read(self, root: str | Path, download: bool = True) -> dict[str, bytes]:
        """Return the content of each file by name, after `find`.

        Raises:
            UserError: if the files are missing and cannot be downloaded, or naming every file that is missing,
                unreadable or altered.
        """
        folder = self.find(root, download)
        files: dict[str, bytes] = {}
        faults = []
        for name, md5 in self.md5s.items():
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
                f"{self.title} in {folder} is damaged: {'; '.join(faults)}. {self._repair()} {self._remedy()}"
            )
        return files

    def find(self, root: str | Path, download: bool = True) -> Path:
        """Return the folder that holds the files, after downloading or unpacking them if they are missing.

        Existing files are not verified here: `read` verifies the bytes that it reads.

        Args:
            root: the folder that contains `self.folder`, or that folder itself.
            download: download the files if they are missing.

        Raises:
            UserError: if the files are missing and cannot be downloaded.
        """
        if not str(root):
            raise UserError(f"data.root is empty. {self._remedy()}")
        folder = self._folder_in(Path(root).expanduser().absolute())
        if self._is_missing(folder):
            if not download and self._needs_network(folder):
                raise UserError(f"{self.title} is not in {folder}, and data.download is false. {self._remedy()}")
            self._install(folder)
        return folder

    def _folder_in(self, root: Path) -> Path:
        parts = Path(self.folder).parts
        for count in range(len(parts), 0, -1):
            if root.parts[-count:] == parts[:count]:
                return root.joinpath(*parts[count:])
        return root / self.folder

    def _install(self, folder: Path) -> None:
        """Create the missing files of `folder`: complete, or not at all.

        Files are written to a hidden folder first. If two processes need the data set at the same time, the second
        waits for the first.
        """
        # The hidden folder is created in the nearest existing ancestor: a failure then leaves no empty folder behind,
        # and missing write permission shows before the download.
        ancestor = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        prefix = f".{self.title.lower()}-download-"
        action, remedy = self._action(folder)
        try:
            with _locked(ancestor, self.title) as locked:
                if not self._is_missing(folder):
                    return
                for leftover in ancestor.glob(f"{prefix}*") if locked else ():
                    shutil.rmtree(leftover, ignore_errors=True)  # of a killed process: a live one would hold the lock
                with tempfile.TemporaryDirectory(prefix=prefix, dir=ancestor) as scratch:
                    self._create(folder, Path(scratch))
        except (OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error, KeyError) as error:
            raise UserError(
                f"{self.title} is not in {folder}, and {action} failed: {error}. {remedy}{self._remedy()}"
            ) from error

    def _remedy(self) -> str:
        content = next(iter(self.md5s)) if self.folder == "." else Path(self.folder).parts[0]
        return (
            f"Set data.root=PATH or the environment variable CIFARBN_DATA to the folder that contains {content}, "
            "or use the embedded data set with data=shapes."
        )

    @abstractmethod
    def _is_missing(self, folder: Path) -> bool: ...

    @abstractmethod
    def _needs_network(self, folder: Path) -> bool: ...

    @abstractmethod
    def _create(self, folder: Path, scratch: Path) -> None: ...

    @abstractmethod
    def _action(self, folder: Path) -> tuple[str, str]:
        """Return what `_create` does and the remedy if it fails."""

    @abstractmethod
    def _repair(self) -> str: ...


@dataclass(frozen=True)
class PublishedArchive(PublishedFiles):
    """Files that are published as one tar.gz archive; the archive is also used if it is already next to the folder.

    A folder that exists is never changed, even if files in it are missing.

    Attributes:
        archive: name of the archive.
        url: where it is downloaded from.
        archive_md5: MD5 of the archive.
    """

    archive: str
    url: str
    archive_md5: str

    def _is_missing(self, folder: Path) -> bool:
        return not os.path.exists(folder)  # unlike `Path.exists`, False for a folder without read permission

    def _needs_network(self, folder: Path) -> bool:
        return not os.path.exists(folder.parent / self.archive)

    def _create(self, folder: Path, scratch: Path) -> None:
        archive = folder.parent / self.archive
        if self._needs_network(folder):
            archive = scratch / self.archive
            _fetch(self.url, archive, self.title)
        _check_md5("the archive", archive.read_bytes(), self.archive_md5)
        _unpack(archive, scratch / folder.name, self.folder, self.md5s)
        _publish(scratch / folder.name, folder)

    def _action(self, folder: Path) -> tuple[str, str]:
        if self._needs_network(folder):
            return f"the download from {self.url}", ""
        return f"unpacking {folder.parent / self.archive}", "Delete that archive to download it again. "

    def _repair(self) -> str:
        return "Delete that folder to download it again."


@dataclass(frozen=True)
class SeparateFiles(PublishedFiles):
    """Files that are downloaded one by one; only missing ones are.

    Attributes:
        base_url: the files' URLs without their names.
    """

    base_url: str

    def _is_missing(self, folder: Path) -> bool:
        return not all(os.path.exists(folder / name) for name in self.md5s)

    def _needs_network(self, folder: Path) -> bool:
        return True

    def _create(self, folder: Path, scratch: Path) -> None:
        for name, md5 in self.md5s.items():
            if not os.path.exists(folder / name):
                _fetch(self.base_url + name, scratch / name, f"{self.title} {name}")
                _check_md5(name, (scratch / name).read_bytes(), md5)
                folder.mkdir(parents=True, exist_ok=True)
                (scratch / name).replace(folder / name)

    def _action(self, folder: Path) -> tuple[str, str]:
        return f"the download from {self.base_url}", ""

    def _repair(self) -> str:
        return "Delete the damaged files to download them again."


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _check_md5(name: str, content: bytes, expected: str) -> None:
    if (actual := _md5(content)) != expected:
        raise OSError(f"{name} is incomplete or altered: MD5 {actual}, expected {expected}")


@contextmanager
def _locked(folder: Path, title: str) -> Iterator[bool]:
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
            print(f"another process is downloading {title} to {folder}; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        except OSError:  # some network file systems
            locked = False
        yield locked
    finally:
        os.close(handle)


def _fetch(url: str, target: Path, label: str) -> None:
    """Download a file.

    torchvision's `download_url` is not used: it has no timeout, while the lock is held here, and it falls back to plain
    http if https fails.
    """
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, target.open("wb") as file:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, desc=label) as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    sync_file(target)


def _unpack(archive: Path, folder: Path, prefix: str, md5s: Mapping[str, str]) -> None:
    folder.mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for name, md5 in md5s.items():
            # Read by name instead of `extractall`, so that paths in the archive have no influence on where files go.
            member = tar.extractfile(f"{prefix}/{name}")
            content = member.read() if member else b""
            _check_md5(f"{name} in the archive", content, md5)
            (folder / name).write_bytes(content)
            sync_file(folder / name)


def _publish(unpacked: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process has published the same verified files
            raise
