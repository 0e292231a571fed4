import pytest
import torch
from torch import nn

from cifarbn.classifier import Classifier
from cifarbn.data import Shapes
from cifarbn.errors import UserError
from cifarbn.hardware import Hardware, make_trainer, multiplies_bf16
from cifarbn.models import ResNet


def choose(**options):
    return Hardware.choose(**{"accelerator": "cpu", **options})


def test_auto_takes_bf16_only_where_the_hardware_multiplies_it():
    assert choose().precision == ("bf16-mixed" if multiplies_bf16(cuda=False) else "32-true")


def test_what_is_said_is_done():
    chosen = choose(precision="32-true", channels_last=False, compile="reduce-overhead")
    assert (chosen.precision, chosen.channels_last, chosen.compile) == ("32-true", False, "reduce-overhead")
    assert "32-true, contiguous, compile reduce-overhead" in str(chosen)
    assert choose(compile=True).compile == "default" and choose(compile=False).compile == ""


def test_a_cpu_run_is_not_compiled_unless_asked():
    assert choose().compile == ""


@pytest.mark.parametrize("options", [{"accelerator": "tpu"}, {"compile": "fast"}])
def test_unknown_choices_are_refused(options):
    with pytest.raises(UserError, match="trainer"):
        choose(**options)


def test_channels_last_reaches_the_weights():
    net = choose(channels_last=True).prepare(ResNet(18, width=4))
    assert net.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fused", [True, False])
def test_the_whole_gradient_is_clipped_under_bf16_and_a_fused_optimizer(fused):
    torch.manual_seed(0)
    net = ResNet(18, width=4)
    before = [p.detach().clone() for p in net.parameters()]
    classifier = Classifier(net, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=1.0, fused=fused))
    trainer = make_trainer(
        choose(precision="bf16-mixed"),
        max_epochs=1,
        max_steps=1,
        gradient_clip_val=0.01,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(classifier, Shapes(train_size=100, test_size=10, val_size=10, batch_size=32))
    moved = torch.stack([(p - b).norm() for p, b in zip(net.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


def test_epochs_below_one_are_refused():
    with pytest.raises(UserError, match="epochs must be at least 1"):
        make_trainer(choose(), max_epochs=0)
