"""What Classifier asks of a net that wants more than pictures."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from cifarbn.classifier import Classifier
from cifarbn.data import Images, InMemoryLoader


class Listening(nn.Module):
    """A linear net that writes down what it is told."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)
        self.heard = []

    def initialize_from(self, pictures):
        self.heard.append(("pictures", pictures))

    def start_epoch(self, epoch):
        self.heard.append(("epoch", epoch))

    def forward(self, pictures):
        if self.training:
            self.heard.append(("step", pictures))
        return self.head(pictures.flatten(1))


@pytest.fixture
def loader(make_images):
    images = make_images(8)
    return InMemoryLoader(
        Images(images.pixels, images.labels), 4, mean=[0.5] * 3, std=[0.25] * 3, shuffle=True, drop_last=True
    )


def fit(loader, folder, epochs, checkpoint=None):
    net = Listening()
    classifier = Classifier(net, nn.CrossEntropyLoss(), lambda params: torch.optim.SGD(params, lr=0.01))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return net.heard


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*smaller than the logging", "ignore:.*but have no `val_data"
)
def test_the_net_sees_a_batch_before_its_first_step_and_hears_of_every_epoch_but_sees_none_on_a_resume(
    loader, tmp_path
):
    heard = fit(loader, tmp_path, epochs=2)
    whats = [what for what, _ in heard]
    assert whats.count("pictures") == 1 and whats.count("step") == 4
    assert whats.index("pictures") < whats.index("step")
    (shown,) = (value for what, value in heard if what == "pictures")
    first = next(value for what, value in heard if what == "step")
    assert torch.equal(shown, first), "the first batch, and showing it leaves the order as it is"
    assert [value for what, value in heard if what == "epoch"] == [0, 0, 1]

    resumed = fit(loader, tmp_path, epochs=3, checkpoint=tmp_path / "last.ckpt")
    assert "pictures" not in [what for what, _ in resumed]
    assert {value for what, value in resumed if what == "epoch"} == {2}


class Corner(nn.Module):
    """Says the class of which the upper left pixel holds the index."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 10)

    def forward(self, pictures):
        return nn.functional.one_hot(pictures[:, 0, 0, 0].long(), 10).float()


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("views", ["plain", "flip"])
def test_other_views_have_an_accuracy_of_their_own_beside_the_plain_one(views):
    pictures = torch.zeros(4, 3, 32, 32)
    pictures[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 9.0])
    pictures[:, 0, 0, 31] = torch.tensor([1.0, 2.0, 3.0, 9.0])
    pictures[3, 0, 0, 31] = 0.0  # seen from both sides: 9 and 0, a draw that argmax gives to 0
    labels = torch.tensor([1, 2, 4, 0])
    classifier = Classifier(
        Corner(), nn.CrossEntropyLoss(), lambda params: torch.optim.SGD(params, lr=0.01), test_views=views
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    trainer.test(classifier, DataLoader([(pictures, labels)], batch_size=None), verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["test/acc"] == 0.5
    assert metrics.get("test/acc_flip") == (0.75 if views == "flip" else None)
    assert classifier.confusion.trace() == 2
