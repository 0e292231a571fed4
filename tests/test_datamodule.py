import inspect
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from cifarbn.cli.command_line import CONF  # with the resolvers that configs use
from cifarbn.data import CIFAR10, Augmentation, DataModule, Shapes, cifar10
from cifarbn.errors import UserError


def compose(data: str, augment: str = "flip_crop", **changes) -> DataModule:
    config = {
        "data": OmegaConf.load(CONF / "data" / f"{data}.yaml"),
        "augment": OmegaConf.load(CONF / "augment" / f"{augment}.yaml"),
        "seed": 7,
    }
    return instantiate(OmegaConf.merge(config, {"data": changes}).data)


def small(**options) -> Shapes:
    return Shapes(**{"train_size": 300, "test_size": 100, "val_size": 60} | options)


# The configs


@pytest.mark.parametrize("name, kind", [("cifar10", CIFAR10), ("shapes", Shapes)])
def test_a_config_gives_every_option_its_default(name, kind, monkeypatch):
    monkeypatch.delenv("CIFARBN_DATA", raising=False)
    options = inspect.signature(DataModule).parameters | inspect.signature(kind).parameters
    config = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{name}.yaml"))
    del config["_target_"]
    special = {"root": "${data_root:}", "seed": "${seed}", "augmentation": "${augment}"}
    special["eval_batch_size"] = "${oc.select:trainer.eval_batch_size,1000}"
    assert set(config) == set(options) - {"name", "classes", "options"} - (
        {"train_size"} if name == "cifar10" else set()
    )
    for key, value in config.items():
        default = list(options[key].default) if isinstance(value, list) else options[key].default
        assert value == special.get(key, default), key


def test_the_environment_variable_sets_the_root_of_cifar10(tiny_cifar10, monkeypatch):
    monkeypatch.delenv("CIFARBN_DATA", raising=False)
    assert compose("cifar10").root == "./data"
    monkeypatch.setenv("CIFARBN_DATA", str(tiny_cifar10))
    assert compose("cifar10").root == str(tiny_cifar10)


@pytest.mark.parametrize(
    "name, augmentation",
    [
        ("none", Augmentation(pad=0, flip="none")),
        ("flip_crop", Augmentation(pad=4, flip="random")),
        ("flip", Augmentation(pad=0, flip="random")),
        ("crop", Augmentation(pad=4, flip="none")),
        ("flip_crop_reflect", Augmentation(pad=4, flip="random", padding_mode="reflect")),
        ("alternating_flip", Augmentation(pad=4, flip="alternating")),
    ],
)
def test_each_augment_config_gives_the_augmentation_of_its_name(name, augmentation):
    data = compose("shapes", name)
    assert data.augmentation == augmentation
    assert data.seed == 7


def test_every_config_starts_with_a_comment():
    for file in [*CONF.glob("data/*.yaml"), *CONF.glob("augment/*.yaml")]:
        assert file.read_text().startswith("# "), file


# The split


def test_the_validation_images_depend_only_on_split_seed():
    def held_out(**options) -> str:
        data = small(**options)
        data.setup()
        return data.val_images.fingerprint

    assert held_out(seed=0) == held_out(seed=1, batch_size=7)
    assert held_out(split_seed=1) != held_out(split_seed=0)


def test_training_and_validation_divide_the_images_without_overlap():
    data = small()
    data.setup()
    everything, _ = data.read()
    parts = torch.cat([data.train_images.pixels, data.val_images.pixels])
    assert (len(data.train_images), len(data.val_images), len(data.test_images)) == (240, 60, 100)
    assert {bytes(p.flatten().tolist()) for p in parts} == {bytes(p.flatten().tolist()) for p in everything.pixels}


def test_cifar10_is_read_once_and_described(tiny_cifar10, monkeypatch):
    data = CIFAR10(tiny_cifar10, val_size=5, augmentation=Augmentation(), batch_size=9)
    train, test = data.read()
    reads = []
    monkeypatch.setattr(data, "read", lambda: reads.append(1) or (train, test))
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert len(reads) == 1
    assert data.describe() == {
        "name": "cifar10",
        "classes": list(cifar10.CLASSES),
        "fingerprint": f"{train.fingerprint}-{test.fingerprint}",
        "train_size": 45,
        "val_size": 5,
        "test_size": 10,
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2470, 0.2435, 0.2616],
        "augmentation": {"pad": 4, "flip": "random", "padding_mode": "constant"},
    }
    assert len(data.train_dataloader()) == 5
    assert data.classes[9] == "truck" and data.num_classes == 10


def test_preparing_cifar10_downloads_it(tiny_archive, tmp_path):
    CIFAR10(tmp_path / "new").prepare_data()
    assert (tmp_path / "new" / "cifar-10-batches-py").is_dir()


@pytest.mark.cifar10
def test_5000_of_the_real_images_are_held_out(cifar10_root):
    data = CIFAR10(cifar10_root)
    data.setup()
    assert [data.describe()[f"{part}_size"] for part in ("train", "val", "test")] == [45_000, 5_000, 10_000]
    assert len(data.train_dataloader()) == 352


# Its loaders


def test_training_is_shuffled_and_augmented_and_evaluation_is_not():
    data = small(augmentation=Augmentation())
    data.setup()
    train, (val,), test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert train.sampler.shuffle and train.augmentation == Augmentation()
    for loader in (val, test):
        assert not loader.sampler.shuffle and loader.augmentation == Augmentation(pad=0, flip="none")


@pytest.mark.parametrize(
    "val_size, test_curve, sizes", [(60, False, [60]), (60, True, [60, 100]), (0, False, []), (0, True, [100])]
)
def test_the_test_set_is_evaluated_in_validation_only_on_request(val_size, test_curve, sizes):
    data = small(val_size=val_size, test_curve=test_curve)
    data.setup()
    assert [len(loader.images) for loader in data.val_dataloader()] == sizes
    assert data.val_names == tuple({60: "val", 100: "test_curve"}[size] for size in sizes)


def trainer(device: str, rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), global_rank=rank, world_size=world_size
    )


def test_the_images_are_on_the_trainers_device():
    data = small()
    data.trainer = trainer("meta")
    data.setup()
    parts = (data.train_images, data.val_images, data.test_images)
    assert {tensor.device.type for part in parts for tensor in (part.pixels, part.labels)} == {"meta"}


def test_each_process_gets_its_share_of_every_batch():
    data = small(batch_size=128)
    data.trainer = trainer("cpu", rank=1, world_size=2)
    data.setup()
    assert [len(y) for _, y in data.train_dataloader()] == [64, 56]
    assert [len(y) for _, y in data.test_dataloader()] == [50]


class Counter(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, int] = {}

    def count(self, part: str, batch) -> None:
        self.seen[part] = self.seen.get(part, 0) + len(batch[1])

    def training_step(self, batch, batch_idx):
        self.count("train", batch)
        return self.weight * batch[0].mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.count(f"val {dataloader_idx}", batch)

    def test_step(self, batch, batch_idx):
        self.count("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("val_size, test_curve", [(60, False), (60, True), (0, False), (0, True)])
def test_lightning_trains_and_tests_on_it_without_a_warning(tmp_path, val_size, test_curve):
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", logger=False, num_sanity_val_steps=0, **options
    )
    counter, data = Counter(), small(val_size=val_size, test_curve=test_curve)
    trainer.fit(counter, data)
    trainer.test(counter, data, verbose=False)
    sizes = [size for size in (val_size, 100 * test_curve) if size]
    assert counter.seen == {"train": 2 * (300 - val_size), "test": 100} | {
        f"val {k}": 2 * size for k, size in enumerate(sizes)
    }


# Invalid values


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("batch_size", 0, "at least 1, not 0"),
        ("batch_size", 1.5, "a whole number, not 1.5"),
        ("batch_size", "many", "a whole number, not 'many'"),
        ("batch_size", True, "a whole number, not True"),
        ("eval_batch_size", -1, "at least 1, not -1"),
        ("val_size", -1, "at least 0, not -1"),
        ("val_size", 300, "below the number of training images, 300, not 300"),
        ("train_size", 0, "at least 1, not 0"),
        ("test_size", None, "a whole number, not None"),
        ("seed", "x", "a whole number, not 'x'"),
        ("std", (0.2, 0, 0.2), "above 0 in every channel"),
        ("std", (0.2, 0.2), "three numbers"),
        ("mean", 0.5, "three numbers"),
        ("mean", ("a", "b", "c"), "three numbers"),
        ("drop_last", "no", "true or false, not 'no'"),
        ("test_curve", 1, "true or false, not 1"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_its_key(key, value, message):
    with pytest.raises(UserError, match=f"data.{key} must .*{message}"):
        small(**{key: value})


def test_all_of_cifar10_cannot_be_held_out():
    with pytest.raises(UserError, match="data.val_size must be below the number of training images, 50000"):
        CIFAR10("data", val_size=50_000)
