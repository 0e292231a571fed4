"""Fine-tuning: a run that starts from the weights of another run."""

import shutil

import pytest
import torch
from in_process import checkpoint, make_run, result

from cifarbn.errors import RunConflict, UserError
from cifarbn.models import VGG
from cifarbn.runs.identity import folder_name
from cifarbn.runs.result_file import write_result
from cifarbn.training.initial_weights import InitialWeights

CONSTANT = "optim.lr=0"  # the weights stay what they were at the start


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model=vgg_a"
    make_run(folder, "epochs=1")
    return folder


def weights(folder):
    return checkpoint(folder)["state_dict"]


def test_a_run_starts_from_the_weights_of_another_and_its_config_names_them(source, tmp_path, capsys):
    make_run(tmp_path / "run", "epochs=1", "optim=sgd", CONSTANT, f"init_from='{source}'")
    assert all(torch.equal(value, weights(source)[name]) for name, value in weights(tmp_path / "run").items())
    assert f"weights of {source} loaded, all " in capsys.readouterr().out
    label = result(tmp_path / "run")["config"]["init_from"]
    assert label == InitialWeights.read(source).label and label.startswith("model=vgg_a@")
    assert str(source) not in (tmp_path / "run" / "result.json").read_text()
    assert "init_from" not in result(source)["config"]


def test_the_head_is_new_if_the_classes_differ_and_that_is_printed(source):
    initial = InitialWeights.read(source)
    model = VGG("A", width=4, num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    line = initial.load_into(model)
    assert "head.weight: (10, 32) -> (3, 32); head.bias: (10,) -> (3,)" in line and "not loaded" in line
    for name, value in model.state_dict().items():
        expected = before[name] if name.startswith("head.") else initial.weights[name]
        assert torch.equal(value, expected), name


def test_another_model_is_an_error_that_names_its_layers(source):
    with pytest.raises(UserError, match=r"differs from this one \(features.*\(4, 3, 3, 3\) -> \(8, 3, 3, 3\).*more\)"):
        InitialWeights.read(source).load_into(VGG("A", width=8))


def test_init_from_and_resume_from_exclude_each_other(source, tmp_path):
    with pytest.raises(UserError, match="exclude each other"):
        make_run(tmp_path / "run", f"init_from='{source}'", f"resume_from='{source}'")
    with pytest.raises(UserError, match="is not a run folder"):
        make_run(tmp_path / "run", f"init_from='{tmp_path}'")


def test_a_run_that_is_not_finished_or_damaged_is_an_error(source, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    write_result(broken / "result.json", result(source) | {"status": "diverged"})
    with pytest.raises(UserError, match=r"is not finished \(diverged\)"):
        InitialWeights.read(broken)
    shutil.copy(source / "result.json", broken)
    (broken / "last.ckpt").write_bytes((source / "last.ckpt").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        InitialWeights.read(broken)


def test_other_weights_are_another_run(source, tmp_path):
    other = tmp_path / "model=vgg_a"
    make_run(other, "epochs=1", "seed=1")
    make_run(tmp_path / "run", "epochs=1", f"init_from='{source}'")
    with pytest.raises(RunConflict, match="init_from: 'model=vgg_a@"):
        make_run(tmp_path / "run", "epochs=1", f"init_from='{other}'")


def test_the_folder_is_named_after_the_run_and_not_its_path():
    name = folder_name(["init_from='/home/jane/runs/model=vgg_a'", "seed=1"])
    assert name == "init_from=model=vgg_a,seed=1"
