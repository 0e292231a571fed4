import copy
import csv
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import processes
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from cifarbn.data import draw_shapes
from cifarbn.errors import UserError
from cifarbn.models import VGG, DeepLinear, ResNet, SpeedNet
from cifarbn.report import Options, gather, table, write_report
from cifarbn.report.__main__ import main
from cifarbn.report.captions import slugs
from cifarbn.report.features import choose_image, stage_outputs
from cifarbn.report.interval import estimate, student_t
from cifarbn.report.labels import name_groups, short
from cifarbn.report.mistakes import confusion_matrices
from cifarbn.report.page import summary
from cifarbn.report.structure import input_shape, trace
from cifarbn.training.callbacks.metrics_logger import COLUMNS
from cifarbn.training.classifier import Classifier

CONFIG = {
    "model": {"_target_": "cifarbn.models.VGG", "variant": "A", "width": 1, "num_classes": 10},
    "data": {"_target_": "cifarbn.data.Shapes", "train_size": 1, "test_size": 300, "val_size": 0, "seed": 0},
    "optim": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "epochs": 2,
    "seed": 0,
}
DATA = {"name": "shapes", "train_size": 100, "val_size": 20, "test_size": 300, "mean": [0.5] * 3, "std": [0.3] * 3}
DATA["classes"] = ["circle", "ring", "square", "frame", "triangle", "cross", "star", "heart", "moon", "arrow"]


def make_run(root, *overrides, status="done", accuracy=0.5, config=None, losses=(2.0, 1.5), **facts):
    """Write a run folder as train.py does, with two epochs of `len(losses)` steps each."""
    config = copy.deepcopy(CONFIG) | (config or {})
    for override in overrides:
        key, _, value = override.partition("=")
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        if not isinstance(node.get(last), dict) and key not in (
            "trainer",
            "record",
        ):  # overrides of whole config groups
            node[last] = json.loads(value) if re.match(r"[\d.e-]+$|null|true|false", value) else value
    config["data"]["seed"] = config["seed"]
    folder = root / (",".join(overrides) or "defaults").replace("/", "_")
    folder.mkdir(parents=True)
    result = {
        "status": status,
        "error": None,
        "overrides": list(overrides),
        "config": config,
        "metrics": {"test/acc": accuracy, "test/loss": 1.0, "val/acc": accuracy + 0.01, "val/loss": 1.1},
        "parameters": 1234,
        "seconds": {"train": 10.0, "total": 12.0},
        "images_per_second": 100.0,
        "device": "some CPU",
        "precision": "32-true",
        "data": DATA,
        "versions": {"torch": "2.9"},
        "git_commit": None,
    }
    (folder / "result.json").write_text(json.dumps(result | facts))
    lines = [",".join(COLUMNS)]
    for epoch in (0, 1):
        for i, loss in enumerate(losses):
            row = [len(losses) * epoch + i, epoch, 0.1, loss, 0.25, 1.0]
            ends = i == len(losses) - 1
            row += [loss, 0.3 + epoch / 10, loss + 0.5, accuracy + 0.01 * epoch, "", ""] if ends else [""] * 6
            lines.append(",".join(map(str, row)))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def add_checkpoint(folder, model):
    classifier = Classifier(model, nn.CrossEntropyLoss(), torch.optim.SGD)
    torch.save({"state_dict": classifier.state_dict()}, folder / "last.ckpt")


def rows(file):
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


# Student's t: values from Abramowitz and Stegun 1964, table 26.10.


@pytest.mark.parametrize(
    ("confidence", "degrees", "t"),
    [
        *((0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776), (0.95, 9, 2.262)),
        *((0.95, 30, 2.042), (0.95, 120, 1.980), (0.99, 1, 63.657), (0.99, 7, 3.499), (0.50, 2, 0.816)),
    ],
)
def test_student_t(confidence, degrees, t):
    assert student_t(confidence, degrees) == pytest.approx(t, abs=6e-4)


def test_student_t_in_closed_form():
    assert student_t(0.95, 1) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-9)
    assert student_t(0.95, 2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-9)


def test_estimate_of_three_runs():
    n, mean, std, half_width = estimate([0.90, 0.92, 0.94])
    assert (n, mean) == (3, pytest.approx(0.92))
    assert std == pytest.approx(0.02)
    assert half_width == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-6)


def test_one_run_has_no_spread():
    assert estimate([0.9]) == (1, 0.9, None, None)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


# Names.


def named(*overrides, configs=None):
    configs = configs or [{}] * len(overrides)
    return name_groups([{"overrides": o, "config": c} for o, c in zip(overrides, configs, strict=True)])


def test_a_group_is_named_by_what_varies():
    labels, same = named(["model=vgg_a", "optim.lr=1e-3", "epochs=2"], ["model=vgg_a_bn", "optim.lr=2e-3", "epochs=2"])
    assert labels == ["vgg_a, lr 0.001", "vgg_a_bn, lr 0.002"]
    assert same == {"epochs": "2"}


def test_an_ambiguous_config_choice_keeps_its_key():
    assert named(["augment=none"], ["augment=flip_crop"])[0] == ["augment none", "augment flip_crop"]


def test_keys_with_the_same_last_part_keep_their_full_name():
    labels, _ = named(["optim.lr=1", "probe.lr=1"], ["optim.lr=2", "probe.lr=2"])
    assert labels == ["optim.lr 1, probe.lr 1", "optim.lr 2, probe.lr 2"]


def test_a_default_is_labelled_with_the_value_in_the_config():
    labels, _ = named(["optim.lr=0.01"], [], configs=[{"optim": {"lr": 0.01}}, {"optim": {"lr": 0.1}}])
    assert labels == ["lr 0.01", "lr 0.1"]


def test_two_spellings_of_a_number_are_equal():
    assert named(["optim.lr=1e-3", "seed=0"], ["optim.lr=0.001", "epochs=3"])[1] == {"optim.lr": "0.001"}


def test_groups_with_equal_overrides_are_labelled_by_the_config():
    labels, _ = named(["model=a"], ["model=a"], configs=[{"data": {"val_size": 0}}, {"data": {"val_size": 5000}}])
    assert labels == ["val_size 0", "val_size 5000"]


def test_labels_are_unique():
    labels, _ = named(["model=a"], ["model=b"], [], [], configs=[{}, {}, {}, {}])
    assert len(set(labels)) == 4 and all(labels)


NET, OTHER = "model._target_=my.Net", "model._target_=my.Other"


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([[NET], [OTHER]], ["Net", "Other"]),
        ([["model=custom", NET], ["model=vgg_a"]], ["Net", "vgg_a"]),
        ([[NET], ["model._target_=their.Net"]], ["my.Net", "their.Net"]),
        # Of the arguments, those that differ between groups of one class, or between classes that have them.
        (
            [[NET, "model.width=8"], [NET, "model.width=16"], [OTHER, "model.hidden=4"]],
            ["Net, width 8", "Net, width 16", "Other"],
        ),
        ([[NET, "model.width=8"], [OTHER, "model.width=16"]], ["Net, width 8", "Other, width 16"]),
        ([["optim._target_=my.Optimizer", "~optim.lr"], ["optim=sgd", "optim.lr=0.1"]], ["Optimizer", "sgd, lr 0.1"]),
        ([["loss._target_=my.loss", "loss._partial_=true"], ["loss=mse"]], ["loss", "mse"]),
        ([["data.dataset._target_=my.A"], ["data.dataset._target_=my.B"]], ["dataset A", "dataset B"]),
    ],
)
def test_a_class_of_the_users_is_labelled_by_its_name(overrides, expected):
    configs = [{"model": {"_target_": "cifarbn.models.VGG"}, "loss": {"_target_": "torch.nn.MSELoss"}}] * len(overrides)
    configs = [
        config
        | {
            group.partition("._target_=")[0]: {"_target_": group.partition("=")[2]}
            for group in o
            if "_target_" in group
        }
        for config, o in zip(configs, overrides, strict=True)
    ]
    assert named(*overrides, configs=configs)[0] == expected


def test_groups_that_differ_in_a_class_of_the_config_are_labelled_by_it():
    optim = [{"_target_": "torch.optim.Adam", "_partial_": True}, {"_target_": "torch.optim.AdamW"}]
    assert named(["model=a"], ["model=a"], configs=[{"optim": each} for each in optim])[0] == ["Adam", "AdamW"]


def test_a_single_group():
    assert named(["model=a", "seed=0"]) == (["all runs"], {"model": "a"})


def test_short_values():
    assert [short(v) for v in ("1e-3", 1e-05, "3", True, None, "[0.5,0.9]", 0.1 + 0.2, "inf")] == [
        *("0.001", "1e-5", "3", "true", "None", "[0.5,0.9]", "0.3", "inf")
    ]


# Gathering.


def test_runs_are_grouped_by_everything_except_the_seed(tmp_path):
    for seed in (1, 0):
        make_run(tmp_path, "optim.lr=0.1", f"seed={seed}", accuracy=0.6 + seed / 10)
        make_run(tmp_path, "optim.lr=0.2", f"seed={seed}", accuracy=0.4)
    sweep = gather(tmp_path)
    assert [group.label for group in sweep.groups] == ["lr 0.1", "lr 0.2"]  # best first
    assert [run.seed for run in sweep.groups[0].runs] == [0, 1]
    assert sweep.groups[0].metric("test/acc") == [0.6, 0.7]
    assert "optim.lr" not in sweep.constant and sweep.constant["epochs"] == "2"


def test_runs_of_an_older_version_belong_to_the_same_experiment(tmp_path):
    for seed, norm in ((0, "cifarbn.models.BatchNorm2d"), (1, "torch.nn.BatchNorm2d")):
        make_run(tmp_path, f"seed={seed}", config={"norm": {"_target_": norm, "_partial_": True}})
    (group,) = gather(tmp_path).groups
    assert [run.seed for run in group.runs] == [0, 1]


def test_unsuccessful_runs_are_excluded_with_a_reason(tmp_path):
    make_run(tmp_path, "seed=0", accuracy=0.8)
    make_run(tmp_path, "seed=1", accuracy=0.1, status="failed", error="RuntimeError: out of memory")
    make_run(tmp_path, "seed=2", accuracy=0.1, status="diverged", error="the loss of step 7 is not finite")
    make_run(tmp_path, "seed=3", accuracy=0.1, status="interrupted")
    make_run(tmp_path, "seed=4", accuracy=0.1, status="running")
    make_run(tmp_path, "seed=5", accuracy=0.1, losses=[math.log(10)] * 60)
    make_run(tmp_path, "seed=6", accuracy=0.1, metrics={"test/acc": 0.1, "test/loss": math.nan})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    sweep = gather(tmp_path)
    assert sweep.groups[0].metric("test/acc") == [0.8]
    reasons = {run: reason for run, _, reason in sweep.excluded}
    assert list(reasons) == ["seed=1", "seed=2", "seed=3", "seed=4", "seed=5", "seed=6", "broken"]
    for part, reason in zip(
        (
            "out of memory",
            "diverged: the loss",
            "interrupted",
            "unfinished",
            "dead since step 0",
            "test/loss is not",
            "unreadable",
        ),
        reasons.values(),
        strict=True,
    ):
        assert part in reason
    assert str(tmp_path) not in " ".join(reasons.values())


def test_a_run_that_learnt_little_is_not_dead(tmp_path):
    make_run(tmp_path, losses=[2.29, 2.35] * 30)
    assert not gather(tmp_path).excluded


def test_epochs_and_steps_of_a_run(tmp_path):
    folder = make_run(tmp_path, losses=(2.0, 1.5, 1.0))
    with (folder / "metrics.csv").open("a") as file:
        file.write("6,2,0.1,0.")  # incomplete row of a killed run
    (run,) = gather(tmp_path).groups[0].runs
    assert_allclose(run.steps["step"], range(6))
    assert_allclose(run.steps["step/loss"], [2.0, 1.5, 1.0] * 2)
    assert_allclose(run.epochs["step"], [2, 5])
    assert_allclose(run.epochs["train/acc"], [0.3, 0.4])
    assert np.isnan(run.epochs["test_curve/acc"]).all()


def test_curves_of_runs_of_unequal_length(tmp_path):
    make_run(tmp_path, "seed=0")
    shorter = make_run(tmp_path, "seed=1") / "metrics.csv"
    shorter.write_text("\n".join(shorter.read_text().splitlines()[:3]) + "\n")
    curves = gather(tmp_path).groups[0].curves("train/acc")
    assert_allclose(curves, [[0.3, 0.4], [0.3, np.nan]])


def test_a_run_folder_itself_and_a_run_without_metrics(tmp_path):
    folder = make_run(tmp_path, "seed=0")
    (folder / "metrics.csv").unlink()
    (run,) = gather(folder).groups[0].runs
    assert run.name == "seed=0" and len(run.epochs["epoch"]) == 0


def test_nothing_to_gather(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        gather(tmp_path)


def test_runs_of_several_folders_are_compared_and_not_merged(tmp_path):
    for name, accuracies in (("before", (0.5, 0.6)), ("after", (0.7, 0.8))):
        for seed, accuracy in enumerate(accuracies):
            make_run(tmp_path / name, "optim.lr=0.1", f"seed={seed}", accuracy=accuracy)
        make_run(tmp_path / name, "optim.lr=0.2", accuracy=0.1, seconds={"train": accuracies[0]})
    sweep = gather(tmp_path / "before", tmp_path / "after")
    groups = {group.label: group.metric("test/acc") for group in sweep.groups}
    assert groups == {
        **{"after: lr 0.1": [0.7, 0.8], "before: lr 0.1": [0.5, 0.6]},
        **{"after: lr 0.2": [0.1], "before: lr 0.2": [0.1]},
    }
    assert not sweep.excluded
    (merged, _) = gather(tmp_path).groups
    assert merged.label == "lr 0.1" and len(merged.runs) == 2, "the parent folder is one sweep, with each seed once"


def test_a_copy_of_a_run_is_excluded_and_the_one_with_a_checkpoint_included(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "a.record", f"seed={seed}")
    shutil.copytree(tmp_path / "a.record", tmp_path / "b")
    (tmp_path / "b" / "seed=1" / "last.ckpt").touch()
    copy = "same experiment and seed as {}, which is included instead"
    for folders in ([tmp_path / "a.record", tmp_path / "b"], [tmp_path]):
        sweep = gather(*folders)
        assert [run.name for group in sweep.groups for run in group.runs] == ["a.record/seed=0", "b/seed=1"]
        assert {run: reason for run, _, reason in sweep.excluded} == {
            "b/seed=0": copy.format("a.record/seed=0"),
            "a.record/seed=1": copy.format("b/seed=1"),
        }


# The table.


def test_table_of_means_targets_and_gaps(tmp_path):
    stated = {"target": 0.928, "optim": {"a": 1}}
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        make_run(tmp_path, "experiment=course_report/pool", f"seed={seed}", accuracy=accuracy, config=stated)
    make_run(tmp_path, "optim=sgd", "seed=0", accuracy=0.5)
    sweep = gather(tmp_path)
    shown = table.columns(sweep)
    assert shown["n"] == ["3", "1"]
    assert shown["test accuracy, %"] == ["92.00 ± 2.00", "50.00"]
    assert shown["95 % interval"] == ["87.03 to 96.97", ""]
    assert shown["target, %"] == ["92.80", ""] and shown["gap"] == ["−0.80", ""]
    assert shown["data"] == ["shapes", "shapes"]
    assert "device" not in shown  # the same for all runs, so it is in the summary
    first, second = table.rows(sweep)
    assert first["test/acc"] == pytest.approx(0.92) and first["gap"] == pytest.approx(-0.008)
    assert second["test/acc std"] is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1", 0.928),
        ("trainer=gpu", 0.928),
        ("record=[last_layer_gradients]", 0.928),
        ("name=mine", 0.928),
        ("trainer=smoke", None),
        ("epochs=6", None),
        ("model.width=8", None),
        ("data=shapes", None),
        ("data.batch_size=256", None),
    ],
)
def test_the_target_applies_to_the_unchanged_experiment_only(tmp_path, override, expected):
    make_run(tmp_path, "experiment=course_report/pool", override, config={"target": 0.928, "model": {}})
    (group,) = gather(tmp_path).groups
    assert group.target == expected


def test_a_regression_is_ranked_by_its_loss(tmp_path):
    make_run(tmp_path, metrics={"train/loss": 0.125})
    assert table.columns(gather(tmp_path))["training loss"] == ["0.1250"]


def test_latex_and_markdown_are_escaped(tmp_path):
    make_run(tmp_path, "model=vgg_a", accuracy=0.5)
    make_run(tmp_path, "model=a|b&c", accuracy=0.4, config={"x": 1})
    sweep = gather(tmp_path)
    assert r"vgg\_a" in table.as_latex(sweep) and r"a\textbar{}b\&c" in table.as_latex(sweep)
    assert r"test accuracy, \%" in table.as_latex(sweep)
    lines = table.as_markdown(table.columns(sweep)).splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_slugs_differ_even_if_case_is_ignored(tmp_path):
    make_run(tmp_path, "name_=A/b")
    make_run(tmp_path, "name_=a b")
    first, second = slugs(gather(tmp_path).groups)
    assert first != second and re.fullmatch(r"[\w.+-]+", first + second)


# The structure of models. Parameter counts are torchvision's, with ten classes, or counted by hand.


def test_trace_of_resnet18():
    layers = trace(ResNet(18, width=64), (3, 32, 32))
    assert sum(layer.parameters for layer in layers) == 11_173_962
    assert [layer.shape for layer in layers if layer.kind == "block"] == [
        *[(64, 32, 32)] * 2,
        *[(128, 16, 16)] * 2,
        *[(256, 8, 8)] * 2,
        *[(512, 4, 4)] * 2,  # fmt: skip
    ]
    assert [layer.skip for layer in layers if layer.skip] == ["identity"] * 2 + ["conv 1×1 /2", "identity"] * 3
    assert layers[0].text == "conv 3×3 · BatchNorm2d · ReLU" and layers[0].parameters == 64 * 27 + 2 * 64
    assert not any(layer.pooled for layer in layers)
    assert layers[-2:] == [("", "pool", "global pool", (512,), 0, "", False, 1), layers[-1]]


def test_trace_finds_the_pooling_of_every_block():
    layers = trace(ResNet(18, width=2, pool_blocks=True, dropout=0.1), (3, 32, 32))
    assert [layer.pooled for layer in layers] == [False] + [True] * 8 + [False] * 2
    assert layers[-2].text == "pool of every block · Dropout" and layers[-2].shape == (2 * (2 + 4 + 8 + 16),)


def test_trace_of_vgg_and_of_the_deep_linear_network():
    layers = trace(VGG("A"), (3, 32, 32))
    assert sum(layer.parameters for layer in layers) == 9_750_922
    assert [layer.kind for layer in layers].count("convolution") == 8
    assert [layer.shape for layer in trace(DeepLinear(depth=3), (10,))] == [(10,)] * 3


class Odd(nn.Module):
    """A model whose first layer is neither convolution nor linear, and that pools with a function."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.conv = nn.Conv2d(3, 3, 1)
        self.first = nn.ZeroPad2d(1)

    def forward(self, x):
        return self.head(self.conv(self.first(x)).amax((2, 3)))


def test_trace_and_stages_of_an_unusual_model():
    layers = trace(Odd(), input_shape(Odd(), (32, 32)))
    assert [(layer.name, layer.kind, layer.shape) for layer in layers] == [
        ("first", "other", (3, 34, 34)),
        ("conv", "convolution", (3, 34, 34)),
        ("", "pool", (3,)),
        ("head", "linear", (2,)),
    ]
    assert [stage.name for stage in stage_outputs(Odd(), torch.zeros(1, 3, 32, 32))] == ["conv"]


def test_trace_changes_no_buffers_and_removes_its_hooks():
    model = ResNet(18, width=2)
    before = copy.deepcopy(model.state_dict())
    trace(model, (3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


# Feature maps.


def test_stage_outputs_are_those_of_the_model():
    model = ResNet(18, width=2).eval()
    image = torch.randn(1, 3, 32, 32)
    stages = stage_outputs(model, image)
    assert [stage.name for stage in stages] == [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    with torch.no_grad():
        logits = model.head(torch.from_numpy(stages[-1].maps).mean((1, 2)))
        torch.testing.assert_close(logits, model(image)[0])


def test_stages_of_a_vgg_are_taken_before_each_pool():
    stages = stage_outputs(VGG("A", width=1).eval(), torch.randn(1, 3, 32, 32))
    assert [stage.maps.shape for stage in stages] == [(1, 32, 32), (2, 16, 16), (4, 8, 8), (8, 4, 4), (8, 2, 2)]
    assert all((stage.maps >= 0).all() for stage in stages)  # after the activation


def test_stages_of_a_model_that_pools_before_the_activation_are_its_convolutions():
    stages = stage_outputs(SpeedNet((4, 4, 4)).eval(), torch.randn(1, 3, 32, 32))
    assert [stage.name for stage in stages] == [f"groups.{i}.conv{j}" for i in (0, 1, 2) for j in (1, 2)]


def test_choosing_an_image(make_images):
    test = make_images(10)
    classes = tuple("abcdefgh") + ("ship", "truck")
    assert choose_image(None, test, classes) == (8, "ship")
    assert choose_image(None, test, tuple("abcdefghij")) == (0, "a")
    assert choose_image("truck", test, classes) == (9, "truck")
    assert choose_image("3", test, classes) == (3, "d")
    for request in ("10", "-1", "whale"):
        with pytest.raises(UserError, match="there is no test image"):
            choose_image(request, test, classes)


# The complete report.


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Write a report of two groups, one with a checkpoint, and a failed run."""
    root = tmp_path_factory.mktemp("sweep")
    torch.manual_seed(0)
    model = VGG("A", width=1)
    counts = (np.eye(10, dtype=int) * 25 + 5).tolist()
    for seed in (0, 1):
        folder = make_run(root, "model=vgg_a", f"seed={seed}", accuracy=0.7, confusion=counts)
        add_checkpoint(folder, model)
    resnet = {"model": {"_target_": "cifarbn.models.ResNet", "depth": 18, "width": 1, "num_classes": 10}}
    make_run(root, "model=resnet18", "seed=0", accuracy=0.6, config=resnet, confusion=counts)
    make_run(root, "model=resnet18", "seed=1", status="failed", error="<b>bad & worse</b>", config=resnet)
    main([str(root), "--image", "moon"])
    return root / "report"


def test_the_report_has_every_file(report):
    assert {file.name for file in report.iterdir()} == {
        *("index.html", "report.md", "table.csv", "table.tex", "runs.csv", "curves.csv", "figures")
    }
    pngs = {file.stem for file in (report / "figures").glob("*.png")}
    assert pngs == {file.stem for file in (report / "figures").glob("*.pdf")}
    assert pngs == {
        *("comparison-shapes-accuracy", "comparison-shapes-loss", "curves-vgg_a", "curves-resnet18"),
        *("features-vgg_a", "filters-vgg_a", "mistakes-vgg_a", "confusion-vgg_a", "confusion-resnet18"),
        *("structure-vgg_a", "structure-resnet18"),
    }


def test_the_page_is_self_contained(report):
    page = Page((report / "index.html").read_text())
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in page.tags if tag == "img")
    linked = [attrs["href"] for tag, attrs in page.tags if tag == "a" and not attrs["href"].startswith("#")]
    assert all((report / href).is_file() for href in linked)
    assert {"table.csv", "table.tex", "runs.csv", "curves.csv", "figures/curves-vgg_a.pdf"} <= set(linked)
    assert not re.search(r"url\(|@import|https?:", (report / "index.html").read_text())


def test_the_page_is_accessible(report):
    page = Page((report / "index.html").read_text())
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 11 and all(len(image["alt"]) > 20 for image in images)
    assert ("html", {"lang": "en"}) in page.tags
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [a for _, a in page.tags]
    assert "prefers-color-scheme: dark" in (report / "index.html").read_text()


def test_the_table_comes_first_then_the_excluded_runs(report):
    page = Page((report / "index.html").read_text())
    order = [tag for tag, _ in page.tags]
    assert order.index("table") < order.index("aside") < order.index("img")
    assert "failed: <b>bad & worse</b>" in "".join(page.words)  # escaped in the source


def test_every_figure_names_data_and_n(report):
    text = (report / "report.md").read_text()
    captions = re.findall(r"^\*(.+)\*$", text, flags=re.MULTILINE)
    assert len(captions) == 11
    for caption in captions:
        assert caption.startswith("Model structure of") or ("shapes" in caption and re.search(r"n\s=\s\d", caption))


def test_the_report_contains_no_paths(report):
    for file in ("index.html", "report.md", "runs.csv", "table.csv", "table.tex"):
        assert str(report.parent.parent) not in (report / file).read_text()


def test_the_page_states_how_accuracies_were_measured(report):
    assert "nothing was selected by the test set. ± is" in (report / "report.md").read_text()


def test_runs_csv_has_every_run(report):
    by_run = {row["run"]: row for row in rows(report / "runs.csv")}
    assert len(by_run) == 4
    assert by_run["model=resnet18,seed=1"]["excluded"] == "failed: <b>bad & worse</b>"
    assert by_run["model=vgg_a,seed=1"]["group"] == "vgg_a" and by_run["model=vgg_a,seed=1"]["excluded"] == ""


def test_contents_of_the_files(report):
    """table.csv has a row per group, with fractions; runs.csv a row per run; report.md the table and links to files."""
    first, second = rows(report / "table.csv")
    assert (first["group"], first["n"], first["data"]) == ("vgg_a", "2", "shapes")
    assert (second["group"], second["n"]) == ("resnet18", "1")
    assert float(first["test/acc"]) == 0.7 and float(first["test/acc std"]) == 0 and second["test/acc std"] == ""
    assert {
        "val/acc",
        "test/loss",
        "test/acc 95% half width",
        "target",
        "gap",
        "steps",
        "parameters",
        "seconds",
    } <= set(first)
    for row in (first, second):
        assert all(value == "" or float(value) == float(value) for key, value in row.items() if "/" in key)
    runs = rows(report / "runs.csv")
    assert [row["status"] for row in runs] == ["done", "done", "done", "failed"]
    assert {"run", "group", "excluded", "seed", "data", "overrides", "precision", "seconds train"} <= set(runs[0])
    assert all(float(row["test/acc"]) in (0.7, 0.6, 0.5) for row in runs)
    text = (report / "report.md").read_text()
    table_ = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert table_[0][:3] == ["runs", "n", "test accuracy, %"] and set(table_[1]) == {"---"}
    assert [row[:3] for row in table_[2:]] == [["vgg_a", "2", "70.00 ± 0.00"], ["resnet18", "1", "60.00"]]
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len(linked) > 20 and all((report / file).is_file() for file in linked)


def test_sections_about_accuracy_come_first(report):
    page = Page((report / "index.html").read_text())
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == [
        *("training-curves", "confusion-matrices", "misclassified-images"),
        *("feature-maps", "first-layer-filters", "model-structure"),
    ]


def test_a_failed_run_shows_the_first_line_of_its_error_without_paths(tmp_path):
    error = "RuntimeError: no file '/home/me/secret/x.bin'\nTraceback of many lines\nin /home/me/y.py"
    make_run(tmp_path, "seed=0", status="failed", error=error)
    ((_, _, reason),) = gather(tmp_path).excluded
    assert reason == "failed: RuntimeError: no file 'x.bin'"


@pytest.mark.parametrize(
    ("seeds", "rates", "expected"),
    [
        (1, 1, "1 run in 1 group."),
        (3, 1, "3 runs in 1 group."),
        (1, 2, "2 runs in 2 groups; runs of a group differ only in the seed."),
    ],
)
def test_numbers_and_nouns_agree(tmp_path, seeds, rates, expected):
    for seed in range(seeds):
        for rate in range(1, rates + 1):
            make_run(tmp_path, f"optim.lr={rate}", f"seed={seed}")
    assert summary(gather(tmp_path)).startswith(expected)


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[5, 0], [0, 5]], "100.0 % of the images are on the diagonal; no mistakes."),
        ([[5, 1], [0, 4]], "the most frequent mistake is a predicted as b, 1 time."),
        ([[5, 1], [2, 4]], "the most frequent mistake is b predicted as a, 2 times."),
    ],
)
def test_the_text_alternative_of_a_confusion_matrix(tmp_path, confusion, expected):
    make_run(tmp_path, confusion=confusion, data=DATA | {"classes": ["a", "b"]})
    (drawing,) = confusion_matrices(gather(tmp_path), Options()).drawings
    assert drawing.alt.endswith(expected)


def test_a_confusion_matrix_of_many_classes_lists_the_most_frequent_mistakes(tmp_path):
    counts = 50 * np.eye(100, dtype=int)
    counts[3, 7], counts[90, 12] = 30, 40
    make_run(tmp_path, confusion=counts.tolist(), data=DATA | {"classes": [f"c{i}" for i in range(100)]})
    (drawing,) = confusion_matrices(gather(tmp_path), Options()).drawings
    matrix, mistakes = drawing.figure.axes
    assert drawing.figure.get_figwidth() == 5.2 and not matrix.texts
    assert [label.get_text() for label in mistakes.get_yticklabels()] == ["c90 → c12", "c3 → c7"]
    assert [bar.get_width() for bar in mistakes.patches] == [40, 30]
    assert "c90 predicted as c12, 40 times" in drawing.alt


def test_without_mistakes_a_confusion_matrix_of_many_classes_lists_none(tmp_path):
    make_run(tmp_path, confusion=np.eye(40, dtype=int).tolist(), data=DATA | {"classes": [f"c{i}" for i in range(40)]})
    (drawing,) = confusion_matrices(gather(tmp_path), Options()).drawings
    assert len(drawing.figure.axes) == 1


def test_curves_csv_has_the_mean_over_runs(report):
    (row,) = [
        r for r in rows(report / "curves.csv") if (r["group"], r["curve"], r["epoch"]) == ("vgg_a", "val/acc", "2")
    ]
    assert (row["n"], float(row["mean"])) == ("2", pytest.approx(0.71))


def test_feature_maps_are_of_the_requested_image(report):
    moons = (draw_shapes(300, 1).labels == 8).nonzero()
    assert f"Test image {int(moons[0])}, moon" in (report / "report.md").read_text()


def test_an_unknown_image_is_one_error(report):
    with pytest.raises(SystemExit, match="there is no test image 'whale'"):
        main([str(report.parent), "--out", str(report.parent / "other"), "--image", "whale"])


def test_old_options_are_accepted_with_a_notice(report, capsys):
    with pytest.raises(SystemExit, match="there is no test image 'whale'"):
        main([str(report.parent), "--out", str(report.parent / "other"), "--nets=1", "--picture", "whale"])
    assert capsys.readouterr().err.startswith(
        "note: --nets is now called --models\nnote: --picture is now called --image\n"
    )


def test_a_missing_folder_is_one_error(tmp_path):
    with pytest.raises(SystemExit, match="there is no folder"):
        main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("options", [(), ("--out", "mine")])
def test_a_folder_of_the_users_files_is_an_error_and_left_alone(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "seed=0", status="running")
    mine = tmp_path / (options[1] if options else "runs/report")
    mine.mkdir()
    (mine / "table.csv").write_text("mine")
    with pytest.raises(
        SystemExit, match=r"holds files, but no runs.csv of an earlier report \(table.csv\).*with --out"
    ):
        main(["runs", *options])
    (mine / "runs.csv").write_text("kilometres,date\n")
    with pytest.raises(SystemExit, match=r"\(runs.csv, table.csv\)"):
        main(["runs", *options])
    assert {file.name for file in mine.iterdir()} == {"table.csv", "runs.csv"}
    assert (mine / "table.csv").read_text() == "mine"


def test_a_report_of_an_earlier_version_is_replaced(tmp_path):
    make_run(tmp_path, "seed=0", status="running")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "runs.csv").write_text("run,group,status,left_out\n")
    (tmp_path / "report" / "index.html").write_text("old")
    main([str(tmp_path)])
    assert "No run has finished yet" in (tmp_path / "report" / "index.html").read_text()


def test_a_sweep_without_a_finished_run_still_has_a_page(tmp_path):
    make_run(tmp_path, "seed=0", status="running")
    write_report(gather(tmp_path), tmp_path / "out", Options())
    text = (tmp_path / "out" / "index.html").read_text()
    assert "No run has finished yet" in text and "unfinished" in text


def test_the_report_of_a_real_run(tmp_path):
    data = ("data=shapes", "data.train_size=300", "data.test_size=100", "data.val_size=50", "data.test_curve=true")
    overrides = (*data, "model=resnet18_pool", "model.width=2", "epochs=1", "trainer=smoke")
    done = processes.run("cifarbn.train", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    main([str(tmp_path / "multirun_outputs"), "--format", "png"])
    figures = tmp_path / "multirun_outputs" / "report" / "figures"
    kinds = {file.stem.partition("-")[0] for file in figures.glob("*.png")}
    assert kinds >= {"curves", "features", "filters", "confusion", "mistakes", "structure"}


def test_overrides_implied_by_the_experiment_name_are_omitted_from_labels():
    overrides = [
        ["experiment=course_report/vgg_a", "epochs=6"],
        ["experiment=course_report/vgg_a", "epochs=6", "optim.lr=2e-3"],
        ["experiment=course_report/l2", "epochs=6", "schedule.milestones=[3]"],
    ]
    configs = [{"optim": {"lr": rate}, "schedule": {"x": i}} for i, rate in enumerate((1e-3, 2e-3, 1e-3))]
    labels, same = named(*overrides, configs=configs)
    assert labels == ["course_report/vgg_a, lr 0.001", "course_report/vgg_a, lr 0.002", "course_report/l2, lr 0.001"]
    assert same == {"epochs": "6"}


def test_a_model_is_traced_at_the_size_of_its_images():
    assert input_shape(Odd(), (48, 64)) == (3, 48, 64)
    assert trace(Odd(), (3, 48, 64))[0].shape == (3, 50, 66)
