"""Config files of the user's own, read with `--config-dir`, get the same checks as those of the package."""

import os

import pytest

from cifarbn import train
from cifarbn.cli import composition

MODEL = """# My model.
_target_: my_models.Mine
width: 8
num_classes: ${num_classes:10}
"""
EXPERIMENT = """# @package _global_
# My experiment.
defaults:
  - override /model: mine
  - override /optim: mine
name: mine
epochs: 3
"""
FILES = {
    "model/mine.yaml": MODEL,
    "optim/mine.yaml": "# My optimizer.\n_target_: torch.optim.Adagrad\n_partial_: true\nlr: 0.5\n",
    "record/mine.yaml": "# My recorder.\nmine:\n  _target_: my_models.Recorder\n  every: 3\n",
    "experiment/mine.yaml": EXPERIMENT,
}


@pytest.fixture
def compose(monkeypatch, tmp_path):
    """Return the config, run folder and overrides of a command line with `--config-dir conf`, without a run."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    monkeypatch.setattr(composition, "_PRINTED", set())

    def run(*arguments, config_dir=("--config-dir", "conf")):
        calls = []
        monkeypatch.setattr(train, "train", lambda *args: calls.append(args) or {})
        monkeypatch.setattr("sys.argv", ["train", *config_dir, *arguments])
        train.main()
        return calls[0]

    return run


@pytest.fixture
def error(compose):
    """Return the error message of a command line with `--config-dir conf`."""

    def run(*arguments, **options):
        with pytest.raises(SystemExit) as ended:
            compose(*arguments, **options)
        assert isinstance(ended.value.code, str) and "\n" not in ended.value.code.strip()
        return ended.value.code

    return run


def test_a_model_of_the_user(compose):
    cfg, folder, overrides = compose("model=mine", "model.width=4")
    assert cfg.model == {"_target_": "my_models.Mine", "width": 4, "num_classes": 10}
    assert folder.name == "model.width=4,model=mine" and overrides == ["model=mine", "model.width=4"]


def test_options_of_several_groups(compose):
    cfg, _, _ = compose("optim=mine", "record=[mine,step_change]")
    assert cfg.optim.lr == 0.5 and list(cfg.record) == ["mine", "step_change"]


def test_an_experiment_of_the_user_and_an_override_of_its_model(compose, capsys):
    cfg, folder, _ = compose("experiment=mine")
    assert (cfg.epochs, cfg.model.width, cfg.optim.lr) == (3, 8, 0.5) and folder.parent.name == "mine"
    assert compose("experiment=mine", "model=vgg_a")[0].model._target_ == "cifarbn.models.VGG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=myne"], "did you mean model=mine?"),
        (["model=mine", "model.widht=3"], "did you mean 'model.width'?"),
        (["model=mine", "model.width=wide"], "model.width takes a whole number (default 8)"),
        (["optim.betas=[0,1]", "optim=mine"], "options with this key: optim=adam"),
        (["experiment=min"], "did you mean experiment=mine?"),
        (["+other=3"], "nothing reads 'other'"),
    ],
)
def test_mistakes_on_the_command_line(error, arguments, message):
    assert message in error(*arguments)


@pytest.mark.parametrize(
    ("file", "text", "arguments", "message"),
    [
        ("model/mine.yaml", "width: 3\n", ["model=mine"], "model needs model._target_"),
        ("model/mine.yaml", "a: [\n", ["model=mine"], 'conf/model/mine.yaml", line 2'),
        ("model/mine.yaml", "a: 1\na: 2\n", ["model=mine"], "duplicate key a"),
        ("model/mine.yaml", "- 3\n", ["model=mine"], "model needs model._target_"),
        ("model/mine.yaml", "defaults: [resnet20]\n", ["model=mine"], "model/resnet20"),
        (
            "record/mine.yaml",
            "_target_: a.B\n",
            ["record=[mine]"],
            "record._target_ is not a recorder; a file record/NAME.yaml holds the key NAME and below it _target_",
        ),
        ("experiment/mine.yaml", "epochs: 3\n", ["experiment=mine"], "# @package _global_"),
        ("experiment/mine.yaml", "# @package _global_\nepoch: 3\n", ["experiment=mine"], "did you mean 'epochs'?"),
        (
            "experiment/mine.yaml",
            "# @package _global_\nepochs: many\n",
            ["experiment=mine"],
            "epochs takes a whole number",
        ),
    ],
)
def test_mistakes_in_the_files(error, tmp_path, file, text, arguments, message):
    (tmp_path / "conf" / file).write_text(text)
    assert message in error(*arguments)


def test_a_folder_that_does_not_exist(error, tmp_path):
    assert f"'{tmp_path / 'nowhere'}' not found" in error("model=mine", config_dir=("--config-dir", "nowhere"))


def test_a_run_is_repeated_with_the_files_of_the_user(compose):
    cfg, folder, overrides = compose("experiment=mine", "hydra.mode=RUN")
    saved = ("--config-path", os.path.relpath(folder / ".hydra"), "--config-name", "config")
    assert compose(*saved, config_dir=()) == (cfg, folder, overrides)
    assert compose(*saved) == (cfg, folder, overrides)
