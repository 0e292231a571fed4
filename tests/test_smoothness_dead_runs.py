import copy
import json
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn import functional

from cifarbn.cli.command_line import CONF
from cifarbn.losses import OneHotMSELoss, SumOfSquares
from cifarbn.models import VGG, DeepLinear
from cifarbn.smoothness.dead_runs import constant_prediction_loss, dead_since
from cifarbn.train import train

SMALL = ["model=vgg_a", "model.width=4", "trainer=cpu", "record=held_out_accuracy"]
GUESS = math.log(10)
LEARNS = list(np.linspace(GUESS, 0.5, 100))


def test_a_loss_stuck_at_a_guess_is_dead_from_its_first_stuck_step():
    assert dead_since([3.0, 2.0, *[2.303] * 100], GUESS) == 2
    assert dead_since([3.0, 2.0, *[2.303] * 99], GUESS) is None


@pytest.mark.parametrize(("loss", "dead"), [(1.009, True), (0.991, True), (1.011, False), (0.989, False)])
def test_stuck_means_within_one_percent(loss, dead):
    assert (dead_since([loss * GUESS] * 5, GUESS, patience=5) == 0) is dead


def test_a_vgg_that_first_stays_at_a_guess_and_then_learns_is_alive():
    assert dead_since([2.303] * 500 + LEARNS, GUESS) is None


def test_a_run_that_dies_after_learning_is_dead():
    assert dead_since(LEARNS + [2.303] * 200, GUESS, patience=200) == 100


def test_one_loss_off_the_guess_restarts_the_count():
    assert dead_since([2.303] * 150 + [2.1] + [2.303] * 99, GUESS) is None


def test_no_gradient_is_dead_at_any_loss_but_a_vanishing_one():
    norms = [1.0, *[0.0] * 5]
    for level in (GUESS, None):
        assert dead_since([0.5] * 6, level, norms, patience=5) == 1
        assert dead_since([1e-11] * 6, level, norms, patience=5) is None  # everything learnt
        assert dead_since([0.5] * 6, level, [1e-3] * 6, patience=5) is None
    assert dead_since([1e-9] * 6, GUESS, norms, patience=5) is None


def test_other_levels():
    assert dead_since([math.log(100)] * 5, math.log(100), patience=5) == 0
    assert dead_since([math.log(100)] * 5, GUESS, patience=5) is None
    assert dead_since([GUESS] * 5, None, patience=5) is None


def test_a_diverged_run_and_a_run_without_steps_are_not_dead():
    assert dead_since([2.3, 3.0, float("inf"), float("nan")], GUESS, patience=1) is None
    assert dead_since([], GUESS) is None


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_constant_prediction_has_the_loss_of_the_formulas(classes):
    for smoothing in (0.0, 0.1):
        level = constant_prediction_loss(nn.CrossEntropyLoss(label_smoothing=smoothing), classes)
        assert level == pytest.approx(math.log(classes), rel=1e-9)
    assert constant_prediction_loss(OneHotMSELoss(), classes) == pytest.approx((1 - 1 / classes) / classes, rel=1e-9)


def test_the_minimum_of_a_users_own_loss():
    def far_from_zero(logits, labels):  # least at logits of 7, where it is 3
        return ((logits - 7) ** 2).mean() + 3 + 0 * labels.sum()

    assert constant_prediction_loss(far_from_zero, 10) == pytest.approx(3, rel=1e-9)
    assert constant_prediction_loss(functional.cross_entropy, 10) == pytest.approx(GUESS, rel=1e-9)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))  # the entropy of 1/4 and 3/4
    expected = -(math.log(0.25) + 3 * math.log(0.75)) / 4
    assert constant_prediction_loss(weighted, 2) == pytest.approx(expected, rel=1e-6)


def test_a_loss_that_sums_over_images_grows_with_the_batch():
    assert constant_prediction_loss(nn.CrossEntropyLoss(reduction="sum"), 10, 128) == pytest.approx(128 * GUESS)
    assert constant_prediction_loss(nn.CrossEntropyLoss(), 10, 128) == pytest.approx(GUESS)


def test_losses_without_such_a_level():
    assert constant_prediction_loss(SumOfSquares(), 0) is None, "a regression has no classes"
    assert constant_prediction_loss(nn.BCELoss(), 10) is None, "it takes other labels"
    assert constant_prediction_loss(lambda logits, labels: -logits.sum(), 10) is None, "unbounded"
    assert constant_prediction_loss(lambda logits, labels: (logits**2).sum(), 10) is None, "nothing is within 1 % of 0"


def test_the_loss_and_the_random_generators_are_unchanged():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, logits, labels):
            self.calls += 1
            return self.scale * functional.cross_entropy(logits, labels) + 0 * torch.rand(())

    loss = Noisy()
    before, rng = copy.deepcopy(loss.state_dict()), torch.get_rng_state()
    assert constant_prediction_loss(loss, 10) == pytest.approx(GUESS)
    assert all(torch.equal(value, loss.state_dict()[name]) for name, value in before.items())
    assert loss.scale.dtype == torch.float32 and loss.scale.grad is None
    assert torch.equal(rng, torch.get_rng_state())


def losses_of(model, loss, x, y, steps, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    found, norms = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        found.append(value.item())
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())))
        optimizer.step()
    return found, norms


def test_a_dead_mse_run_is_found_and_a_living_one_is_not():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    loss, level = OneHotMSELoss(), constant_prediction_loss(OneHotMSELoss(), 10)
    dead = VGG("A", width=4)
    with torch.no_grad():
        dead.features[0].weight.zero_()  # no image information gets through: only the bias of the head can learn
        dead.features[0].bias.fill_(-1)
        dead.head.bias.fill_(0.1)
    losses, norms = losses_of(dead, loss, x, y, 20, 0.1)
    assert dead_since(losses, level, norms, patience=20) == 0
    assert dead_since(losses, GUESS, patience=20) is None, "the level of another loss finds nothing"
    living = VGG("A", norm=nn.BatchNorm2d, width=4)
    losses, norms = losses_of(living, loss, x, y, 20, 0.5)
    assert dead_since(losses, level, norms, patience=10) is None


def test_the_deep_linear_network_is_no_false_alarm():
    """Its loss is a sum of squares, which may well pass or rest at ln 10 or at 0.09."""
    torch.manual_seed(0)
    x = torch.randn(100, 10)
    losses, norms = losses_of(DeepLinear(depth=5), SumOfSquares(), x, x @ torch.randn(10, 10), 60, 1e-5)
    for level in (losses[-1], GUESS, 0.09):
        shifted = np.array(losses) * level / losses[-1]
        assert dead_since(shifted, constant_prediction_loss(SumOfSquares(), 0), norms, patience=10) is None


@pytest.mark.parametrize(
    ("overrides", "level"),
    [
        (["data=shapes", "data.train_size=100", "data.test_size=20", "data.val_size=20", "loss=mse", *SMALL], 0.09),
        (["experiment=santurkar2018/dln", "trainer.max_steps=2", "model.depth=2", "record=held_out_accuracy"], None),
    ],
)
def test_a_run_records_its_own_level(tmp_path, overrides, level):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, "epochs=1", "trainer.enable_progress_bar=false"])
    cfg.record = {}
    (tmp_path / "run").mkdir()
    result = train(cfg, tmp_path / "run", [])
    assert result["status"] == "done"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["constant_prediction_loss"] == pytest.approx(
        level
    )
