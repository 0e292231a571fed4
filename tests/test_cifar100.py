import pickle

import pytest
import torchvision
from data_files import write_cifar100

from cifarbn.data import CIFAR100
from cifarbn.data.cifar100 import CLASSES


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_cifar100(tmp_path / "data", monkeypatch)


def test_labels_are_the_fine_ones_and_images_in_the_order_of_the_files(root):
    train, test = CIFAR100(root, val_size=0).read()
    batch = pickle.loads((root / "cifar-100-python" / "train").read_bytes())
    assert train.labels.tolist() == batch["fine_labels"]
    assert train.pixels[2, 1, 2, 5] == batch["data"][2, 1024 + 2 * 32 + 5]
    assert len(test) == 10


def test_images_and_labels_are_torchvisions(root):
    for train, images in zip((True, False), CIFAR100(root, val_size=0).read(), strict=True):
        reference = torchvision.datasets.CIFAR100(root, train=train)
        assert (images.pixels.permute(0, 2, 3, 1).numpy() == reference.data).all()
        assert images.labels.tolist() == reference.targets


def test_there_are_100_class_names_in_alphabetical_order():
    assert len(set(CLASSES)) == 100 and list(CLASSES) == sorted(CLASSES)
    # The published labels of some classes.
    assert [CLASSES.index(name) for name in ("apple", "cattle", "worm")] == [0, 19, 99]
