"""Every optimizer and schedule of torch by yaml: it works, or one error is raised before the first step."""

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from cifarbn.cli.command_line import CONF
from cifarbn.data import Gaussian, Shapes
from cifarbn.errors import UserError
from cifarbn.fast.hardware import Hardware
from cifarbn.losses import SumOfSquares
from cifarbn.training.classifier import Classifier
from cifarbn.training.optimization import rehearse
from cifarbn.training.trainer import make_trainer

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


def factory(config):
    return instantiate(OmegaConf.create({"_partial_": True, **config}))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images):
        return self.head(images.flatten(1))


def fit(optim, schedule=None, val_size=10, **options):
    """Train for three epochs of two steps; return the learning rate of every step."""
    torch.manual_seed(0)
    classifier = Classifier(
        Flat(), nn.CrossEntropyLoss(), factory(optim), factory(schedule) if schedule else None, num_classes=10
    )
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = make_trainer(
        Hardware.choose("cpu", "32-true"),
        **{"max_epochs": 3, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | options,
        callbacks=[Watch()],
    )
    data = Shapes(train_size=20 + val_size, test_size=10, val_size=val_size, batch_size=10)
    trainer.fit(classifier, data)
    assert all(p.isfinite().all() for p in classifier.parameters())
    return rates


OPTIMIZERS = sorted(name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name, None), type))
REFUSED_OPTIMIZERS = {
    "LBFGS": "LBFGS needs a closure that computes the loss several times per step",
    "Muon": "Muon does not work with these arguments .*2D",  # it takes matrices only; this model has a bias
    "Optimizer": "Optimizer does not work with these arguments",
    "SparseAdam": "SparseAdam does not work with these arguments .*dense gradients",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_works_or_is_an_error_before_the_first_step(name):
    optim = {"_target_": f"torch.optim.{name}", "lr": 1e-4}
    if name in REFUSED_OPTIMIZERS:
        with pytest.raises(UserError, match=f"^optim: {REFUSED_OPTIMIZERS[name]}"):
            fit(optim)
    else:
        assert len(fit(optim)) == 6


class NoRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


def test_an_optimizer_whose_groups_have_no_learning_rate_is_an_error():
    with pytest.raises(
        UserError, match="^optim: the parameter groups of NoRate have no 'lr'.*add 'lr' to the defaults"
    ):
        fit({"_target_": "test_optimization.NoRate"})


SCHEDULES = {
    "LambdaLR": {"lr_lambda": {"_target_": "builtins.pow", "_partial_": True, "_args_": [0.5]}},
    "MultiplicativeLR": {"lr_lambda": {"_target_": "builtins.pow", "_partial_": True, "_args_": [0.5]}},
    "StepLR": {"step_size": 1},
    "MultiStepLR": {"milestones": [1]},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.5},
    "CosineAnnealingLR": {"T_max": 3},
    "ReduceLROnPlateau": {},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "OneCycleLR": {"max_lr": 0.1},
    "PolynomialLR": {},
    "SequentialLR": {"schedulers": [{"_target_": "torch.optim.lr_scheduler.ConstantLR", "_partial_": True}]},
    "ChainedScheduler": {},
    "LRScheduler": {},
}
REFUSED_SCHEDULES = ("SequentialLR", "ChainedScheduler", "LRScheduler")


@pytest.mark.parametrize("name", torch.optim.lr_scheduler.__all__)
def test_every_schedule_of_torch_works_or_is_an_error_before_the_first_step(name):
    schedule = {"_target_": f"torch.optim.lr_scheduler.{name}", **SCHEDULES[name]}
    if name in REFUSED_SCHEDULES:
        with pytest.raises(UserError, match=f"^schedule: {name} does not work with these arguments"):
            fit(SGD | {"momentum": 0.9}, schedule)
    else:
        assert len(fit(SGD, schedule)) == 6


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"_target_": "torch.optim.lr_scheduler.ConstantLR", "last_epoch": 0}, "ConstantLR .*KeyError.*initial_lr"),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 0}, "StepLR .*ZeroDivisionError"),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": "often"}, "StepLR"),
        ({"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 0}, "CosineAnnealingLR .*ZeroDivision"),
        ({"_target_": "torch.nn.Identity"}, "Identity returns a Identity, not a torch LRScheduler"),
        ({"_target_": "builtins.dict"}, "dict does not work with these arguments"),
        ({"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": 5}, "total_steps: remove"),
        ({"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "epochs": 5}, "epochs: remove it; .*=6"),
    ],
)
def test_a_schedule_that_would_fail_later_is_an_error_now(schedule, message):
    with pytest.raises(UserError, match=f"^schedule.*{message}"):
        fit(SGD, schedule)


@pytest.mark.parametrize("name", ["onecycle", "linear"])
def test_one_step_in_all_trains_or_is_an_error_in_one_message(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        schedule = OmegaConf.to_container(compose("train", [f"schedule={name}"]), resolve=True)["schedule"]
    try:
        assert len(fit(SGD, schedule, max_steps=1, max_epochs=1)) == 1
    except UserError as error:
        assert str(error).startswith("schedule: OneCycleLR does not work with these arguments")


def test_a_plateau_s_schedule_needs_a_validation_set():
    with pytest.raises(UserError, match=r"set data.val_size above 0"):
        fit(SGD, {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, val_size=0)


def test_a_plateau_s_schedule_may_watch_the_accuracy():
    # No accuracy is better than the first by more than 2, so that the rate falls after every epoch but the first.
    plateau = {"mode": "max", "patience": 0, "threshold_mode": "abs", "threshold": 2}
    rates = fit(SGD, {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", **plateau})
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2)


@pytest.mark.parametrize("lr", [-1.0, "fast"])
def test_an_optimizer_that_refuses_its_arguments_reports_it_before_any_data_is_read(lr):
    with pytest.raises(UserError, match="^optim: SGD does not work with these arguments"):
        Classifier(Flat(), nn.CrossEntropyLoss(), factory(SGD | {"lr": lr}))


def test_a_target_that_makes_no_optimizer_is_an_error():
    with pytest.raises(UserError, match="returns a Flat, not a torch.optim.Optimizer"):
        Classifier(Flat(), nn.CrossEntropyLoss(), lambda parameters: Flat())


def test_a_rehearsal_leaves_parameters_gradients_and_generators_alone():
    model = Flat()
    model.head.bias.grad = torch.ones(10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            torch.rand(3)
            return super().step(closure)

    rehearse(lambda p: Noisy(p, lr=1.0, weight_decay=1.0), None, model.parameters(), total_steps=3, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.head.bias.grad, torch.ones(10)) and model.head.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plateau_s_schedule_moves_only_in_the_epochs_that_are_validated():
    plateau = {"patience": 0, "threshold": 1e9}  # nothing is ever good enough
    schedule = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", **plateau}
    rates = fit(SGD, schedule, max_epochs=5, check_val_every_n_epoch=2)
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 4 + [1e-3] * 2)


def test_a_plateau_s_schedule_cannot_watch_the_accuracy_of_a_regression():
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "mode": "max"}
    classifier = Classifier(nn.Linear(3, 3), SumOfSquares(), factory(SGD), factory(plateau), num_classes=0)
    trainer = make_trainer(
        Hardware.choose("cpu", "32-true"),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with pytest.raises(UserError, match="a regression has no accuracy to monitor"):
        trainer.fit(classifier, Gaussian(samples=4, features=3, steps_per_epoch=2))
