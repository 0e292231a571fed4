"""A user's own images, in one folder per class."""

from pathlib import Path
from typing import Any

from cifarbn.data.class_folders import content_key, list_parts
from cifarbn.data.decoded import decode, default_cache, rank_zero_print
from cifarbn.data.images import Images
from cifarbn.data.memory import check_memory
from cifarbn.data.module import DataModule, split
from cifarbn.data.options import VAL_SHARE, check_size, number_of_test_images
from cifarbn.errors import UserError


class ImageFolder(DataModule):
    """Images of any format and size in one folder per class, decoded once and cached.

    Args:
        root: holds either one folder per class, or the folders train, val and test, each with one folder per class;
            see `list_parts`.
        size: height and width to which all images are scaled and cropped: one number, or (height, width).
        val_size: validation images, a number or a fraction of the training images; 0 for none. None: those in the
            folder val or, without one, 10 % of the training images, selected at random by `split_seed`.
        test_size: test images, a number or a fraction of all images. None: those in the folder test or, without one,
            20 % of the images, selected at random by `split_seed`.
        cache: folder of the decoded images; None for the user's cache folder, False for no cache.
        content: the expected `content_key` of the images, of which the folder's name does not count; "" for any.
        **options: as for `DataModule`.

    Raises:
        UserError: if the folders do not hold a data set for classification, or an option does not fit them.
    """

    def __init__(
        self,
        root: str | Path | None,
        size: int | tuple[int, int] = 32,
        *,
        val_size: int | float | None = None,
        test_size: int | float | None = None,
        cache: str | Path | bool | None = None,
        content: str = "",
        **options: Any,
    ) -> None:
        self.parts = list_parts(root)
        self.root = root
        if content and content.rpartition("-")[2] != content_key(root).rpartition("-")[2]:
            raise UserError(
                f"data.root: {root} does not hold the images of data.content={content}: files were added, removed or "
                "changed. Set data.root to the folder of these images"
            )
        self.cache = _cache_folder(cache)
        for key, share, folder in (("val_size", val_size, "val"), ("test_size", test_size, "test")):
            if share and folder in self.parts:
                raise UserError(f"data.{key} cannot be set: {root} has a folder {folder}. Remove one of them")
        if val_size == 0:
            self.parts.pop("val", None)
        train_size: int | None = len(self.parts["train"])
        self.test_count = 0
        if "test" not in self.parts:
            self.test_count = number_of_test_images(test_size, len(self.parts["train"]))
            train_size = len(self.parts["train"]) - self.test_count
        if "val" in self.parts:
            val_size, train_size = len(self.parts["val"]), None
        super().__init__(
            name=Path(str(root)).expanduser().absolute().name,
            classes=self.parts["train"].classes,
            train_size=train_size,
            val_size=VAL_SHARE if val_size is None else val_size,
            image_size=check_size("size", size),
            **options,
        )
        self._decoded: dict[str, Images] = {}

    def prepare_data(self) -> None:
        """Decode the images into the cache; Lightning calls this in one process per machine."""
        assert self.image_size
        check_memory(sum(map(len, self.parts.values())), self.image_size)
        others = [file for part in self.parts.values() for file in part.others]
        if others:
            suffixes = ", ".join(sorted({file.suffix or file.name for file in others})[:5])
            rank_zero_print(f"{self.root}: ignoring files that are not images: {len(others)} ({suffixes})")
        self._decoded = {name: decode(part, self.image_size, self.cache, name) for name, part in self.parts.items()}

    def read(self) -> tuple[Images, Images] | tuple[Images, Images, Images]:
        """Return the images of each part, split at random where a part has no folder."""
        if not self._decoded:
            self.prepare_data()
        parts, self._decoded = self._decoded, {}
        train = parts["train"]
        if self.test_count:
            total = len(train)
            train, test = split(train, self.test_count, "test split", self.split_seed)
            self.split_note = (
                f"test set: {len(test)} of {total} images, selected at random (data.split_seed={self.split_seed}), "
                f"since {self.root} has no folder test"
            )
        else:
            test = parts["test"]
        return (train, parts["val"], test) if "val" in parts else (train, test)


def _cache_folder(cache: Any) -> Path | None:
    if cache is False:
        return None
    if cache is None:
        return default_cache()
    if not isinstance(cache, (str, Path)) or not str(cache):
        raise UserError(f"data.cache must be a folder, null for the default one or false for no cache, not {cache!r}")
    return Path(cache).expanduser()
