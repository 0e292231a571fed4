"""What only a GPU shows: every choice of conf/ trains captured, with the numbers of a plain run and without waiting."""

import csv
import random
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from cifarbn.command_line import CONF
from cifarbn.fast.training_step import TrainingStep
from cifarbn.hardware import Hardware, make_trainer
from cifarbn.recorders import LastLayerGradients, StepHistory
from cifarbn.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),
]

# Three steps, the last of them with a smaller batch.
SMALL = (
    *("data=shapes", "data.train_size=50", "data.val_size=10", "data.test_size=20", "data.batch_size=16", "epochs=1"),
    *("trainer=gpu", "trainer.enable_progress_bar=false", "+trainer.benchmark=false"),
)
GROUPS = ("model", "norm", "activation", "optim", "loss", "schedule")
ELSEWHERE = ("model=dln", "model=dln_bn", "loss=sum_of_squares")  # for vectors, not for images
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
CHOICES = [choice for choice in CHOICES if choice not in ELSEWHERE]


def run(folder, *overrides, base=SMALL):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*base, *overrides])
    return train(cfg, Path(folder), list(overrides))


def losses(folder):
    with (Path(folder) / "metrics.csv").open() as file:
        return [(row["step/loss"], row["step/grad_norm"]) for row in csv.DictReader(file)]


def small(choice):
    """The rest of a command line that makes a small run of one choice."""
    if choice == "model=speednet":
        return ()
    return ("model.width=8",) if choice.startswith("model=") else ("model=vgg_a_bn", "model.width=8")


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_trains_in_a_cuda_graph(choice, tmp_path):
    result = run(tmp_path, choice, *small(choice))
    assert result["status"] == "done", result.get("error")
    assert result["cuda_graphs"], result["step_notes"]
    assert result["compile"] == "" and "not compiled: it would take" in result["step_notes"][0]
    assert len(losses(tmp_path)) == 3


@pytest.mark.parametrize("model", ["dln", "dln_bn"])
def test_the_deep_linear_nets_train_in_a_cuda_graph(model, tmp_path):
    problem = ("data=gaussian", f"model={model}", "loss=sum_of_squares", "optim.lr=1e-6", "trainer.max_steps=3")
    result = run(tmp_path, base=("trainer=gpu", "epochs=1", *problem))
    assert result["status"] == "done" and result["cuda_graphs"], result["step_notes"]


@pytest.mark.parametrize("choice", ["model=resnet18_imagenet", "model=vgg_a_bn", "model=speednet"])
def test_a_compiled_and_captured_run_agrees_with_a_plain_one(choice, tmp_path):
    results = [
        run(tmp_path / name, choice, *small(choice), f"trainer.compile={compiled}", f"trainer.cuda_graphs={compiled}")
        for name, compiled in (("plain", "false"), ("fast", "true"))
    ]
    assert [r["compile"] for r in results] == ["", "default"], results[1]["step_notes"]
    assert [r["cuda_graphs"] for r in results] == [False, True]
    plain, fast = ([float(loss) for loss, _ in losses(tmp_path / name)] for name in ("plain", "fast"))
    assert fast == pytest.approx(plain, rel=0.02)


def test_a_captured_run_is_the_plain_run_bit_for_bit(tmp_path):
    for name in ("true", "false"):
        deterministic = ("model.dropout=0.5", "+trainer.deterministic=true", f"trainer.cuda_graphs={name}", "epochs=2")
        result = run(tmp_path / name, "model=resnet18", "model.width=8", *deterministic, "trainer.compile=false")
        assert result["cuda_graphs"] == (name == "true")
    assert losses(tmp_path / "true") == losses(tmp_path / "false")


def test_recorders_change_nothing(tmp_path):
    for record in ("all", "none"):
        run(tmp_path / record, "model=vgg_a_bn", "model.width=8", "+trainer.deterministic=true", f"record={record}")
    assert losses(tmp_path / "all") == losses(tmp_path / "none")


class Watch(pl.Callback):
    """Makes every wait for the device an error, from the second step of an epoch to its last."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error" if 0 < batch_idx < trainer.num_training_batches - 1 else "default")


def test_no_step_waits_for_the_device(tmp_path, make_images):
    from cifarbn.benchmark.passes import our_loader
    from cifarbn.classifier import Classifier

    images = make_images(16 * 130)
    images.labels.remainder_(10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    classifier = Classifier(
        Hardware.choose().prepare(model), nn.CrossEntropyLoss(), torch.optim.Adam, compile="", cuda_graphs=True
    )
    callbacks = [Watch(), StepHistory(tmp_path), LastLayerGradients(tmp_path)]
    trainer = make_trainer(
        Hardware.choose(),
        callbacks=callbacks,
        max_epochs=2,
        logger=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    try:
        trainer.fit(classifier, our_loader(images.to("cuda"), 16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert classifier.step.captured
    assert len(losses(tmp_path)) == 260


class Reads(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum().item() else y * 2


class Draws(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * random.random()


class Counts(nn.Sequential):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("kind, said", [(Reads, "synchron"), (Draws, "random"), (Counts, "attributes")])
def test_what_cannot_be_captured_trains_plainly(kind, said):
    model = kind(nn.Flatten(), nn.Linear(12, 10)).cuda()
    step = TrainingStep(model, nn.functional.cross_entropy, lambda logits, labels: logits.sum(), graphs=True)
    step.begin(10)
    x, y = torch.randn(4, 3, 2, 2, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    for _ in range(2):
        model.zero_grad()
        loss, _ = step(x, y)
        step.backward(loss)
    assert not step.captured and said in step.notes[0]
    assert model[1].weight.grad.abs().sum() > 0
    assert torch.rand(2, device="cuda").isfinite().all()


def test_hooks_fire_and_gradients_come_back():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).cuda()
    step = TrainingStep(model, nn.functional.cross_entropy, lambda logits, labels: logits.sum(), graphs=True)
    step.begin(10)
    x, y = torch.randn(4, 3, 2, 2, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")

    def gradient():
        model.zero_grad()
        step.backward(step(x, y)[0])
        return model[1].weight.grad.clone()

    captured = gradient()
    assert step.captured
    seen = []
    handle = model[1].register_forward_hook(lambda *args: seen.append(1))
    hooked = gradient()
    handle.remove()
    assert seen == [1]
    again = gradient()
    torch.testing.assert_close(hooked, captured)
    assert torch.equal(again, captured)
