import io

import numpy as np
import pytest
import torch
import torchvision
from data_files import ToyDataset
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from cifarbn.data import FromDataset
from cifarbn.errors import UserError

KINDS = ("pil", "tensor", "array", "float tensor", "float array")


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_type_are_read_exactly(kind):
    dataset = ToyDataset(kind=kind)
    train, test = FromDataset(dataset, ToyDataset(7, kind)).read()
    assert np.array_equal(train.pixels.permute(0, 2, 3, 1).numpy(), dataset.pixels)
    assert train.labels.tolist() == [k % 3 for k in range(40)]
    assert len(test) == 7 and train.image_size == (12, 10)


def test_a_part_of_the_dataset_is_the_test_set_if_there_is_none(capsys):
    data = FromDataset(ToyDataset())
    data.setup()
    assert [len(part) for part in (data.train_images, data.val_images, data.test_images)] == [29, 3, 8]
    assert "test set: 8 of 40 images, selected at random (data.split_seed=0)" in capsys.readouterr().out


def test_grey_images_get_three_equal_channels():
    pixels = torch.randint(256, (4, 1, 5, 6)).byte()
    train, _ = FromDataset(TensorDataset(pixels, torch.tensor([0, 1, 0, 1])), num_classes=2, test_size=1).read()
    assert train.pixels.shape == (3, 3, 5, 6) and (train.pixels == train.pixels[:, :1]).all()


@pytest.mark.parametrize("kind", ["pil", "tensor"])
def test_images_are_scaled_to_the_size(kind):
    train, _ = FromDataset(ToyDataset(kind=kind), size=(16, 8)).read()
    assert train.image_size == (16, 8)


# Classes


def test_class_names_are_the_datasets():
    assert FromDataset(ToyDataset()).classes == ("red", "green", "blue")


def test_without_class_names_the_labels_are_counted_or_given():
    pixels = torch.randint(256, (6, 3, 4, 4)).byte()
    dataset = TensorDataset(pixels, torch.tensor([0, 4, 1, 2, 0, 1]))
    assert FromDataset(dataset, test_size=1).classes == ("0", "1", "2", "3", "4")
    assert FromDataset(dataset, test_size=1, num_classes=7).num_classes == 7


def test_a_torchvision_dataset_can_be_used():
    dataset = torchvision.datasets.FakeData(12, (3, 8, 8), num_classes=3)
    data = FromDataset(dataset, num_classes=3, val_size=2, test_size=2)
    data.setup()
    assert len(data.train_images) == 8


# Side effects


class Random(ToyDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        torch.rand(1), np.random.rand(1)
        return image, label


def test_a_random_dataset_does_not_change_the_generators():
    torch.manual_seed(0), np.random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    FromDataset(Random()).read()
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


# Mistakes


class Items(list):
    """A dataset of given items."""


PIXELS = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    "items, message",
    [
        ([PIXELS], r"item 0 must be a pair \(image, label\), not ndarray"),
        ([(PIXELS, 0), (PIXELS, 1, 2)], r"item 1 must be a pair \(image, label\), not tuple"),
        ([("cat.png", 0)], "the image of item 0 must be a PIL image, a tensor or a numpy array, not str"),
        ([(PIXELS, "cat")], "the label of item 0 must be a whole number, not 'cat'"),
        ([(PIXELS, 0.5)], "the label of item 0 must be a whole number, not 0.5"),
        ([(PIXELS, torch.tensor([1, 0]))], "the label of item 0 must be a whole number"),
        ([(PIXELS - 1.5, 0)], r"must have floats in \[0, 1\]; remove Normalize"),
        ([(PIXELS * np.nan, 0)], r"must have floats in \[0, 1\]; remove Normalize"),
        ([(PIXELS.astype(int), 0)], r"must be uint8, or floats in \[0, 1\], not torch.int64"),
        ([(np.zeros((4, 5, 4), np.uint8), 0)], r"must have the shape .* with C = 1 or 3, not \(4, 5, 4\)"),
        ([(PIXELS, 0), (PIXELS[1:], 1)], "item 1 has 3x5 pixels, and item 0 has 4x5; set data.size"),
        ([(PIXELS.astype(object), 0)], r"the image of item 0 must be uint8, or floats in \[0, 1\], not object"),
        ([(Image.new("I", (5, 4)), 0)], "the image of item 0 has an unsupported mode, I: its pixels have 32 bits"),
        ([], "data.dataset: Items is empty"),
    ],
)
def test_other_items_are_an_error_that_names_them(items, message):
    with pytest.raises(UserError, match=message):
        FromDataset(Items(items * 3 if len(items) == 1 else items), num_classes=2, test_size=1, val_size=0).read()


@pytest.mark.parametrize("label", [0, -1])
def test_one_class_only_is_an_error(label):
    with pytest.raises(UserError, match="data.dataset must have at least two classes"):
        FromDataset(Items([(PIXELS, label)] * 3))


def test_flipped_arrays_are_read():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    train, _ = FromDataset(Items([(pixels[:, ::-1], 0)] * 3), num_classes=2, test_size=1, val_size=0).read()
    assert np.array_equal(train.pixels[0].permute(1, 2, 0).numpy(), pixels[:, ::-1])


@pytest.mark.parametrize(
    "labels, message", [([0, 1, 2], "0 to 2; set data.num_classes=3"), ([0, -1, 1], "-1 to 1; change the labels")]
)
def test_labels_out_of_range_are_an_error(labels, message):
    items = Items((PIXELS, label) for label in labels)
    with pytest.raises(UserError, match=f"data.dataset: labels must be from 0 to 1, and are from {message}"):
        FromDataset(items, num_classes=2, test_size=1, val_size=0).read()


def test_an_exception_of_the_dataset_names_the_item():
    class Broken(ToyDataset):
        def __getitem__(self, index):
            return super().__getitem__(index) if index < 3 else 1 / 0

    with pytest.raises(UserError, match="data.dataset: item 3 cannot be read .ZeroDivisionError: division by zero"):
        FromDataset(Broken()).read()


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dataset": Stream()}, "data.dataset must be a map-style Dataset, with __len__ and __getitem__, not Stream"),
        ({"dataset": None}, "data.dataset must be a map-style Dataset"),
        ({"test_dataset": Stream()}, "data.test_dataset must be a map-style Dataset"),
        ({"test_dataset": ToyDataset(), "test_size": 5}, "data.test_size cannot be set with data.test_dataset"),
        ({"num_classes": 4}, "data.num_classes=4, but data.dataset has 3 names in classes"),
        ({"num_classes": 1}, "data.num_classes must be at least 2"),
        ({"test_size": 0}, "data.test_size must be above 0"),
        ({"val_size": 40}, "data.val_size must be below the number of training images, 32"),
        ({"size": -1}, "data.size must be at least 1"),
    ],
)
def test_invalid_options_are_an_error(options, message):
    with pytest.raises(UserError, match=message):
        FromDataset(**{"dataset": ToyDataset()} | options)


def test_images_with_an_exif_orientation_are_rotated():
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    train, _ = FromDataset(Items([(Image.open(file), 0)] * 3), num_classes=2, test_size=1, val_size=0).read()
    assert train.image_size == (6, 4)
