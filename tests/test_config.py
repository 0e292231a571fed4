"""Every config composes, instantiates, and adds no key that the defaults do not have."""

import inspect
from pathlib import Path

import pytest
import torch
from data_files import write_folder
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from cifarbn.cli import (
    command_line,  # noqa: F401  (registers the resolvers of train.yaml)
    composition,
)
from cifarbn.cli.composition import resolved
from cifarbn.data import Shapes
from cifarbn.errors import UserError
from cifarbn.runs.result_file import read_result
from cifarbn.train import train
from cifarbn.training.classifier import Classifier

CONF = Path(command_line.CONF)
GROUPS = ("data", "augment", "norm", "activation", "model", "loss", "optim", "schedule", "trainer", "logger", "record")


def options(group):
    return sorted(str(file.relative_to(CONF / group).with_suffix("")) for file in (CONF / group).rglob("*.yaml"))


def config(*overrides):
    """Compose the config, with the values in REQUIRED of the chosen options."""
    overrides = [*overrides, *(value for override in overrides for value in REQUIRED.get(override, []))]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=overrides)


# Values that some options leave to the user.
REQUIRED = {
    "data=dataset": ["data.dataset._target_=data_files.ToyDataset"],
    "data=folder": ["data.root=${oc.env:TEST_IMAGES}"],
    "model=custom": ["model._target_=torch.nn.Flatten"],
    "optim=custom": ["optim._target_=torch.optim.NAdam"],
    "loss=custom": ["loss._target_=torch.nn.MultiMarginLoss"],
    "schedule=custom": ["schedule._target_=torch.optim.lr_scheduler.LinearLR"],
    "norm=custom": ["norm._target_=torch.nn.InstanceNorm2d"],
    "activation=custom": ["activation._target_=torch.nn.Softplus"],
}


@pytest.fixture(autouse=True, scope="session")
def images(tmp_path_factory):
    """The folder of images that REQUIRED names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_IMAGES", str(write_folder(tmp_path_factory.mktemp("images"))))
        yield


@pytest.mark.parametrize("choice", [f"{group}={option}" for group in GROUPS for option in options(group)])
def test_every_option_of_every_group_resolves(choice):
    OmegaConf.to_container(config(choice), resolve=True, throw_on_missing=True)


@pytest.fixture(scope="module")
def default():
    return config()


@pytest.mark.parametrize("experiment", options("experiment"))
def test_no_experiment_adds_a_key(experiment, default):
    # Hydra accepts a misspelt top-level key in an experiment without an error.
    cfg = config(f"experiment={experiment}")
    assert set(cfg) == set(default)
    assert cfg.name != default.name, "every experiment has its own folder"


def instantiates(*overrides):
    """Construct everything that a run constructs before it reads data."""
    cfg = config(*overrides)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    with torch.device("meta"):
        instantiate(cfg.model)
    instantiate(cfg.data), instantiate(cfg.loss)
    factory = instantiate(cfg.schedule)
    steps = {"total_steps": 8} if "total_steps" in inspect.signature(factory).parameters else {}
    factory(instantiate(cfg.optim)(parameters()), **steps)
    for recorder in cfg.record.values():
        instantiate(recorder, folder=Path("."))


# `record` also takes lists.
CHOICES = {group: options(group) for group in GROUPS} | {"record": [*options("record"), "[]", "[step_change,all]"]}


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_group_of_an_experiment_can_be_overridden(experiment):
    """Each experiment gets other options, several at once; slow_experiments.py tests every single combination."""
    first = 2 * options("experiment").index(experiment)
    for number in (first, first + 1):
        choices = {group: names[number % len(names)] for group, names in CHOICES.items()}
        instantiates(f"experiment={experiment}", *(f"{group}={option}" for group, option in choices.items()))


def test_a_changed_file_is_read_again_and_a_changed_config_changes_no_other(tmp_path):
    file = tmp_path / "loss" / "own.yaml"
    file.parent.mkdir()
    for target in ("torch.nn.MSELoss", "torch.nn.L1Loss"):
        file.write_text(f"# Mine.\n_target_: {target}\n")
        cfg = config(f"hydra.searchpath=['{tmp_path}']", "loss=own")
        assert cfg.loss._target_ == target and cfg.name == "train"
        cfg.loss._target_ = cfg.name = "changed"


@pytest.mark.parametrize(("model", "has_none"), [("timm", True), ("vgg_a", False)])
def test_a_norm_that_the_model_does_not_have_is_noted(model, has_none, monkeypatch, capsys):
    monkeypatch.setattr(composition, "_PRINTED", set())
    config(f"model={model}", "norm=group")
    assert ("note: norm=group has no effect, because model=timm" in "".join(capsys.readouterr())) == has_none


def parameters():
    return [torch.nn.Parameter(torch.zeros(4, 3, 3, 3)), torch.nn.Parameter(torch.zeros(10, 4))]


@pytest.mark.parametrize("optim", options("optim"))
@pytest.mark.parametrize("schedule", options("schedule"))
def test_every_optimizer_runs_under_every_schedule(optim, schedule):
    cfg = config(f"optim={optim}", f"schedule={schedule}", "epochs=4")
    optimizer = instantiate(cfg.optim)(parameters())
    factory = instantiate(cfg.schedule)
    needs_steps = "total_steps" in inspect.signature(factory).parameters
    scheduler = factory(optimizer, total_steps=8) if needs_steps else factory(optimizer)
    for _ in range(4):
        optimizer.step()
        scheduler.step()


def learning_rates(epochs, *overrides, steps_per_epoch=2):
    cfg = config(*overrides, f"epochs={epochs}", "optim.lr=1.0")
    optimizer = instantiate(cfg.optim)(parameters())
    factory = instantiate(cfg.schedule)
    needs_steps = "total_steps" in inspect.signature(factory).parameters
    scheduler = factory(optimizer, total_steps=epochs * steps_per_epoch) if needs_steps else factory(optimizer)
    rates = []
    for _ in range(epochs * (steps_per_epoch if needs_steps else 1)):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_against_written_out_numbers():
    assert learning_rates(3, "schedule=constant") == [1, 1, 1]
    assert learning_rates(4, "schedule=step", "schedule.milestones=[2]") == pytest.approx([1, 1, 0.1, 0.1])
    assert learning_rates(4, "schedule=cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    onecycle = learning_rates(4, "schedule=onecycle", "schedule.pct_start=0.5")
    assert onecycle[0] == pytest.approx(0.1)
    assert max(onecycle) == pytest.approx(1.0) and onecycle.index(max(onecycle)) == 3
    assert onecycle[-1] == pytest.approx(1e-5)


def test_the_defaults_are_those_of_the_course_report():
    cfg = config()
    assert cfg.optim._target_ == "torch.optim.Adam" and cfg.optim.betas == [0.5, 0.9] and cfg.optim.lr == 1e-3
    step = config("schedule=step").schedule
    assert step.milestones == [100] and step.gamma == 0.1


@pytest.mark.parametrize("name", options("activation"))
def test_every_layer_has_its_own_activation(name):
    cfg = config(f"activation={name}", "model=vgg_a", "model.width=4")
    model = instantiate(cfg.model)
    kind = type(instantiate(cfg.activation)())
    assert sum(isinstance(module, kind) for module in model.modules()) == 8 + 2


@pytest.mark.parametrize("loss", options("loss"))
def test_every_loss_is_a_scalar_of_logits_and_labels(loss):
    labels = torch.randn(5, 10) if loss == "sum_of_squares" else torch.arange(5)
    value = instantiate(config(f"loss={loss}").loss)(torch.randn(5, 10), labels)
    assert value.shape == () and value > 0


def test_the_classifier_accepts_the_objects_of_the_configs():
    cfg = config("model.width=4", "schedule=onecycle")
    classifier = Classifier(*map(instantiate, (cfg.model, cfg.loss, cfg.optim, cfg.schedule)))
    assert classifier(torch.randn(2, 3, 32, 32)).shape == (2, 10)


class HundredShapes(Shapes):
    """Data with 100 classes, of which few have images."""

    def __init__(self, **options):
        super().__init__(**options)
        self.classes = tuple(f"class {number}" for number in range(100))


@pytest.mark.parametrize("model", ["resnet18", "vgg_a", "speednet"])
def test_a_model_has_as_many_outputs_as_the_data_has_classes(model):
    cfg = config(f"model={model}", "data=shapes", "data._target_=test_config.HundredShapes")
    assert resolved(cfg)["model"]["num_classes"] == 100
    with torch.device("meta"):
        assert instantiate(cfg.model).head.out_features == 100


def test_the_command_line_sets_the_number_of_classes_for_data_without_classes():
    assert resolved(config("data=gaussian"))["model"]["num_classes"] == 10
    assert resolved(config("data=gaussian", "model.num_classes=3"))["model"]["num_classes"] == 3


def test_data_that_cannot_be_constructed_fails_in_the_run_and_not_before(tmp_path):
    cfg = config("data=shapes", "data.val_size=10000", "trainer=cpu")
    assert resolved(cfg)["model"]["num_classes"] == 10
    with pytest.raises(UserError, match="data.val_size must be below the number of training images, 10000"):
        train(cfg, tmp_path, [])
    assert read_result(tmp_path)["status"] == "failed"


class WithoutClasses(Shapes):
    """A user's data module whose number of classes is unknown before setup()."""

    @property
    def num_classes(self):
        raise RuntimeError("setup() first")


def test_the_config_sets_the_number_of_classes_if_the_data_raises_an_error():
    cfg = config("data=shapes", "data._target_=test_config.WithoutClasses")
    assert resolved(cfg)["model"]["num_classes"] == 10


@pytest.mark.parametrize("size, expected", [("48", (48, 48)), ("[32,64]", (32, 64))])
def test_the_image_size_of_a_folder_is_one_number_or_two(size, expected):
    cfg = config("data=folder", *REQUIRED["data=folder"], f"data.size={size}")
    assert instantiate(cfg.data).image_size == expected
    assert cfg.data.content.startswith("images")


def test_the_number_of_classes_of_the_data_reaches_the_model():
    for overrides, classes in (
        (["data=cifar100"], 100),
        (["data=folder", *REQUIRED["data=folder"]], 3),
        (["data=dataset", *REQUIRED["data=dataset"]], 3),
    ):
        assert config(*overrides).model.num_classes == classes
