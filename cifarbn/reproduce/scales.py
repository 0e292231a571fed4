"""The experiments of each source, and how large each of them is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from cifarbn.cli.composition import CONF
from cifarbn.runs.identity import Role, differences, role_of

# VGG-A's, beside that of its experiments' files.
OTHER_RATES = (" optim.lr=5e-4", " optim.lr=2e-3", " optim.lr=1e-4")
# The experiments of each source, in the order of running: when the time is up, the most telling ones are there. The
# shortest ones are last, so that of several runs at a time none is left alone at the end for long.
SUITES: dict[str, tuple[str, ...]] = {
    "course_report": (
        *(
            "course_report/vgg_a_bn",
            "course_report/vgg_a",
            "course_report/augmentation",
            "course_report/l2",
            "course_report/pool",
            "course_report/baseline",
        ),
        *(
            "course_report/stem_decay",
            "course_report/dropout",
            "course_report/sgd",
            "course_report/mse",
            "course_report/mish",
            "course_report/swish",
        ),
        *(
            "course_report/rmsprop",
            *(f"course_report/{net}{rate}" for rate in OTHER_RATES for net in ("vgg_a_bn", "vgg_a")),
        ),
    ),
    "santurkar2018": (
        *(
            "santurkar2018/dln_bn",
            "santurkar2018/dln",
            "santurkar2018/dln_bn_small_lr",
            "santurkar2018/dln_small_lr",
            "santurkar2018/vgg_bn",
            "santurkar2018/vgg",
        ),
        *("santurkar2018/vgg_noisy_bn", "santurkar2018/vgg_l1", "santurkar2018/vgg_l2", "santurkar2018/vgg_linf"),
        *("santurkar2018/vgg_bn_augmented", "santurkar2018/vgg_augmented"),
    ),
    "course_handout": tuple(
        f"course_handout/{net}{rate}" for rate in ("", *OTHER_RATES) for net in ("vgg_a_bn", "vgg_a")
    ),
}

SCALES = {
    "full": "The source's own experiments, unchanged.",
    "fast": "The source's models and data, for a GPU. The report's ResNets train for 30 epochs with one cycle of the "
    "learning rate instead of 200 epochs; VGG-A at the first learning rate has one cycle, too, for its accuracy. VGG-A "
    "at all four constant rates, which the figures of smoothness need, and the paper's experiments are unchanged.",
    "laptop": "Small experiments like the source's, for two CPU cores: narrower nets and few epochs. They are not the "
    "source's experiments: their accuracies do not compare with its own; what one row adds to another may, with care.",
    "smoke": "A few steps on drawn pictures, to see that everything runs. No number here means anything.",
}
COMPARABLE = ("full", "fast")

# All ResNets but `baseline` have the same epochs, batches and schedule, so that rows differ in their own changes only.
# 30 epochs: with 20, batches of 512 and a peak of 3e-3, `l2` and `pool` stayed 0.3 and 0.6 points under the report
# (92.30 and 92.25 %, one run each on an H200).
_RESNET = ("epochs=30", "data.batch_size=256", "schedule=onecycle")
# What scale fast changes of an experiment, one line each; an experiment without a line stays the source's own. The
# learning rate is the peak of the cycle. Chosen from the literature and the runs above, not yet measured.
# The report's suite trains on 26.5 million images in 21 runs: 11 ResNets x 30 epochs, of which `baseline` has a
# fifteenth of the others' multiplications, and 10 VGG-A x 20 epochs.
FAST: dict[str, tuple[str, ...]] = {
    # Without augmentation the training images are soon learnt by heart; smaller batches and larger steps delay it.
    "course_report/baseline": ("epochs=30", "data.batch_size=128", "schedule=onecycle", "optim.lr=3e-3"),
    # Adam: 3e-3 at batch 512, times sqrt(256 / 512) (Malladi et al. 2022, arXiv 2205.10287).
    "course_report/stem_decay": (*_RESNET, "optim.lr=2e-3"),
    "course_report/augmentation": (*_RESNET, "optim.lr=2e-3"),
    "course_report/l2": (*_RESNET, "optim.lr=2e-3"),
    "course_report/dropout": (*_RESNET, "optim.lr=2e-3"),
    "course_report/pool": (*_RESNET, "optim.lr=2e-3"),
    "course_report/mish": (*_RESNET, "optim.lr=2e-3"),
    "course_report/swish": (*_RESNET, "optim.lr=2e-3"),
    # The gradient of a squared error does not vanish for an image that is classified right, so its noise stays.
    "course_report/mse": (*_RESNET, "optim.lr=1e-3"),
    # 0.1 for 256 images is usual (He et al. 2016, arXiv 1512.03385; Goyal et al. 2017, arXiv 1706.02677).
    "course_report/sgd": (*_RESNET, "optim.lr=0.1"),
    # Its first step moves each weight by ten learning rates (alpha 0.99), so the warm-up, from a tenth, is needed.
    "course_report/rmsprop": (*_RESNET, "optim.lr=1e-3"),
    # At the constant rate that the source has, 75.51 % (one run on an H200); the report's 78 % need one that decays.
    "course_report/vgg_a": ("schedule=onecycle",),
    "course_report/vgg_a_bn": ("schedule=onecycle",),
    "course_handout/vgg_a": ("schedule=onecycle",),
    "course_handout/vgg_a_bn": ("schedule=onecycle",),
}
# What has one cycle above is made at its constant rate as well: the figures compare four constant rates.
_CONSTANT = {source: tuple(f"{source}/{net} optim.lr=1e-3" for net in ("vgg_a_bn", "vgg_a")) for source in SUITES}
FAST_ADDS = {source: _CONSTANT[source] for source in ("course_report", "course_handout")}


def suite(source: str, scale: str) -> tuple[str, ...]:
    """Return the experiments of a source at one scale, in the order of running."""
    return SUITES[source] + (FAST_ADDS.get(source, ()) if scale == "fast" else ())


@dataclass(frozen=True)
class Planned:
    """One experiment at one scale.

    Attributes:
        name: as in `SUITES`.
        overrides: its command line, without seed, folder and what says only how it is carried out.
        written: its config as the source has it.
        scaled: its config at this scale.
    """

    name: str
    overrides: list[str]
    written: DictConfig
    scaled: DictConfig

    @classmethod
    def of(cls, name: str, scale: str, how: Sequence[str] = ()) -> "Planned":
        """Compose both configs, the second with what `how` changes of it; to be called where Hydra is initialised."""
        said = f"experiment={name}".split()
        written = compose("train", overrides=said)
        ours = [override for override in how if role_of(override) in (Role.DEVICE, Role.WATCHING)]
        overrides = [*said, *scale_down(name, written, scale), *ours]
        return cls(name, overrides, written, compose("train", overrides=overrides))

    def changes(self) -> list[str]:
        """What the scale changes, as `key: the source's -> ours`; a choice of another file by its name alone."""
        before, after = container(self.written), container(self.scaled)
        choices = [o for o in self.overrides[1:] if o.partition("=")[0] in ("data", "schedule", "trainer", "record")]
        # max_epochs follows epochs.
        groups = ("trainer.max_epochs", *(f"{choice.partition('=')[0]}." for choice in choices))
        found = [change for change in differences(before, after) if not change.startswith(groups)]
        named = [o for o in self.overrides[1:] if o.startswith(groups)]
        return [*choices, *named, *found]

    def base(self) -> str | None:
        """The experiment that this one's file begins with, with the same further overrides."""
        experiment, *others = self.name.split()
        file: Any = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
        bases = (name.removeprefix("/experiment/") for name in file.defaults if isinstance(name, str))
        return next((" ".join([base, *others]) for base in bases), None)


def scale_down(name: str, cfg: DictConfig, scale: str) -> list[str]:
    """Return the overrides that make an experiment one of this scale; none for "full".

    Args:
        name: of the experiment, as in `SUITES`.
        cfg: its config as the source has it.
        scale: a key of `SCALES`.
    """
    if scale == "full":
        return []
    if scale == "fast":
        return list(FAST.get(name, ()))
    if "width" not in cfg.model:  # the deep linear net, which takes a minute as it is
        return ["epochs=1", "data.steps_per_epoch=50"] if scale == "smoke" else []
    epochs = 6 if scale == "laptop" else 2
    overrides = [f"epochs={epochs}", "model.width=16"]  # below 16 channels a CPU is no faster
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
