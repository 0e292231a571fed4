import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from cifarbn.data import InMemoryLoader, shapes
from cifarbn.data.shapes import draw_shapes


@pytest.fixture(scope="module")
def train():
    return draw_shapes(4000, shapes.TRAIN_SEED)


@pytest.fixture(scope="module")
def test():
    return draw_shapes(1000, shapes.TEST_SEED)


def test_every_class_is_equally_frequent(train):
    assert len(shapes.CLASSES) == 10
    assert torch.bincount(train.labels).tolist() == 10 * [400]


def test_an_image_depends_only_on_its_seed_and_index(train):
    assert draw_shapes(1500, shapes.TRAIN_SEED).fingerprint == train[:1500].fingerprint
    assert draw_shapes(1500, shapes.TEST_SEED).fingerprint != train[:1500].fingerprint
    assert len(draw_shapes(0, 0)) == 0


def test_mean_and_std_are_those_of_the_pixels(train):
    pixels = train.pixels.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(shapes.MEAN, abs=0.01)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(shapes.STD, abs=0.01)


def test_a_linear_classifier_on_pixels_stays_far_below_90_percent(train, test):
    def features(images):
        pixels = images.pixels.flatten(1) / 255 - 0.5
        return torch.cat([pixels, torch.ones(len(images), 1)], 1)

    x = features(train)
    gram, targets = x.T @ x, x.T @ one_hot(train.labels, 10).float()
    for penalty in (100.0, 1000.0):  # the best of the decades from 1 to 10,000, and its neighbour
        weights = torch.linalg.solve(gram + penalty * torch.eye(len(gram)), targets)
        accuracy = (features(test) @ weights).argmax(1).eq(test.labels).float().mean()
        assert 0.1 < accuracy < 0.3


def test_a_small_network_exceeds_90_percent_in_256_steps(train, test):
    def block(inputs, outputs, stride):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    torch.manual_seed(0)
    model = nn.Sequential(
        *(block(3, 16, 2), block(16, 32, 1), block(32, 64, 2), block(64, 64, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=8 * 32)
    batches = InMemoryLoader(train, 128, mean=shapes.MEAN, std=shapes.STD, shuffle=True)
    for epoch in range(8):
        batches.sampler.set_epoch(epoch)
        for pixels, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            schedule.step()
    pixels, labels = next(iter(InMemoryLoader(test, 1000, mean=shapes.MEAN, std=shapes.STD)))
    model.eval()
    assert model(pixels).argmax(1).eq(labels).float().mean() > 0.9
