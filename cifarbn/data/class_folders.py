"""Image files in one folder per class: which there are, found without reading them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarbn.errors import UserError

SUFFIXES = frozenset(".avif .bmp .gif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of the folders of a data set that is already split -> the part."""


@dataclass(frozen=True)
class ClassFolders:
    """The images of one part of a data set.

    Attributes:
        folder: the folder that holds one folder per class.
        classes: the names of these folders, sorted; label k is `classes[k]`.
        files: the image files, sorted by class and path. Class folders may have sub-folders.
        labels: the label of each file.
        others: files in the class folders that are not images, by their suffix.
    """

    folder: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    others: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)


def list_parts(root: Any) -> dict[str, ClassFolders]:
    """Return the parts "train" and, if they have folders of their own, "val" and "test".

    `root` holds either one folder per class, or the folders train, val (or valid, validation) and test, each with one
    folder per class. Hidden files and folders are skipped.

    Raises:
        UserError: if there are not at least two classes with at least one image each, or the parts have different
            classes.
    """
    if not isinstance(root, (str, Path)) or not str(root):
        raise UserError(f"data.root must be the folder of your images, not {root!r}; set data.root=DIR")
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}; set data.root=DIR to the folder of your images")
    folders = _subfolders(root)
    if not folders:
        raise UserError(f"data.root: {root} has no sub-folders; put the images of each class into a folder of its own")
    if "train" not in folders or not _subfolders(root / "train"):
        return {"train": _list_classes(root)}
    if unknown := sorted(set(folders) - set(PARTS)):
        raise UserError(
            f"data.root: {root} has the folder train, and also {', '.join(unknown)}; next to train, only val "
            "(or valid, validation) and test are allowed. Move the other folders, or rename train if it is a class"
        )
    parts: dict[str, ClassFolders] = {}
    for name in folders:
        if PARTS[name] in parts:
            raise UserError(f"data.root: {root} has several folders for validation; keep one of val, valid, validation")
        parts[PARTS[name]] = _list_classes(root / name)
    for part in parts.values():
        if part.classes != parts["train"].classes:
            different = sorted(set(part.classes) ^ set(parts["train"].classes))
            raise UserError(
                f"data.root: {parts['train'].folder} and {part.folder} must have the same class folders; only one of "
                f"them has {', '.join(different[:5])}"
            )
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


def content_key(root: Any) -> str:
    """Return the name of the folder `root` and a hash of the names and sizes of all image files in it.

    It identifies the images of a run wherever the folder is, since results do not hold paths. It is "" if the images
    cannot be listed.
    """
    try:
        parts = list_parts(root)
    except (UserError, OSError):
        return ""
    digest = hashlib.sha256()
    for name, part in parts.items():
        for file in part.files:
            digest.update(f"{name}/{file.relative_to(part.folder).as_posix()} {_size(file)}\n".encode(errors="replace"))
    return f"{Path(root).expanduser().absolute().name}-{digest.hexdigest()[:12]}"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1  # -1 for a broken link


def _list_classes(folder: Path) -> ClassFolders:
    classes = _subfolders(folder)
    if len(classes) < 2:
        raise UserError(
            f"data.root: {folder} must have one sub-folder per class, at least two; it has "
            f"{f'only {classes[0]!r}' if classes else 'none'}"
        )
    files: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        images, rest = _list_files(folder / name)
        files += images
        labels += [label] * len(images)
        others += rest
        if not images:
            empty.append(name)
    if empty:
        raise UserError(
            f"data.root: no images in {', '.join(str(folder / name) for name in empty[:5])} "
            f"(a class folder holds files of {', '.join(sorted(SUFFIXES))}); add images, or delete the folder"
        )
    return ClassFolders(folder, tuple(classes), tuple(files), tuple(labels), tuple(others))


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files below a folder, and the other files."""
    images: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                (images if Path(name).suffix.lower() in SUFFIXES else others).append(Path(parent) / name)
    return sorted(images), sorted(others)
