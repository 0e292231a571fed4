"""Hydra's sweep syntax becomes the distributions of Optuna."""

from types import SimpleNamespace

import pytest

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'cifarbn[optuna]'")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

from cifarbn.cli.search_space import SearchSpace  # noqa: E402
from cifarbn.errors import UserError  # noqa: E402


@pytest.mark.parametrize(
    ("override", "key", "distribution"),
    [
        ("optim.lr=tag(log,interval(1e-4,1e-1))", "optim.lr", FloatDistribution(1e-4, 1e-1, log=True)),
        ("model.dropout=interval(0,0.5)", "model.dropout", FloatDistribution(0, 0.5)),
        ("model.dropout=float(interval(0,1))", "model.dropout", FloatDistribution(0, 1)),
        ("model.width=int(interval(4,64))", "model.width", IntDistribution(4, 64)),
        ("model.width=tag(log,int(interval(4,64)))", "model.width", IntDistribution(4, 64, log=True)),
        ("model.width=range(16,65,16)", "model.width", IntDistribution(16, 64, step=16)),
        ("model.width=range(64,15,-16)", "model.width", IntDistribution(16, 64, step=16)),
        ("model.dropout=range(0.0,0.5,0.25)", "model.dropout", FloatDistribution(0, 0.25, step=0.25)),
        ("model=vgg_a,vgg_a_bn", "model", CategoricalDistribution(["vgg_a", "vgg_a_bn"])),
        ("model.width=choice(16,32)", "model.width", CategoricalDistribution(["16", "32"])),
        ("record=[],[step_change]", "record", CategoricalDistribution(["[]", "[step_change]"])),
        ("+optim.betas=[0.9,0.99],[0.8,0.99]", "+optim.betas", CategoricalDistribution(["[0.9,0.99]", "[0.8,0.99]"])),
    ],
)
def test_each_kind_of_sweep(override, key, distribution):
    space = SearchSpace(["data=shapes", override])
    assert space.distributions == {key: distribution} and space.fixed == ["data=shapes"]


def test_a_glob_stands_for_the_options_of_its_group():
    loader = SimpleNamespace(get_group_options=lambda group, **_: {"model": ["resnet18", "vgg_a", "vgg_a_bn"]}[group])
    space = SearchSpace(["model=glob(vgg*)"], loader)
    assert space.distributions == {"model": CategoricalDistribution(["vgg_a", "vgg_a_bn"])}
    assert space.overrides == ["model=vgg_a,vgg_a_bn"], "with another option it is another search"


def test_the_last_of_two_overrides_counts():
    space = SearchSpace(["model=vgg_a,vgg_a_bn", "seed=1", "optim.lr=0.1,0.2", "model=vgg_a", "seed=2"])
    assert space.fixed == ["model=vgg_a", "seed=2"] and list(space.distributions) == ["optim.lr"]


def test_the_overrides_of_chosen_values():
    space = SearchSpace(["~optim.lr", "name=study", "model.width=4,8", "+x=interval(0,1)"])
    assert space.fixed == ["~optim.lr", "name=study"]
    assert space.chosen({"+x": 0.1 + 0.2, "model.width": "4"}) == ["model.width=4", "+x=0.30000000000000004"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=shapes"], "a search needs at least one key with several values"),
        (["optim.lr=interval(1,0.1)"], r"optim.lr=interval\(1,0.1\): .*low <= high"),
        (["optim.lr=tag(log,interval(0,1))"], r"optim.lr=tag.*: .*low > 0"),
        (["model.width=range(4,4)"], r"model.width=range\(4,4\) has no values"),
        (["model.width=tag(log,choice(4,8))"], "the tag log has no meaning here"),
        (["optim.lr=tag(lgo,interval(1,2))"], "the tag lgo has no meaning here"),
    ],
)
def test_a_wrong_space_is_an_error(overrides, message):
    with pytest.raises(UserError, match=message):
        SearchSpace(overrides)
