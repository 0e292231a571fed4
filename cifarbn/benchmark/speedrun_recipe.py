"""The recipe of a speedrun, from `conf/experiment`, and the outcome of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from cifarbn.cli.composition import CONF
from cifarbn.data import Augmentation
from cifarbn.losses import Loss
from cifarbn.models import SpeedNet
from cifarbn.training.optimization import OptimizerFactory, ScheduleFactory


@dataclass(frozen=True)
class Recipe:
    """The parts of a training run.

    Attributes:
        make_model: returns a new model, initialised from torch's global random generator.
        loss: `(logits, labels) -> scalar`.
        make_optimizer: `parameters -> Optimizer`.
        make_schedule: `optimizer -> LRScheduler`.
        lr: the learning rate that the schedule starts from.
        augmentation: of the training images.
        batch_size: images in a training batch.
        eval_batch_size: images in a test batch.
        epochs: passes over the training images.
        tta: the test-time augmentation, a name of `cifarbn.training.tta.POLICIES`.
    """

    make_model: Callable[[], SpeedNet]
    loss: Loss
    make_optimizer: OptimizerFactory
    make_schedule: ScheduleFactory
    lr: float
    augmentation: Augmentation
    batch_size: int
    eval_batch_size: int
    epochs: int
    tta: str

    @classmethod
    def of(cls, experiment: str, overrides: Sequence[str] = ()) -> "Recipe":
        """Compose an experiment with overrides, both as on the command line of `cifarbn.train`."""
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=[f"experiment={experiment}", *overrides])
        return cls(
            make_model=lambda: instantiate(cfg.model),
            loss=instantiate(cfg.loss),
            make_optimizer=instantiate(cfg.optim),
            make_schedule=instantiate(cfg.schedule),
            lr=cfg.optim.lr,
            augmentation=instantiate(cfg.augment),
            batch_size=cfg.data.batch_size,
            eval_batch_size=cfg.data.eval_batch_size,
            epochs=cfg.epochs,
            tta=cfg.tta,
        )


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run.

    Attributes:
        seconds: total time of whitening, training and the final test.
        accuracy: test accuracy with test-time augmentation, a fraction.
        accuracy_without_tta: test accuracy without it.
    """

    seconds: float
    accuracy: float
    accuracy_without_tta: float
