"""What each source leaves open or this code does otherwise, and the choice made here: shown on reproduction pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cifarbn.report.section import Section


@dataclass(frozen=True)
class Assumption:
    """One choice that a source does not make.

    Attributes:
        text: for the page: what is open, then what is done here.
        rows: the experiments that it concerns, without further overrides; none: all of the suite.
        values: key of the config -> its value in each of these experiments at full scale. Tests compare them.
    """

    text: str
    rows: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


def assumptions(source: str) -> Section:
    """Return the section that lists a suite's choices."""
    text = (
        "What the source does not say, or what is done otherwise, and the choice made here. Values are those of the "
        "full scale; the column “changed” of the first table says what this scale changes."
    )
    return Section("Deviations and assumptions", text, points=[one.text for one in ASSUMPTIONS[source]])


_PART_1 = tuple(
    f"report/{name}"
    for name in (
        *("baseline", "stem_decay", "augmentation", "l2", "dropout", "pool"),
        *("sgd", "rmsprop", "mse", "swish", "mish"),
    )
)
_DECAYED, _AUGMENTED, _L2 = _PART_1[1:], _PART_1[2:], _PART_1[3:]
_POOLED = _PART_1[5:]
_PART_2 = ("course_report/vgg_a", "course_report/vgg_a_bn")
_PAPER_VGG = tuple(
    f"paper/{name}"
    for name in ("vgg", "vgg_bn", "vgg_augmented", "vgg_bn_augmented", "vgg_noisy_bn", "vgg_l1", "vgg_l2", "vgg_linf")
)
_PAPER_DLN = (
    "santurkar2018/dln",
    "santurkar2018/dln_bn",
    "santurkar2018/dln_small_lr",
    "santurkar2018/dln_bn_small_lr",
)
_COURSE = ("course_handout/vgg_a", "course_handout/vgg_a_bn")

_PRECISION = Assumption(
    "Precision: not given. Here bf16 where the hardware multiplies it natively, otherwise fp32; weights and optimizer "
    "state are fp32.",
    values={"trainer.precision": "auto"},
)


def _vgg_in_the_course_setting(rows: tuple[str, ...]) -> tuple[Assumption, ...]:
    return (
        Assumption(
            "Adam's betas for VGG-A: not given. Here torch's defaults, (0.9, 0.999), without weight decay.",
            rows,
            {"optim.betas": [0.9, 0.999], "optim.weight_decay": 0.0},
        ),
        Assumption(
            "Images on which accuracy is sampled every 40 steps, and the learning rate of that accuracy: not given. "
            "Here the first 1,000 test images take the place of validation images, all 50,000 training images are "
            "trained on, and the source's accuracy stands beside the run at 1e-3. Nothing is selected by the test "
            "images.",
            rows,
            {
                "data.val_size": 0,
                "data.test_curve": True,
                "record.held_out_accuracy.every": 40,
                "record.held_out_accuracy.pictures": 1000,
                "optim.lr": 1e-3,
            },
        ),
        Assumption(
            "Batch normalisation of VGG-A: after every convolution, not in the classifier, which has no dropout.",
            rows,
            {"model.classifier_norm": False, "model.dropout": 0.0},
        ),
    )


ASSUMPTIONS: dict[str, tuple[Assumption, ...]] = {
    "course_report": (
        Assumption("Batch size: not given for part 1. Here 128.", values={"data.batch_size": 128}),
        Assumption(
            "Random crop: the amount and kind of padding are not given. Here 4 black pixels on each side (zeros, "
            "before normalisation).",
            _AUGMENTED,
            {"data.augmentation.pad": 4, "data.augmentation.padding_mode": "constant"},
        ),
        Assumption(
            "Normalisation of the images in part 1: not given. Here by the mean and standard deviation of each channel "
            "over the training images.",
            _PART_1,
            {"data.mean": [0.4914, 0.4822, 0.4465], "data.std": [0.2470, 0.2435, 0.2616]},
        ),
        Assumption(
            "Initial weights in part 1: not given. Here normal with variance 2 / fan-out for convolutions (He et al. "
            "2015), and torch's default for the last layer.",
            _PART_1,
            {"model.init": "kaiming"},
        ),
        Assumption(
            "Baseline: the report compares learning rates 0.01 and 0.001 and does not say which one, how many epochs "
            "and which Adam its accuracy belongs to. Here 0.001, 200 epochs and betas (0.5, 0.9), as in its table 1.",
            ("course_report/baseline",),
            {"optim.lr": 1e-3, "epochs": 200, "optim.betas": [0.5, 0.9]},
        ),
        Assumption(
            "Decay of the learning rate: the factor is not given. Here 0.1, at epoch 100.",
            _DECAYED,
            {"schedule.gamma": 0.1, "schedule.milestones": [100]},
        ),
        Assumption(
            "L2 regularisation: which parameters it acts on is not given. Here 1e-5 on all of them, biases and the "
            "scales and shifts of batch normalisation included, added to the gradient (torch's weight_decay).",
            _L2,
            {"optim.weight_decay": 1e-5},
        ),
        Assumption(
            "Dropout: its rate and place are not given. Here 0.5, before the last linear layer.",
            ("course_report/dropout",),
            {"model.dropout": 0.5},
        ),
        Assumption(
            "Pooling structure: the kind of its pooling layers is not given. Here each residual block's output is "
            "averaged over all positions. It has no dropout.",
            _POOLED,
            {"model.pool_blocks": True, "model.dropout": 0.0},
        ),
        Assumption(
            "SGD: the momentum is not given. Here 0.9, without Nesterov.",
            ("course_report/sgd",),
            {"optim.momentum": 0.9, "optim.nesterov": False},
        ),
        Assumption(
            "RMSprop: its alpha is not given. Here torch's default, 0.99.",
            ("course_report/rmsprop",),
            {"optim.alpha": 0.99},
        ),
        Assumption(
            "MSE: its scale is not given. Here the mean over the batch and the ten outputs, of the logits themselves.",
            ("course_report/mse",),
            {"loss._target_": "cifarbn.losses.OneHotMSELoss"},
        ),
        Assumption(
            "Which epoch's accuracy is meant: not given. Here the last one's. No image is held out, and nothing is "
            "selected by the test images, whose curve is drawn.",
            values={"data.val_size": 0, "data.test_curve": True},
        ),
        *_vgg_in_the_course_setting(_PART_2),
        _PRECISION,
    ),
    "santurkar2018": (
        Assumption(
            "Which VGG: here VGG-A of width 64 with two hidden linear layers of 512, batch normalisation (where there "
            "is one) after every convolution and not in the classifier, and no dropout.",
            _PAPER_VGG,
            {"model.variant": "A", "model.width": 64, "model.classifier_norm": False, "model.dropout": 0.0},
        ),
        Assumption("Glorot initialisation: here its normal form, with zero biases.", values={"model.init": "xavier"}),
        Assumption(
            "SGD is plain: no momentum and no weight decay.",
            values={"optim.momentum": 0.0, "optim.weight_decay": 0.0},
        ),
        Assumption(
            "Augmentation: here 4 black pixels on each side and a random crop, then a flip with probability 1/2.",
            ("santurkar2018/vgg_augmented", "santurkar2018/vgg_bn_augmented"),
            {
                "data.augmentation.pad": 4,
                "data.augmentation.padding_mode": "constant",
                "data.augmentation.flip": "random",
            },
        ),
        Assumption(
            "Normalisation of the images: here by the mean and standard deviation of each channel over the training "
            "images, of which none is held out.",
            _PAPER_VGG,
            {"data.mean": [0.4914, 0.4822, 0.4465], "data.std": [0.2470, 0.2435, 0.2616], "data.val_size": 0},
        ),
        Assumption(
            "Probe along the gradient: the number of points and of probed steps is not given. Here 8 points between "
            "1/2 and 4 times the learning rate, at every 100th step, in fp32.",
            _PAPER_VGG,
            {"record.gradient_probe.points": 8, "record.gradient_probe.every": 100, "record.gradient_probe.eta": 0.1},
        ),
        Assumption(
            "Deep linear network: the loss is the sum over samples and features, not their mean; batch normalisation "
            "(where there is one) follows every layer but the last; fp32.",
            _PAPER_DLN,
            {"loss._target_": "cifarbn.losses.SumOfSquares", "trainer.precision": "32-true"},
        ),
        Assumption(
            "Precision of the VGG runs: not given. Here bf16 where the hardware multiplies it natively, otherwise "
            "fp32; weights and optimizer state are fp32.",
            _PAPER_VGG,
            {"trainer.precision": "auto"},
        ),
    ),
    "course_handout": (*_vgg_in_the_course_setting(_COURSE), _PRECISION),
}
