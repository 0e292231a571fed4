"""Choices made here where a publication gives no value or this code deviates from it; listed on reproduction pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cifarbn.report.section import Section


@dataclass(frozen=True)
class Assumption:
    """One choice that a publication leaves open.

    Attributes:
        text: for the page: what is not specified, then what is done here.
        rows: names of the experiments concerned, without further overrides; empty for all experiments of the suite.
        values: config key -> its value in each of these experiments at full scale. Tests compare them.
    """

    text: str
    rows: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


def assumptions(suite: str) -> Section:
    """Return the section that lists the choices made for a suite."""
    text = (
        "Settings that the publication does not specify or that differ here, and the values chosen. They hold at full "
        "scale; the column “changes” of the first table lists what the scale of this page changes."
    )
    return Section("Deviations and assumptions", text, points=[choice.text for choice in ASSUMPTIONS[suite]])


_PART_1 = tuple(
    f"course_report/{name}"
    for name in (
        *("baseline", "stem_decay", "augmentation", "l2", "dropout", "pool"),
        *("sgd", "rmsprop", "mse", "swish", "mish"),
    )
)
_DECAYED, _AUGMENTED, _L2 = _PART_1[1:], _PART_1[2:], _PART_1[3:]
_POOLED = _PART_1[5:]
_PART_2 = ("course_report/vgg_a", "course_report/vgg_a_bn")
_SANTURKAR_VGG = tuple(
    f"santurkar2018/{name}"
    for name in ("vgg", "vgg_bn", "vgg_augmented", "vgg_bn_augmented", "vgg_noisy_bn", "vgg_l1", "vgg_l2", "vgg_linf")
)
_SANTURKAR_DLN = (
    "santurkar2018/dln",
    "santurkar2018/dln_bn",
    "santurkar2018/dln_small_lr",
    "santurkar2018/dln_bn_small_lr",
)
_HANDOUT = ("course_handout/vgg_a", "course_handout/vgg_a_bn")

_PRECISION = Assumption(
    "Precision: not specified. Here bf16 on hardware with native support, otherwise fp32; weights and optimizer state "
    "are fp32.",
    values={"trainer.precision": "auto"},
)


def _vgg_of_the_handout(rows: tuple[str, ...]) -> tuple[Assumption, ...]:
    return (
        Assumption(
            "Adam's betas for VGG-A: not specified. Here PyTorch's defaults, (0.9, 0.999), without weight decay.",
            rows,
            {"optim.betas": [0.9, 0.999], "optim.weight_decay": 0.0},
        ),
        Assumption(
            "The images on which accuracy is sampled every 40 steps, and the learning rate of the published accuracy: "
            "not specified. Here accuracy is sampled on the first 1,000 test images, all 50,000 training images are "
            "used for training, and the published accuracy is compared with the run at learning rate 1e-3. Nothing is "
            "selected by the test images.",
            rows,
            {
                "data.val_size": 0,
                "data.test_curve": True,
                "record.held_out_accuracy.every": 40,
                "record.held_out_accuracy.images": 1000,
                "optim.lr": 1e-3,
            },
        ),
        Assumption(
            "Batch normalisation of VGG-A: after every convolution; the classifier has neither batch normalisation nor "
            "dropout.",
            rows,
            {"model.classifier_norm": False, "model.dropout": 0.0},
        ),
    )


ASSUMPTIONS: dict[str, tuple[Assumption, ...]] = {
    "course_report": (
        Assumption("Batch size: not specified for part 1. Here 128.", values={"data.batch_size": 128}),
        Assumption(
            "Random crop: the width and kind of padding are not specified. Here 4 black pixels on each side (zeros, "
            "before normalisation).",
            _AUGMENTED,
            {"data.augmentation.pad": 4, "data.augmentation.padding_mode": "constant"},
        ),
        Assumption(
            "Normalisation of the images in part 1: not specified. Here by the mean and standard deviation of each "
            "channel over the training images.",
            _PART_1,
            {"data.mean": [0.4914, 0.4822, 0.4465], "data.std": [0.2470, 0.2435, 0.2616]},
        ),
        Assumption(
            "Initial weights in part 1: not specified. Here normal with variance 2 / fan-out for convolutions (He et "
            "al. 2015, arXiv 1502.01852), and PyTorch's default for the last layer.",
            _PART_1,
            {"model.init": "kaiming"},
        ),
        Assumption(
            "Baseline: the course report compares learning rates 0.01 and 0.001, but does not specify which one, how "
            "many epochs and which betas of Adam its accuracy belongs to. Here 0.001, 200 epochs and betas (0.5, 0.9), "
            "as in its table 1.",
            ("course_report/baseline",),
            {"optim.lr": 1e-3, "epochs": 200, "optim.betas": [0.5, 0.9]},
        ),
        Assumption(
            "Learning rate decay: the factor is not specified. Here 0.1, at epoch 100.",
            _DECAYED,
            {"schedule.gamma": 0.1, "schedule.milestones": [100]},
        ),
        Assumption(
            "L2 regularisation: the regularised parameters are not specified. Here 1e-5 on all parameters, including "
            "biases and the scale and offset of batch normalisation, added to the gradient (PyTorch's weight_decay).",
            _L2,
            {"optim.weight_decay": 1e-5},
        ),
        Assumption(
            "Dropout: its rate and position are not specified. Here 0.5, before the last linear layer.",
            ("course_report/dropout",),
            {"model.dropout": 0.5},
        ),
        Assumption(
            "Pooling structure: the kind of pooling is not specified. Here each residual block's output is averaged "
            "over all positions. There is no dropout.",
            _POOLED,
            {"model.pool_blocks": True, "model.dropout": 0.0},
        ),
        Assumption(
            "SGD: the momentum is not specified. Here 0.9, without Nesterov momentum.",
            ("course_report/sgd",),
            {"optim.momentum": 0.9, "optim.nesterov": False},
        ),
        Assumption(
            "RMSprop: alpha is not specified. Here PyTorch's default, 0.99.",
            ("course_report/rmsprop",),
            {"optim.alpha": 0.99},
        ),
        Assumption(
            "MSE: its scale is not specified. Here the squared error of the logits, averaged over the batch and the "
            "outputs.",
            ("course_report/mse",),
            {"loss._target_": "cifarbn.losses.OneHotMSELoss"},
        ),
        Assumption(
            "Epoch of the published accuracy: not specified. Here the last epoch. No image is held out; the test curve "
            "is drawn, but nothing is selected by it.",
            values={"data.val_size": 0, "data.test_curve": True},
        ),
        *_vgg_of_the_handout(_PART_2),
        _PRECISION,
    ),
    "santurkar2018": (
        Assumption(
            "VGG variant: not specified. Here VGG-A of width 64 with two hidden linear layers of 512 units and no "
            "dropout; batch normalisation, if any, follows every convolution and is not used in the classifier.",
            _SANTURKAR_VGG,
            {"model.variant": "A", "model.width": 64, "model.classifier_norm": False, "model.dropout": 0.0},
        ),
        Assumption(
            "Glorot initialisation: here from a normal distribution, with zero biases.", values={"model.init": "xavier"}
        ),
        Assumption(
            "SGD: here without momentum and weight decay.",
            values={"optim.momentum": 0.0, "optim.weight_decay": 0.0},
        ),
        Assumption(
            "Augmentation: here a random crop after padding with 4 black pixels on each side, then a horizontal flip "
            "with probability 1/2.",
            ("santurkar2018/vgg_augmented", "santurkar2018/vgg_bn_augmented"),
            {
                "data.augmentation.pad": 4,
                "data.augmentation.padding_mode": "constant",
                "data.augmentation.flip": "random",
            },
        ),
        Assumption(
            "Normalisation of the images: here by the mean and standard deviation of each channel over the training "
            "images. No image is held out.",
            _SANTURKAR_VGG,
            {"data.mean": [0.4914, 0.4822, 0.4465], "data.std": [0.2470, 0.2435, 0.2616], "data.val_size": 0},
        ),
        Assumption(
            "Probe along the gradient: the number of points and the probed steps are not specified. Here 8 points "
            "between 1/2 and 4 times the learning rate, at every 100th step, in fp32.",
            _SANTURKAR_VGG,
            {"record.gradient_probe.points": 8, "record.gradient_probe.every": 100, "record.gradient_probe.eta": 0.1},
        ),
        Assumption(
            "Deep linear network: here the loss is the sum over samples and features, not the mean; batch "
            "normalisation, if any, follows every layer except the last; fp32.",
            _SANTURKAR_DLN,
            {"loss._target_": "cifarbn.losses.SumOfSquares", "trainer.precision": "32-true"},
        ),
        Assumption(
            "Precision of the VGG runs: not specified. Here bf16 on hardware with native support, otherwise fp32; "
            "weights and optimizer state are fp32.",
            _SANTURKAR_VGG,
            {"trainer.precision": "auto"},
        ),
    ),
    "course_handout": (*_vgg_of_the_handout(_HANDOUT), _PRECISION),
}
