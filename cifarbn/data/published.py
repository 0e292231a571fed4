"""The base of the data modules that read the files of a published data set."""

from pathlib import Path
from typing import Any

from cifarbn.data.downloads import PublishedFiles
from cifarbn.data.images import Images
from cifarbn.data.module import DataModule
from cifarbn.data.options import check_flag
from cifarbn.errors import UserError


class PublishedData(DataModule):
    """A published data set, read from `root`; subclasses define `files` and implement `decode`.

    Args:
        root: the folder that contains the files in torchvision's layout.
        download: download the files into `root` if they are missing.
        **options: as for `DataModule`.
    """

    def __init__(self, root: str | Path, download: bool, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(root, (str, Path)) or not str(root):
            raise UserError(f"data.root must be a folder, not {root!r}; without it, CIFARBN_DATA or ./data is used")
        self.root = root
        self.download = check_flag("download", download)

    @property
    def files(self) -> PublishedFiles:
        """The files, by torchvision's list of names and MD5s."""
        raise NotImplementedError

    def decode(self, files: dict[str, bytes]) -> tuple[Images, Images]:
        """Return the training and the test images in these files."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Download the data set if it is missing; Lightning calls this in one process per machine."""
        self.files.find(self.root, self.download)

    def read(self) -> tuple[Images, Images]:
        """Read and verify the files."""
        return self.decode(self.files.read(self.root, self.download))
