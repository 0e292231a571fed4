"""Image files decoded once, in parallel, and cached as uint8 arrays."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm

from cifarbn.data.class_folders import ClassFolders
from cifarbn.data.image_files import read_image
from cifarbn.data.images import Images
from cifarbn.durable import replace_file
from cifarbn.errors import UserError

_FORMAT = 2  # of the cached arrays; raise it when `read_image` changes
_THREADS = 16  # at most; Pillow decodes without Python's lock
_NAMED = 5  # unreadable files named in an error

rank_zero_print = rank_zero_only(print)


def decode(images: ClassFolders, size: tuple[int, int], cache: Path | None, part: str) -> Images:
    """Return the images, scaled and cropped to `size` = (H, W) as `fit_image` does, channels_last, on the CPU.

    Args:
        images: the files.
        size: height and width.
        cache: the folder of the cached arrays; None for no cache. An array is used again as long as the files' names,
            sizes and modification times are the same.
        part: a name for the progress bar and the cache file.

    Raises:
        UserError: naming the files that cannot be read.
    """
    file = cache / _cache_name(images, size, part) if cache else None
    pixels = _cached(file, (len(images), *size, 3)) if file else None
    if pixels is None:
        pixels = _decoded(images, size, part)
        if file:
            _store(file, pixels)
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(images.labels))


def default_cache() -> Path:
    """Return the folder `cifarbn` in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifarbn"


def _decoded(images: ClassFolders, size: tuple[int, int], part: str) -> np.ndarray:
    pixels = np.empty((len(images), *size, 3), np.uint8)

    def read(index: int) -> str:
        """Decode one image into its place; return what is wrong, "" for nothing."""
        file = images.files[index]
        try:
            if not file.is_file():  # opening a FIFO would block
                raise ValueError("not an ordinary file")
            pixels[index] = read_image(file, size).permute(1, 2, 0).numpy()
        except Exception as error:  # Pillow's codecs raise errors of any type on damaged files
            return f"{file.relative_to(images.folder)} ({str(error) or type(error).__name__})"
        return ""

    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        results = pool.map(read, range(len(images)))
        faults = [fault for fault in tqdm(results, f"decoding {part} images", len(images), unit="image") if fault]
    finally:
        pool.shutdown(cancel_futures=True)
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise UserError(
            f"data.root: cannot read {len(faults)} of {len(images)} images in {images.folder}: "
            f"{'; '.join(faults[:_NAMED])}{more}. Delete or replace these files"
        )
    return pixels


def _cache_name(images: ClassFolders, size: tuple[int, int], part: str) -> str:
    digest = hashlib.sha256(f"{_FORMAT}".encode())
    for file in images.files:
        status = os.stat(file) if file.exists() else None
        facts = (status.st_size, status.st_mtime_ns) if status else ()
        digest.update(f"{file.relative_to(images.folder)} {facts}\n".encode(errors="replace"))
    return f"{_cache_prefix(images, size, part)}{digest.hexdigest()[:16]}.npz"


def _cache_prefix(images: ClassFolders, size: tuple[int, int], part: str) -> str:
    place = hashlib.sha256(os.fsencode(images.folder)).hexdigest()[:8]
    return f"{place}-{part}-{size[0]}x{size[1]}-"


def _cached(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        # An archive has a checksum. Of a damaged one, numpy would leave the file open.
        with file.open("rb") as content, np.load(content, allow_pickle=False) as archive:
            pixels = archive["pixels"]
    except Exception:  # a damaged archive can raise anything
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _store(file: Path, pixels: np.ndarray) -> None:
    """Write the array, complete or not at all, and delete arrays of earlier versions of the same folder."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda opened: np.savez(opened, pixels=pixels))
    except OSError as error:
        rank_zero_print(f"cannot cache the decoded images in {file.parent} ({error.strerror}); set data.cache=DIR")
        return
    prefix = file.stem.rpartition("-")[0]
    for stale in file.parent.glob(f"{prefix}-*.npz"):
        if stale != file:
            stale.unlink(missing_ok=True)
