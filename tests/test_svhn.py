import pytest
import torchvision
from data_files import write_svhn

from cifarbn.data import SVHN


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_svhn(tmp_path / "data", monkeypatch)


def test_images_and_labels_are_torchvisions_and_the_digit_0_has_label_0(root):
    for split, images in zip(("train", "test"), SVHN(root, val_size=0).read(), strict=True):
        reference = torchvision.datasets.SVHN(root, split)
        assert (images.pixels.numpy() == reference.data).all()
        assert images.labels.tolist() == reference.labels.tolist()
        assert images.labels[0] == 0


def test_only_missing_files_are_downloaded(root, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "test_32x32.mat").write_bytes((root / "test_32x32.mat").read_bytes())
    before = (new / "test_32x32.mat").stat().st_mtime_ns
    train, test = SVHN(new, val_size=0).read()
    assert (len(train), len(test)) == (30, 10)
    assert (new / "test_32x32.mat").stat().st_mtime_ns == before
    assert sorted(path.name for path in new.iterdir()) == ["test_32x32.mat", "train_32x32.mat"]
