"""What `python -m cifarbn.reproduce` plans: every experiment of every source at every scale."""

import pytest
from hydra import initialize_config_dir
from hydra.utils import instantiate
from test_config import CONF, options

from cifarbn.reproduce.scales import FAST, SCALES, SUITES, Planned, suite

NAMES = [name for names in SUITES.values() for name in names]
AT_ALL_SCALES = [(scale, name) for scale in SCALES for source in SUITES for name in suite(source, scale)]
RATES = {1e-3, 5e-4, 2e-3, 1e-4}


@pytest.fixture
def planned():
    """A maker of plans."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield Planned.of


def test_every_row_of_every_source_is_run():
    rows = {name for name in options("experiment") if "/" in name}
    assert {name.split()[0] for name in NAMES} == rows
    assert len(set(AT_ALL_SCALES)) == len(AT_ALL_SCALES)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_states_its_source_and_full_changes_nothing(planned, name):
    plan = planned(name, "full")
    assert plan.written.source and plan.changes() == []
    assert plan.written.data.val_size == 0 if "val_size" in plan.written.data else name.startswith("santurkar2018/dln")


@pytest.mark.parametrize(("scale", "name"), AT_ALL_SCALES)
def test_every_row_can_be_made_at_every_scale(planned, scale, name):
    plan = planned(name, scale)
    optimizer = instantiate(plan.scaled.optim)
    net = instantiate(plan.scaled.model)
    optimizer(net.parameters())
    instantiate(plan.scaled.schedule), instantiate(plan.scaled.data), instantiate(plan.scaled.loss)


def test_targets_are_the_report_s(planned):
    said = {name: planned(f"report/{name}", "full").written.target for name in (n.partition("/")[2] for n in RESULTS)}
    assert {f"report/{name}": target for name, target in said.items()} == RESULTS


RESULTS = {
    "course_report/baseline": 0.819,
    "course_report/stem_decay": None,
    "course_report/augmentation": 0.915,
    "course_report/l2": 0.926,
    "course_report/dropout": 0.917,
    "course_report/pool": 0.928,
    "course_report/sgd": 0.918,
    "course_report/rmsprop": 0.925,
    "course_report/mse": 0.912,
    "course_report/swish": 0.907,
    "course_report/mish": 0.882,
    "course_report/vgg_a": 0.78,
    "course_report/vgg_a_bn": 0.83,
}


def test_a_row_says_what_its_scale_changes_and_what_it_builds_on(planned):
    plan = planned("course_report/l2", "laptop")
    assert plan.changes() == ["epochs: 200 -> 6", "model.width: 64 -> 16", "schedule.milestones: [100] -> [3]"]
    assert plan.base() == "course_report/augmentation" and planned("course_report/baseline", "full").base() is None
    slow = planned("course_handout/vgg_a_bn optim.lr=1e-4", "laptop")
    assert slow.base() == "course_handout/vgg_a optim.lr=1e-4" and slow.base() in SUITES["course_handout"]
    assert planned("course_report/vgg_a", "fast").changes() == ["schedule=onecycle"]
    assert planned("course_report/sgd", "fast").changes() == [
        "schedule=onecycle",
        "data.batch_size: 128 -> 256",
        "epochs: 200 -> 30",
        "optim.lr: 0.001 -> 0.1",
    ]


@pytest.mark.parametrize("name", [*suite("course_report", "fast"), *suite("course_handout", "fast")])
def test_fast_changes_only_how_long_and_at_what_rate(planned, name):
    """The row's own change stays: its model, loss, optimizer, augmentation and regularisation."""
    plan = planned(name, "fast")
    keys = {change.partition(":")[0].partition("=")[0] for change in plan.changes()}
    assert keys <= {"epochs", "schedule", "data.batch_size", "optim.lr"}
    assert plan.scaled.epochs <= 30 and 128 <= plan.scaled.data.batch_size <= 512
    if "vgg" in name:
        assert keys <= {"schedule"} and plan.scaled.optim.lr in RATES


def test_every_line_of_fast_is_a_row_and_the_others_are_short_at_full_scale(planned):
    assert FAST.keys() <= set(NAMES)
    for name in set(NAMES) - FAST.keys():
        plan = planned(name, "fast")
        assert plan.changes() == [] and plan.written.epochs <= 40


@pytest.mark.parametrize("source", ["course_report", "course_handout"])
def test_the_figures_of_smoothness_have_four_constant_rates(planned, source):
    plans = [planned(name, "fast") for name in suite(source, "fast") if "vgg" in name]
    for bn in (False, True):
        family = [plan.scaled for plan in plans if plan.name.split()[0].endswith("bn") is bn]
        constant = [cfg for cfg in family if cfg.schedule._target_.endswith("ConstantLR")]
        assert {cfg.optim.lr for cfg in constant} == RATES and len(constant) == 4
