"""The experiments that `python -m cifarbn.reproduce` plans, for every suite and scale."""

import functools

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from test_config import CONF, options

from cifarbn.reproduce import scales
from cifarbn.reproduce.scales import FAST, SCALES, SUITES, Planned, experiments

NAMES = [name for names in SUITES.values() for name in names]
AT_ALL_SCALES = [(scale, name) for scale in SCALES for suite in SUITES for name in experiments(suite, scale)]
RATES = {1e-3, 5e-4, 2e-3, 1e-4}


@pytest.fixture(scope="module")
def planned():
    """Plan experiments while Hydra is initialised; the same overrides are composed only once."""
    once = functools.cache(lambda *overrides: compose("train", overrides=list(overrides)))
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.MonkeyPatch.context() as patched:
        patched.setattr(scales, "compose", lambda _, overrides: once(*overrides))
        yield Planned.of


def test_every_experiment_is_in_a_suite():
    names = {name for name in options("experiment") if "/" in name}
    assert {name.split()[0] for name in NAMES} == names
    assert len(set(AT_ALL_SCALES)) == len(AT_ALL_SCALES)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_a_source_and_is_unchanged_at_full_scale(planned, name):
    plan = planned(name, "full")
    assert plan.written.source and plan.changes() == []
    assert plan.written.data.val_size == 0 if "val_size" in plan.written.data else name.startswith("santurkar2018/dln")


@pytest.mark.parametrize(("scale", "name"), AT_ALL_SCALES)
def test_every_experiment_instantiates_at_every_scale(planned, scale, name):
    plan = planned(name, scale)
    optimizer = instantiate(plan.scaled.optim)
    with torch.device("meta"):
        model = instantiate(plan.scaled.model)
    optimizer(model.parameters())
    instantiate(plan.scaled.schedule), instantiate(plan.scaled.data), instantiate(plan.scaled.loss)


def test_targets_are_those_of_the_course_report(planned):
    assert {name: planned(name, "full").written.target for name in RESULTS} == RESULTS


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


def test_changes_of_a_scale_and_the_base_of_an_experiment(planned):
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


@pytest.mark.parametrize("name", [*experiments("course_report", "fast"), *experiments("course_handout", "fast")])
def test_fast_changes_only_duration_batch_size_and_learning_rate(planned, name):
    """Model, loss, optimizer, augmentation and regularisation are unchanged."""
    plan = planned(name, "fast")
    keys = {change.partition(":")[0].partition("=")[0] for change in plan.changes()}
    assert keys <= {"epochs", "schedule", "data.batch_size", "optim.lr"}
    assert plan.scaled.epochs <= 30 and 128 <= plan.scaled.data.batch_size <= 512
    if "vgg" in name:
        assert keys <= {"schedule"} and plan.scaled.optim.lr in RATES


def test_experiments_that_fast_does_not_change_are_short(planned):
    assert FAST.keys() <= set(NAMES)
    for name in set(NAMES) - FAST.keys():
        plan = planned(name, "fast")
        assert plan.changes() == [] and plan.written.epochs <= 40


@pytest.mark.parametrize("suite", ["course_report", "course_handout"])
def test_smoothness_figures_have_four_constant_rates(planned, suite):
    plans = [planned(name, "fast") for name in experiments(suite, "fast") if "vgg" in name]
    for bn in (False, True):
        family = [plan.scaled for plan in plans if plan.name.split()[0].endswith("bn") is bn]
        constant = [cfg for cfg in family if cfg.schedule._target_.endswith("ConstantLR")]
        assert {cfg.optim.lr for cfg in constant} == RATES and len(constant) == 4
