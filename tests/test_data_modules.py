"""What every data module of this package does, on tiny files in each data set's own layout."""

import json

import pytest
import torch
from data_files import ToyDataset, write_cifar100, write_fashion_mnist, write_folder, write_svhn
from hydra import compose, initialize_config_dir

from cifarbn.cli.command_line import CONF
from cifarbn.data import CIFAR10, CIFAR100, SVHN, Augmentation, FashionMNIST, FromDataset, ImageFolder, Shapes
from cifarbn.data.interface import check_data, class_names, num_classes
from cifarbn.data.published import PublishedData
from cifarbn.errors import UserError
from cifarbn.predict import main as predict
from cifarbn.train import train

NAMES = ("cifar10", "cifar100", "svhn", "fashion_mnist", "fashion_mnist 28", "shapes", "folder", "dataset")
SIZES = {"fashion_mnist 28": (28, 28), "folder": (16, 24), "dataset": (12, 10)}
PUBLISHED = NAMES[:5]


@pytest.fixture
def make(request, tmp_path, monkeypatch):
    """A function that creates the data module of a name, with some options, on files that exist once per test."""
    roots = {}

    def create(name, **options):
        if name == "shapes":
            return Shapes(**{"train_size": 30, "test_size": 10, "val_size": 6} | options)
        if name == "dataset":
            return FromDataset(ToyDataset(), **options)
        kind = name.split()[0]
        if kind not in roots:
            writers = {"cifar100": write_cifar100, "svhn": write_svhn, "fashion_mnist": write_fashion_mnist}
            if kind == "cifar10":
                roots[kind] = request.getfixturevalue("tiny_cifar10")
            elif kind == "folder":
                roots[kind] = write_folder(tmp_path / "images")
            else:
                roots[kind] = writers[kind](tmp_path / kind, monkeypatch)
        if kind == "folder":
            return ImageFolder(roots[kind], size=(16, 24), cache=tmp_path / "cache", **options)
        kinds = {"cifar10": CIFAR10, "cifar100": CIFAR100, "svhn": SVHN, "fashion_mnist": FashionMNIST}
        options = {"val_size": 6, "download": False} | ({"size": 28} if name.endswith("28") else {}) | options
        return kinds[kind](roots[kind], **options)

    return create


@pytest.mark.parametrize("name", NAMES)
def test_a_data_module_yields_normalised_batches_and_describes_its_images(make, name):
    data = check_data(make(name, batch_size=4, augmentation=Augmentation(pad=2)))
    size = SIZES.get(name, (32, 32))
    # Known before anything is read: models need the number of classes.
    classes = class_names(data)
    assert len(classes) == num_classes(data) == len(set(classes)) >= 2
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), *data.val_dataloader(), data.test_dataloader()):
        images, labels = next(iter(loader))
        assert images.shape == (len(labels), 3, *size) and images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64 and 0 <= labels.min() and labels.max() < len(classes)
    facts = data.describe()
    assert json.loads(json.dumps(facts)) == facts
    names = {"folder": "images", "dataset": "ToyDataset"}  # of the user's own data
    assert facts["name"] == names.get(name, name.split()[0]) and facts["classes"] == list(classes)
    assert facts["image_size"] == list(size)
    assert [facts[f"{part}_size"] for part in ("train", "val", "test")] == [
        *(len(data.train_images), len(data.val_images), len(data.test_images))
    ]
    assert len(data.val_images) and len(facts["mean"]) == len(facts["std"]) == 3


@pytest.mark.parametrize("name", NAMES)
def test_two_instances_read_the_same_images_and_hold_out_the_same_ones(make, name):
    first, second = make(name), make(name, seed=5, batch_size=3)
    first.setup(), second.setup()
    assert first.describe()["fingerprint"] == second.describe()["fingerprint"]
    for part in ("train_images", "val_images", "test_images"):
        assert getattr(first, part).fingerprint == getattr(second, part).fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_images_are_read_once(make, name, monkeypatch):
    data, reads = make(name), []
    read = data.read
    monkeypatch.setattr(data, "read", lambda: reads.append(1) or read())
    data.setup("fit"), data.setup("test")
    assert reads == [1]


@pytest.mark.parametrize("name", NAMES)
def test_without_validation_images_there_is_no_validation_loader(make, name):
    data = make(name, val_size=0)
    data.setup()
    assert data.val_dataloader() == [] and data.val_names == () and len(data.val_images) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_padding_of_the_size_of_the_images_is_an_error(make, name):
    size = min(SIZES.get(name, (32, 32)))
    with pytest.raises(UserError, match=f"augment.pad must be below {size}, the size of the images, not {size}"):
        data = make(name, augmentation=Augmentation(pad=size))
        data.setup()
        data.train_dataloader()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("damage, fault", [("truncate", "truncated or altered"), ("alter", "truncated or altered")])
def test_a_damaged_file_is_named(make, name, damage, fault):
    data = make(name)
    assert isinstance(data, PublishedData)
    file = data.files.find(data.root, download=False) / list(data.files.md5s)[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-1] if damage == "truncate" else content)
    with pytest.raises(UserError, match=f"is damaged: {file.name} is {fault} .MD5 .*data=shapes"):
        data.setup()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_file_is_an_error_with_the_remedy(make, name):
    data = make(name)
    (data.files.find(data.root, download=False) / list(data.files.md5s)[1]).unlink()
    with pytest.raises(UserError, match="(is missing|data.download is false).*Set data.root=PATH or .*CIFARBN_DATA"):
        data.setup()


OWN = {
    "folder": ("data.root=ROOT/images", "data.size=48", "model=vgg_a", "model.width=2"),
    "dataset": ("data.dataset._target_=data_files.ToyDataset", "model=resnet18", "model.width=2"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_run_on_a_users_own_images(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "images", size=(60, 50))
    overrides = [f"data={name}", *(each.replace("ROOT", str(tmp_path)) for each in OWN[name])]
    overrides += ["data.batch_size=8", "augment=flip", "epochs=1", "trainer=cpu", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=overrides)
    result = train(config, tmp_path / "run", overrides)
    assert result["status"] == "done" and len(result["confusion"]) == 3
    assert result["data"]["image_size"] == ([48, 48] if name == "folder" else [12, 10])
    assert str(tmp_path) not in json.dumps(result)
    capsys.readouterr()
    predict([str(tmp_path / "run"), str(tmp_path / "images" / "a" / "0.png")])
    out = capsys.readouterr().out
    assert "0.png" in out and all(label in out for label in result["data"]["classes"])


def test_before_setup_only_what_is_known_is_described(make):
    facts = make("folder").describe()
    assert facts["image_size"] == [16, 24] and "mean" not in facts and "train_size" not in facts
    assert "image_size" not in make("dataset").describe()
