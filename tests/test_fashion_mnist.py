import pytest
import torch
import torchvision
from data_files import write_fashion_mnist
from torchvision.datasets.utils import extract_archive

from cifarbn.data import FashionMNIST
from cifarbn.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_fashion_mnist(tmp_path / "data", monkeypatch)


def test_images_and_labels_are_torchvisions_in_three_equal_channels(root):
    ours = FashionMNIST(root, size=28, val_size=0).read()
    for file in (root / "FashionMNIST" / "raw").glob("*.gz"):
        extract_archive(str(file))
    for train, images in zip((True, False), ours, strict=True):
        reference = torchvision.datasets.FashionMNIST(root, train=train)
        assert all(torch.equal(images.pixels[:, channel], reference.data) for channel in range(3))
        assert torch.equal(images.labels, reference.targets)


def test_by_default_images_are_padded_to_32_by_black_pixels(root):
    original, _ = FashionMNIST(root, size=28, val_size=0).read()
    padded, _ = FashionMNIST(root, val_size=0).read()
    assert torch.equal(padded.pixels[:, :, 2:-2, 2:-2], original.pixels)
    assert padded.pixels.int().sum() == original.pixels.int().sum()


@pytest.mark.parametrize("root_name", [".", "FashionMNIST", "FashionMNIST/raw"])
def test_the_root_may_be_any_of_torchvisions_folders(root, root_name):
    assert len(FashionMNIST(root / root_name, val_size=0, download=False).read()[0]) == 30


@pytest.mark.parametrize("size", [0, 27, 64, True, "32"])
def test_other_sizes_are_an_error(size):
    with pytest.raises(UserError, match="data.size of Fashion-MNIST must be 28 or 32, not"):
        FashionMNIST("data", size=size)
