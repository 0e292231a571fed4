"""The experiments of each publication, and the scales at which they can be run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from cifarbn.cli.composition import CONF
from cifarbn.runs.identity import Role, differences, role_of

# Learning rates of VGG-A, in addition to that of its experiment files.
OTHER_RATES = ("optim.lr=5e-4", "optim.lr=2e-3", "optim.lr=1e-4")
_VGG_AT_OTHER_RATES = tuple(f"{model} {rate}" for rate in OTHER_RATES for model in ("vgg_a_bn", "vgg_a"))
_COURSE_REPORT = (
    *("vgg_a_bn", "vgg_a", "augmentation", "l2", "pool", "baseline", "stem_decay", "dropout", "sgd", "mse", "mish"),
    *("swish", "rmsprop", *_VGG_AT_OTHER_RATES),
)
_SANTURKAR_2018 = (
    *("dln_bn", "dln", "dln_bn_small_lr", "dln_small_lr", "vgg_bn", "vgg", "vgg_noisy_bn", "vgg_l1", "vgg_l2"),
    *("vgg_linf", "vgg_bn_augmented", "vgg_augmented"),
)
# The experiments of each publication, in the order of execution: the most informative ones first, in case the time
# budget runs out, and the shortest ones last, so that parallel runs end at about the same time.
SUITES: dict[str, tuple[str, ...]] = {
    "course_report": tuple(f"course_report/{name}" for name in _COURSE_REPORT),
    "santurkar2018": tuple(f"santurkar2018/{name}" for name in _SANTURKAR_2018),
    "course_handout": tuple(f"course_handout/{name}" for name in ("vgg_a_bn", "vgg_a", *_VGG_AT_OTHER_RATES)),
}

SCALES = {
    "full": "The published experiments, unchanged.",
    "fast": "The published models and data, for a GPU. The ResNets of the course report train for 30 epochs with a "
    "one-cycle learning rate instead of 200 epochs; VGG-A at the first learning rate also uses one cycle, to reach its "
    "accuracy. VGG-A at all four constant learning rates, which the smoothness figures need, and the experiments of "
    "Santurkar et al. 2018 are unchanged.",
    "laptop": "Smaller versions of the published experiments, for two CPU cores: narrower models and few epochs. Their "
    "accuracies are not comparable with the published ones; the gain from one row to another may be, with care.",
    "smoke": "A few steps on synthetic images, to check that everything runs. The numbers have no meaning.",
}
COMPARABLE = ("full", "fast")

# All ResNets except `baseline` share epochs, batch size and schedule, so that rows differ only in their own change.
# 30 epochs: with 20, batch size 512 and a peak of 3e-3, `l2` and `pool` were 0.3 and 0.6 points below the course report
# (92.30 and 92.25 %, one run each on an H200).
_RESNET = ("epochs=30", "data.batch_size=256", "schedule=onecycle")
# The overrides of scale fast, by experiment; experiments that are not listed are unchanged. The learning rate is the
# peak of the cycle. Chosen from the literature and the runs above; only VGG-A was measured (docs/gpu.md).
# The suite course_report trains on 26.5 million images in 21 runs: 11 ResNets x 30 epochs, of which `baseline` needs a
# fifteenth of the multiplications of the others, and 10 VGG-A x 20 epochs.
FAST: dict[str, tuple[str, ...]] = {
    # Without augmentation the model soon memorises the training images; smaller batches and larger steps delay that.
    "course_report/baseline": ("epochs=30", "data.batch_size=128", "schedule=onecycle", "optim.lr=3e-3"),
    # Adam: 3e-3 at batch 512, times sqrt(256 / 512) (Malladi et al. 2022, arXiv 2205.10287).
    "course_report/stem_decay": (*_RESNET, "optim.lr=2e-3"),
    "course_report/augmentation": (*_RESNET, "optim.lr=2e-3"),
    "course_report/l2": (*_RESNET, "optim.lr=2e-3"),
    "course_report/dropout": (*_RESNET, "optim.lr=2e-3"),
    "course_report/pool": (*_RESNET, "optim.lr=2e-3"),
    "course_report/mish": (*_RESNET, "optim.lr=2e-3"),
    "course_report/swish": (*_RESNET, "optim.lr=2e-3"),
    # The gradient of a squared error does not vanish for correctly classified images, so gradient noise persists.
    "course_report/mse": (*_RESNET, "optim.lr=1e-3"),
    # 0.1 for 256 images is usual (He et al. 2016, arXiv 1512.03385; Goyal et al. 2017, arXiv 1706.02677).
    "course_report/sgd": (*_RESNET, "optim.lr=0.1"),
    # Its first step moves each weight by ten learning rates (alpha 0.99), so the warm-up, from a tenth, is needed.
    "course_report/rmsprop": (*_RESNET, "optim.lr=1e-3"),
    # At the constant published rate, 75.51 % (one run on an H200); the published 78 % need a decaying rate.
    "course_report/vgg_a": ("schedule=onecycle",),
    "course_report/vgg_a_bn": ("schedule=onecycle",),
    "course_handout/vgg_a": ("schedule=onecycle",),
    "course_handout/vgg_a_bn": ("schedule=onecycle",),
}
# Experiments with one cycle above also run at their constant rate: the figures compare four constant rates.
FAST_ADDS = {
    suite: tuple(f"{suite}/{model} optim.lr=1e-3" for model in ("vgg_a_bn", "vgg_a"))
    for suite in ("course_report", "course_handout")
}


def experiments(suite: str, scale: str) -> tuple[str, ...]:
    """Return the experiments of a suite at one scale, in the order of execution."""
    return SUITES[suite] + (FAST_ADDS.get(suite, ()) if scale == "fast" else ())


@dataclass(frozen=True)
class Planned:
    """One experiment at one scale.

    Attributes:
        name: as in `SUITES`.
        overrides: its command line, without seed, folder and execution options.
        written: its config as published.
        scaled: its config at this scale.
    """

    name: str
    overrides: list[str]
    written: DictConfig
    scaled: DictConfig

    @classmethod
    def of(cls, name: str, scale: str, options: Sequence[str] = ()) -> "Planned":
        """Compose both configs, the scaled one with the user's options; Hydra must be initialised."""
        experiment = f"experiment={name}".split()
        written = compose("train", overrides=experiment)
        ours = [override for override in options if role_of(override) in (Role.DEVICE, Role.WATCHING)]
        overrides = [*experiment, *scale_down(name, written, scale), *ours]
        return cls(name, overrides, written, compose("train", overrides=overrides))

    def changes(self) -> list[str]:
        """Return the changes of the scale, as `key: published -> ours`; a config group only by its new option."""
        before, after = container(self.written), container(self.scaled)
        choices = [o for o in self.overrides[1:] if o.partition("=")[0] in ("data", "schedule", "trainer", "record")]
        # max_epochs follows epochs.
        groups = ("trainer.max_epochs", *(f"{choice.partition('=')[0]}." for choice in choices))
        changed = [change for change in differences(before, after) if not change.startswith(groups)]
        within_groups = [o for o in self.overrides[1:] if o.startswith(groups)]
        return [*choices, *within_groups, *changed]

    def base(self) -> str | None:
        """Return the experiment that this one's file extends, with the same further overrides."""
        experiment, *others = self.name.split()
        file: Any = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
        bases = (name.removeprefix("/experiment/") for name in file.defaults if isinstance(name, str))
        return next((" ".join([base, *others]) for base in bases), None)


def scale_down(name: str, cfg: DictConfig, scale: str) -> list[str]:
    """Return the overrides that change an experiment to a scale; none for "full".

    Args:
        name: of the experiment, as in `SUITES`.
        cfg: its config as published.
        scale: a key of `SCALES`.
    """
    if scale == "full":
        return []
    if scale == "fast":
        return list(FAST.get(name, ()))
    if "width" not in cfg.model:  # the deep linear network, which takes a minute unchanged
        return ["epochs=1", "data.steps_per_epoch=50"] if scale == "smoke" else []
    epochs = 6 if scale == "laptop" else 2
    overrides = [f"epochs={epochs}", "model.width=16"]  # a CPU is no faster below 16 channels
    if "milestones" in cfg.schedule:
        milestones = [max(1, round(m * epochs / cfg.epochs)) for m in cfg.schedule.milestones]
        overrides.append(f"schedule.milestones=[{','.join(map(str, milestones))}]")
    if cfg.trainer.max_steps > 0:
        overrides.append(f"trainer.max_steps={600 if scale == 'laptop' else 20}")
    if scale == "smoke":
        overrides += ["data=shapes", "data.train_size=1000", "data.test_size=200"]
    return overrides


def container(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as nested dicts, resolved."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
