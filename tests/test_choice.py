"""Every way of saying what is recorded."""

import json

import pytest
from hydra import compose, initialize_config_dir

from cifarbn.command_line import CONF
from cifarbn.errors import UserError
from cifarbn.recorders.choice import chosen_recorders, spell_out
from cifarbn.train import train


def record(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=spell_out(overrides)).get("record")


def names(*overrides):
    return [recorder._target_.rpartition(".")[2] for recorder in chosen_recorders(record(*overrides), overrides)]


@pytest.mark.parametrize("nothing", ["record=[]", "record=null", "record=", "record=none", "~record"])
@pytest.mark.parametrize("experiment", [[], ["experiment=bn_landscape"]])
def test_nothing_is_recorded(nothing, experiment):
    assert names(*experiment, nothing) == []


def test_what_is_chosen_is_recorded():
    assert names() == ["LastLayerGradients"]
    assert names("record=[step_change,gradient_probe]") == ["StepChange", "GradientProbe"]
    assert len(names("record=all")) == 6
    assert names("experiment=bn_landscape", "record=[step_change]") == ["StepChange"]


def test_an_option_of_a_recorder_that_is_not_chosen_is_refused():
    overrides = ["experiment=bn_landscape", "record=none", "record.gradient_probe.every=10"]
    with pytest.raises(UserError, match="record.gradient_probe.every does nothing.*add it to record="):
        names(*overrides)


def test_other_arguments_stay_as_they_are():
    said = ["-m", "record=none,all", "optim.lr=1", "+record.mine._target_=x"]
    assert spell_out(said) == said


def test_a_run_that_records_nothing_leaves_metrics_and_no_recordings(tmp_path):
    tiny = ["data=shapes", "data.train_size=40", "data.val_size=20", "data.test_size=10", "data.batch_size=10"]
    tiny += ["model=vgg_a", "model.width=2", "epochs=1", "trainer=cpu", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*tiny, "record=none"])
    train(cfg, tmp_path, [*tiny, "record=none"])
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "done"
    assert (tmp_path / "metrics.csv").exists() and not (tmp_path / "recordings.npz").exists()
