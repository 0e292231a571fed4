"""The images that the benchmarks use."""

import pytest

from cifarbn.benchmark.images import data_overrides, read_images
from cifarbn.data import draw_shapes


def test_without_cifar10_images_are_synthetic_and_the_name_states_it(tmp_path):
    name, train, test = read_images(str(tmp_path), 12)
    assert name == f"shapes (no CIFAR-10 in {tmp_path})" and (len(train), len(test)) == (12, 2)
    assert train.fingerprint == draw_shapes(12, seed=0).fingerprint
    assert data_overrides(str(tmp_path)) == ["data=shapes", "data.train_size=50000", "data.test_size=10000"]


def test_synthetic_images_are_repeated_beyond_the_limit(tmp_path):
    _, train, _ = read_images(str(tmp_path), 5, drawn=2)
    assert train.fingerprint == draw_shapes(2, seed=0)[[0, 1, 0, 1, 0]].fingerprint


@pytest.mark.cifar10
def test_cifar10_is_used_if_available(cifar10_root):
    name, train, test = read_images(str(cifar10_root), 10)
    assert name == "cifar10" and (len(train), len(test)) == (10, 2)
    assert data_overrides(str(cifar10_root)) == [f"data.root={cifar10_root}", "data.download=false"]
