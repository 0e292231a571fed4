"""What each key of the config counts for."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifarbn.cli.composition import CONF
from cifarbn.runs.identity import KEYS, Role, Tag, identifying, keys_of_role, keys_with, role_of, without_seed
from cifarbn.runs.old_names import modern_config, modern_override


def test_every_key_of_the_table_is_a_key_of_the_config():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["record=all", "schedule=onecycle", "data=cifar10"])
    strange = [key for key in KEYS if OmegaConf.select(config, key, default="none") == "none"]
    assert strange == ["data.cache", "experiment"], "a key of data=folder, and a group without a default"


@pytest.mark.parametrize(
    ("override", "role"),
    [
        ("resume=false", Role.EXECUTION),
        ("data.root=/x", Role.PLACE),
        ("trainer=cpu", Role.DEVICE),
        ("trainer=smoke", None),  # trains on four batches
        ("record.step_change.every=3", Role.WATCHING),
        ("record.gradient_probe.eta=1", Role.WATCHING),
        ("seed=3", Role.MEMBER),
        ("+optim.lr=1", None),
        ("data=shapes", None),
        ("not.a.key=1", None),
    ],
)
def test_role_of_an_override(override, role):
    assert role_of(override) is role


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=folder", "data.root=/x/flowers", "retry=false"], ["data=folder", "data.root=flowers"]),
        (["data=cifar10", "data.root=/x"], ["data=cifar10"]),  # the same images in every folder
        (["init_from=/x/run", "seed=1"], ["init_from=run", "seed=1"]),
    ],
)
def test_the_overrides_that_identify_a_run(overrides, expected):
    assert list(identifying(overrides)) == expected


def test_keys_by_role_and_by_tag():
    assert keys_of_role(Role.PLACE) == ("data.root", "data.cache", "resume_from")
    assert keys_with(Tag.SUITE) == ("name", "resume_from")
    assert set(keys_with(Tag.NOTE | Tag.RATE)) == {*keys_with(Tag.NOTE), *keys_with(Tag.RATE)}
    assert {"optim.lr", "schedule.max_lr", "record.gradient_probe.eta"} == set(keys_with(Tag.RATE))


def test_the_seed_is_left_out_wherever_it_is_repeated():
    assert without_seed({"seed": 1, "data": {"seed": 1, "seeds": 2}}) == {"data": {"seeds": 2}}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("experiment=report/l2", "experiment=course_report/l2"),
        ("experiment=report/vgg_a,paper/vgg,course/vgg_a_bn", None),
        ("experiment=paper_fig4", "experiment=santurkar2018_fig4"),
        ("experiment=course_report/l2", "experiment=course_report/l2"),
        ("test_views=plain,flip", "tta=none,flip"),
        ("changed_code=refuse", "on_code_change=error"),
        ("model.letter=B", "model.variant=B"),
        ("~record", "~record"),
        ("name=report/plain", "name=report/plain"),
    ],
)
def test_old_spellings_of_overrides_are_accepted(old, new):
    new = new or "experiment=course_report/vgg_a,santurkar2018/vgg,course_handout/vgg_a_bn"
    assert modern_override(old) == modern_override(new) == new


def test_old_configs_get_todays_keys_and_values():
    old = {"test_views": "plain", "changed_code": "refuse", "model": {"letter": "A", "identity": True}, "name": "plain"}
    new = {"tta": "none", "on_code_change": "error", "model": {"variant": "A", "dirac_init": True}, "name": "plain"}
    assert modern_config(old) == modern_config(new) == new
