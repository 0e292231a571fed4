"""The file format of CIFAR-10 and CIFAR-100."""

import pickle
from collections.abc import Mapping

import torch
import torchvision

from cifarbn.data.downloads import PublishedArchive
from cifarbn.data.images import IMAGE_SIZE, Images

Dataset = type[torchvision.datasets.CIFAR10]  # whose class attributes list the files


def cifar_files(title: str, dataset: Dataset) -> PublishedArchive:
    """Return the files of CIFAR-10 or CIFAR-100, as torchvision lists them."""
    md5s = dict([*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])])
    return PublishedArchive(title, dataset.base_folder, md5s, dataset.filename, dataset.url, dataset.tgz_md5)


def decode_cifar(files: Mapping[str, bytes], dataset: Dataset, labels: str) -> tuple[Images, Images]:
    """Return the training and the test images, in the order of the files, channels_last, on the CPU.

    Args:
        files: the content of each file by name. They are unpickled, so verify their MD5s first.
        dataset: torchvision's class.
        labels: the key of the labels: "labels" in CIFAR-10, "fine_labels" or "coarse_labels" in CIFAR-100.
    """
    train, test = (
        _images([files[name] for name, _ in names], labels) for names in (dataset.train_list, dataset.test_list)
    )
    return train, test


def _images(batches: list[bytes], key: str) -> Images:
    pixels, labels = [], []
    for content in batches:
        batch = pickle.loads(content, encoding="latin1")
        pixels.append(torch.from_numpy(batch["data"]).view(-1, 3, IMAGE_SIZE, IMAGE_SIZE))
        labels.extend(batch[key])
    return Images(torch.cat(pixels).contiguous(memory_format=torch.channels_last), torch.tensor(labels))
