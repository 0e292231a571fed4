"""Simulated power failures: `watched` notes the content of a disk whenever files are synced or renamed."""

import os
import stat
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """The files below `root` that are certain to be on the disk.

    A file's content is sure as of its last fsync, a folder's entries as of the folder's. Each cut is a dict of the
    files' contents by path: `sure`, the least; `renamed`, all entries as they are but contents as of their fsync (ext4
    may rename before it writes); `all`, as after a kill.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}  # by inode
        self.entries: dict[str, dict[str, int]] = {str(root): {}}
        self.cuts: list[tuple[str, dict[str, bytes]]] = []
        self._held: list[int] = []  # so that no inode is used again
        self._same: dict[bytes, bytes] = {}

    def forced(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not path.startswith(str(self.root)):
            return
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.entries[path] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._held.append(os.dup(descriptor))
            self.contents[status.st_ino] = self._one(Path(path).read_bytes())
        self.note()

    def note(self) -> None:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        relative = {path: str(path.relative_to(self.root)) for path in files}
        for kind, cut in (
            ("sure", self._sure(str(self.root), "")),
            ("renamed", {relative[path]: self.contents.get(path.stat().st_ino, b"") for path in files}),
            ("all", {relative[path]: self._one(path.read_bytes()) for path in files}),
        ):
            if (kind, cut) not in self.cuts:
                self.cuts.append((kind, cut))

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _sure(self, folder: str, prefix: str) -> dict[str, bytes]:
        cut = {}
        for name, inode in self.entries.get(folder, {}).items():
            path = os.path.join(folder, name)
            if path in self.entries:
                cut |= self._sure(path, f"{prefix}{name}/")
            elif not os.path.isdir(path):
                cut[prefix + name] = self.contents.get(inode, b"")
        return cut

    def _one(self, content: bytes) -> bytes:
        return self._same.setdefault(content, content)


@contextmanager
def watched(root: Path, monkeypatch):
    disk, fsync, replace = Disk(root), os.fsync, os.replace

    def forcing(descriptor):
        fsync(descriptor)
        disk.forced(descriptor)

    def replacing(source, destination):
        replace(source, destination)
        disk.note()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", forcing)
        patch.setattr(os, "replace", replacing)
        yield disk
    disk.close()


def restore(cut: dict[str, bytes], root: Path) -> None:
    """Create the folder as the power failure left it."""
    for name, content in cut.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
