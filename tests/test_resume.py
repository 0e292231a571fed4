"""A run that is interrupted within an epoch and resumed ends bit-equal to an uninterrupted one."""

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from cifarbn.cli.command_line import CONF
from cifarbn.errors import Interrupted
from cifarbn.fast.hardware import Hardware
from cifarbn.training.callbacks.resume_checkpoint import ResumeCheckpoint
from cifarbn.training.callbacks.timing import Timing
from cifarbn.training.classifier import Classifier
from cifarbn.training.trainer import make_trainer

SHAPES = ["data=shapes", "data.train_size=160", "data.val_size=32", "data.test_size=10", "data.batch_size=32"]
LOADERS = {
    "shapes": SHAPES,
    "cifar10": ["data=cifar10", "data.val_size=6", "data.batch_size=10"],
    "gaussian": ["data=gaussian", "data.samples=8", "data.steps_per_epoch=4", "loss=sum_of_squares"],
}


def options(group):
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "custom")


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


class Small(nn.Module):
    """Draws random numbers, so that a generator that is not restored shows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        return self.head(nn.functional.dropout(self.conv(images).mean((2, 3)), 0.2, self.training))


class StopAfter(pl.Callback):
    def __init__(self, last, step):
        self.last, self.step = last, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.last._save(trainer)
            raise Interrupted


def run(cfg, folder, stop_after=None, checkpoint=None):
    """Returns the batches' labels, the weights, and the states of optimizer and schedule."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    data = instantiate(cfg.data)
    model = nn.Sequential(nn.Linear(10, 10)) if "gaussian" in cfg.data._target_.lower() else Small()
    classifier = Classifier(model, *map(instantiate, (cfg.loss, cfg.optim, cfg.schedule)))
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append((trainer.global_step, batch[0].clone(), trainer.optimizers[0].param_groups[0]["lr"]))

    last = ResumeCheckpoint(folder, 1e9, Timing())
    stop = [StopAfter(last, stop_after)] if stop_after else []
    trainer = make_trainer(
        Hardware.choose("cpu", "32-true"),
        max_epochs=cfg.epochs,
        logger=False,
        enable_progress_bar=False,
        callbacks=[Watch(), last, *stop],
    )
    try:
        trainer.fit(classifier, data, ckpt_path=checkpoint, weights_only=True)
    except Interrupted:
        return seen, None
    states = [trainer.optimizers[0].state_dict(), trainer.lr_scheduler_configs[0].scheduler.state_dict()]
    return seen, [model.state_dict(), *states, torch.get_rng_state()]


def assert_same(a, b):
    leaves_a, spec_a = torch.utils._pytree.tree_flatten(a)
    leaves_b, spec_b = torch.utils._pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def assert_continues(cfg, tmp_path, stop_after):
    steps, whole = run(cfg, tmp_path / "whole")
    first, _ = run(cfg, tmp_path / "cut", stop_after)
    second, end = run(cfg, tmp_path / "cut", checkpoint=tmp_path / "cut" / "last.ckpt")
    assert len(first) == stop_after and second[0][0] == stop_after
    assert_same(first + second, steps)
    assert_same(end, whole)


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("optim", options("optim"))
def test_under_every_schedule_and_optimizer(optim, schedule, tmp_path):
    cfg = config(*SHAPES, f"optim={optim}", f"schedule={schedule}", "optim.lr=0.01", "epochs=2")
    assert_continues(cfg, tmp_path, stop_after=3)


@pytest.mark.parametrize("loader", LOADERS)  # other data sets use the loader of cifar10 and shapes
@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_with_every_loader(loader, schedule, tiny_cifar10, tmp_path):
    root = [f"data.root={tiny_cifar10}"] if loader == "cifar10" else []
    cfg = config(*LOADERS[loader], *root, f"schedule={schedule}", "optim=sgd", "optim.lr=1e-4", "epochs=2")
    assert_continues(cfg, tmp_path, stop_after=6)


def test_a_plateau_s_schedule_has_moved_before_the_epoch_s_checkpoint(tmp_path):
    cfg = config(*SHAPES, "optim=sgd", "epochs=4")
    cfg.schedule = {
        "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "_partial_": True,
        "patience": 0,
        "threshold": 1e9,  # nothing is ever good enough, so that the rate falls after every epoch
    }
    steps, _ = run(cfg, tmp_path / "watched")
    assert [lr for _, _, lr in steps] == pytest.approx([0.1] * 4 + [0.01] * 4 + [1e-3] * 4 + [1e-4] * 4)
    for stop_after in (6, 10):
        assert_continues(cfg, tmp_path, stop_after)
