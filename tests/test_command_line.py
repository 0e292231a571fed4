"""Bad input gives one message that names the remedy, a non-zero exit code and no traceback, and loses no files."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from processes import ENVIRONMENT

from cifarbn import train
from cifarbn.benchmark.__main__ import main as benchmark
from cifarbn.cli import command_line, composition
from cifarbn.cli.command_line import data_root, gather_overrides, quote_paths
from cifarbn.predict import main as predict
from cifarbn.report.__main__ import main as report
from cifarbn.reproduce.suite import main as reproduce
from cifarbn.tensorboard import main as tensorboard

SHAPES = ["data=shapes", "data.train_size=200", "data.test_size=50", "data.val_size=50", "model.width=4", "epochs=1"]
SHAPES += ["trainer=cpu", "trainer.enable_progress_bar=false"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command line, run in an empty folder in this process; test_train.py starts it as a process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFARBN_DATA", raising=False)

    def run(*overrides):
        monkeypatch.setattr("sys.argv", ["train", *overrides])
        train.main()

    return run


@pytest.fixture
def fails(command, capsys):
    def message(*overrides):
        with pytest.raises(SystemExit) as ended:
            command(*overrides)
        # Python prints an exit code that is a string to stderr, and exits with 1.
        assert isinstance(ended.value.code, str)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out and "rror" not in printed.err + printed.out
        return ended.value.code

    return message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet19"], r"cannot find 'model/resnet19'"),
        (["model=resnet19"], "resnet18_pool"),
        (["optim.lrr=0.1"], "no key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["modle=vgg_a"], "no key 'modle'; did you mean 'model'?"),
        (["optim.lr=fast"], "optim.lr takes a number (default 0.001)"),
        (["epochs=2.5"], "epochs takes a whole number (default 20)"),
        (["resume=maybe"], "resume takes true or false"),
        (["optim.lr=-1"], "Invalid learning rate: -1"),
        (["+optim.speed=3"], "unexpected keyword argument 'speed'"),
        (["data.batch_size=0"], "data.batch_size must be at least 1, not 0"),
        (["data.val_size=200"], "data.val_size must be below the number of training images, 200"),
        (["model.stem=large"], "cifar"),
        (["trainer.precision=half"], "trainer.precision must be auto or one of 32-true"),
        (["epochs=0"], "epochs must be at least 1"),
        (["epochs=null"], "epochs must be at least 1"),
        (["record=[gradient_probe]", "record.gradient_probe.every=abc"], "takes a whole number (default 50)"),
        (["optim.lr"], "missing EQUAL"),
        (["optim.lr"], "write KEY=VALUE"),
        (["=3"], "write KEY=VALUE"),
        # Keys that no code reads.
        (["+ckpt_path=x"], "nothing reads 'ckpt_path'"),
        (["+foo=1"], "nothing reads 'foo'"),
        (["+epoch=1"], "nothing reads 'epoch'; did you mean 'epochs'?"),
        (["++foo.bar=1"], "nothing reads 'foo'"),
        # Suggestions: a key by its last part, a key of another option, never the unknown key itself.
        (["lr=1e-3"], "no key 'lr'; did you mean 'optim.lr'?"),
        (["EPOCHS=3"], "no key 'EPOCHS'; did you mean 'epochs'?"),
        (["optim.momentum=0"], "no key 'optim.momentum'; options with this key: optim=muon, optim=sgd;"),
        (
            ["loss=mse", "loss.label_smoothing=0.1"],
            "'loss.label_smoothing' with loss=mse; options with this key: loss=cross_entropy;",
        ),
        (["record.gradient_probe.every=3"], "options with this key: record=gradient_probe;"),
        (["hydra.launcher.jobs=2"], "options with this key: hydra/launcher=local, hydra/launcher=ray;"),
        (["hydra.sweeper.n_trials=2"], "options with this key: hydra/sweeper=optuna;"),
        (["optim.maximize=true"], "+optim.maximize=true passes an argument that the yaml file does not list"),
        # Suggestions for options ignore case and folder.
        (["model=ResNet18"], "did you mean model=resnet18?"),
        (["optim=Adam"], "did you mean optim=adam?"),
        (["experiment=swish"], "did you mean experiment=course_report/swish?"),
        (["hydra/launcher=job"], "cannot find 'hydra/launcher/job'"),
        # Values that are not an option, or of the wrong type.
        (["data=2"], "data takes the name of an option: cifar10, cifar100, dataset, fashion_mnist, folder"),
        (["optim=1e30"], "optim takes the name of an option: adam, "),
        (["activation=[1,2]"], "activation takes the name of an option: custom, elu, "),
        (["model=null"], "model takes the name of an option"),
        (["optim={lr:1}"], "optim takes the name of an option"),
        (["hydra.sweeper.params={seed: '1,2'}"], "on the command line, sweep over KEY=VALUE,VALUE with -m"),
        (["hydra.verbose=3"], "hydra.verbose takes true, false"),
        (["optim.betas=[a,b]"], "optim.betas takes a list, each a number"),
        (["optim.betas=0.9"], "optim.betas takes a list, each a number"),
        (["model.norm=batch"], "model.norm takes a group of keys"),
        (["seed=-1"], "seed takes a whole number from 0 to 4294967295"),
        (["seed=4294967296"], "seed takes a whole number from 0 to 4294967295"),
        (["seed=null"], "seed takes a whole number from 0 to 4294967295"),
        (["name=../x"], "name takes the name of a folder under multirun_outputs/"),
        (["name=null"], "name takes the name of a folder under multirun_outputs/"),
        (["name="], "name takes the name of a folder under multirun_outputs/"),
        # Required keys.
        (["~trainer.precision"], "a run needs trainer.precision"),
        (["~trainer.channels_last"], "a run needs trainer.channels_last"),
        (["~seed"], "a run needs seed"),
        (["~optim"], "a run needs optim"),
        (["~optim._target_"], "optim needs optim._target_"),
        (["+record.mine.every=3"], "record.mine needs record.mine._target_"),
        (["optim.lr=???"], "optim.lr: ???"),
        (["epochs=${epochs}"], "epochs: Recursive interpolation detected"),
        (["epochs=${nothing}"], "epochs: Interpolation key 'nothing' not found"),
        (["model._target_=../../x"], "model: "),
        (["model._target_=cifarbn.models.Nothing"], "model: "),
        (["+model.init_=3"], "model: "),
        # Quoting.
        (["name=a=b"], """'name="a=b"'"""),
        (["name=it's"], "quote the value twice, for the shell and for Hydra: "),
        (["name=(x)"], """'name="(x)"'"""),
        (["name={"], """'name="{"'"""),
        (["name=a,b"], """add -m to sweep over several values, or quote one value that has a comma: 'name="a,b"'"""),
        (["model@optim=dln"], "no key 'model@optim'"),
        # Flags.
        (["-m", "--cfg", "job"], "--multirun and --cfg exclude each other"),
        (["--resolve"], "--resolve needs --cfg"),
    ],
)
def test_bad_overrides(fails, overrides, message):
    assert message in fails(*SHAPES, *overrides)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        # Not "did you mean 'model.width'?", the key that was given.
        ("speednet", "no key 'model.width' with model=speednet; options with this key: model=resnet18, model=vgg_a;"),
        ("dln", "no key 'model.width' with model=dln; "),
    ],
)
def test_a_key_of_another_option(fails, option, message):
    printed = fails("data=shapes", f"model={option}", "model.width=8")
    assert message in printed and "mean 'model.width'" not in printed


@pytest.fixture
def composed(command, monkeypatch, capsys):
    """Return config, folder and overrides of a command line without a run; its messages are in `composed.printed`."""

    def compose(*overrides):
        calls = []
        monkeypatch.setattr(train, "train", lambda *args: calls.append(args) or {})
        monkeypatch.setattr(composition, "_PRINTED", set())
        command(*overrides)
        compose.printed = capsys.readouterr().err.strip()
        return calls[0]

    return compose


@pytest.mark.parametrize("nothing", ["record=[]", "record=null", "record=none", "~record"])
def test_no_recorder(composed, nothing):
    cfg, folder, _ = composed(*SHAPES, nothing)
    assert cfg.record == {} and "record=none" in folder.name, "all four spellings are the same run"


def test_no_experiment(composed):
    assert composed("experiment=null")[2] == []


@pytest.mark.parametrize("value", ["0.5", "3", "0"])
def test_minutes_may_be_a_fraction(composed, value):
    assert composed(f"checkpoint_minutes={value}")[0].checkpoint_minutes == float(value)


@pytest.mark.parametrize("value", ["0.5", "2"])
def test_a_limit_is_a_number_of_batches_or_a_fraction(composed, value):
    assert composed("trainer=smoke", f"trainer.limit_train_batches={value}")[0].trainer.limit_train_batches == float(
        value
    )


def test_a_key_that_other_values_refer_to_is_read(composed):
    assert composed("+wide=3", "model.width=${wide}")[0].model.width == 3


def test_a_quoted_value_is_taken_as_it_is(composed):
    assert composed('data.root="/a=b"')[0].data.root == "/a=b"


# Experiments


def test_keys_of_an_experiment_that_the_chosen_option_lacks_are_dropped_with_a_message(composed):
    cfg, _, overrides = composed("experiment=course_report/vgg_a", "optim=sgd")
    assert "betas" not in cfg.optim and cfg.optim.momentum == 0.9
    assert cfg.optim.lr == 1e-3, "the experiment's value, since SGD has this key"
    assert overrides == ["experiment=course_report/vgg_a", "optim=sgd"]
    assert composed.printed == "dropped optim.betas of experiment=course_report/vgg_a: optim=sgd has no such key"
    assert composed("experiment=course_report/vgg_a")[0].optim.betas == [0.9, 0.999] and not composed.printed


def test_overrides_of_the_command_line_are_never_dropped(composed, fails):
    cfg, _, _ = composed("experiment=course_report/vgg_a", "optim=sgd", "+optim.betas=[1,2]")
    assert cfg.optim.betas == [1, 2]
    assert "no key 'optim.betas' with optim=sgd" in fails(
        "experiment=course_report/vgg_a", "optim=sgd", "optim.betas=[1,2]"
    )


@pytest.mark.parametrize(
    ("overrides", "excluded"),
    [
        (["experiment=speedrun", "loss=mse"], ["loss.label_smoothing"]),
        (["experiment=course_report/dropout", "model=speednet"], ["model.dropout"]),
        (["experiment=course_handout/vgg_a", "record=[]"], []),
        (
            ["experiment=santurkar2018/vgg", "record=[]"],
            ["record.gradient_probe", "record.scale_invariant_beta", "record.step_change"],
        ),
        (
            ["experiment=santurkar2018/vgg", "record=step_change"],
            ["record.gradient_probe", "record.scale_invariant_beta"],
        ),
        (["experiment=course_report/pool", "data=gaussian", "model=dln"], ["data.val_size", "data.test_curve"]),
        (["experiment=course_report/l2", "model=resnet34", "schedule=cosine", "trainer=cpu", "activation=elu"], []),
    ],
)
def test_every_group_of_an_experiment_can_be_overridden(composed, overrides, excluded):
    composed(*overrides)
    dropped = [line.partition(" of ")[0].removeprefix("dropped ") for line in composed.printed.splitlines()]
    assert [key for keys in dropped for key in keys.split(", ")] == excluded


def test_a_user_s_experiment_may_add_arguments_that_the_yaml_does_not_list(composed, tmp_path):
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text("# @package _global_\nname: mine\noptim:\n  maximize: true\nwrong: 1\n")
    args = ["--config-dir", str(mine.parent), "experiment=mine"]
    with pytest.raises(SystemExit, match="nothing reads 'wrong'"):
        composed(*args)
    (mine / "mine.yaml").write_text("# @package _global_\nname: mine\noptim:\n  maximize: true\n")
    assert composed(*args)[0].optim.maximize and not composed.printed
    assert "maximize" not in composed(*args, "optim=sgd")[0].optim and "optim.maximize" in composed.printed


def test_a_user_s_config_that_extends_this_one(composed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.yaml").write_text("defaults: [train, _self_]\nepochs: 3\nseed: 5\n")
    cfg, _, _ = composed(
        "--config-dir", str(tmp_path / "mine"), "--config-name", "mine", "experiment=speedrun", "loss=mse"
    )
    assert (cfg.epochs, cfg.seed) == (3, 5) and composed.printed.startswith("dropped loss.label_smoothing")


def test_configs_of_other_projects_are_composed_as_by_hydra(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "other.yaml").write_text("defaults: [_self_, {experiment: e}]\nbatch: 3\n")
    (tmp_path / "experiment" / "e.yaml").write_text("# @package _global_\nmore: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose("other", overrides=["batch=words", "+new=1"]) == {"batch": "words", "more": 1, "new": 1}


# Location of the data, and repeating a run


def test_an_empty_environment_variable_counts_as_unset(composed, monkeypatch):
    monkeypatch.setenv("CIFARBN_DATA", "")
    assert composed()[0].data.root == "./data"
    monkeypatch.setenv("CIFARBN_DATA", "elsewhere")
    assert composed()[0].data.root == "elsewhere" and data_root() == "elsewhere"


@pytest.mark.parametrize(("root", "expected"), [("here", "{}/here"), ("/abs", "/abs"), ("~/x", str(Path.home() / "x"))])
def test_data_root_is_relative_to_where_the_command_is_started(composed, monkeypatch, tmp_path, root, expected):
    monkeypatch.setenv("CIFARBN_DATA", root)
    assert composed("hydra.job.chdir=true")[0].data.root == expected.format(tmp_path)
    monkeypatch.delenv("CIFARBN_DATA")
    assert composed("hydra.job.chdir=true", f'data.root="{root}"')[0].data.root == expected.format(tmp_path)


def test_a_run_is_repeated_from_its_folder(composed, fails, tmp_path):
    cfg, folder, overrides = composed(*SHAPES, "experiment=bn_landscape", "optim=sgd", "hydra.mode=RUN")
    saved = ("--config-path", os.path.relpath(folder / ".hydra"), "--config-name", "config")
    again = composed(*saved)
    assert again == (cfg, folder, overrides) and folder.parent == tmp_path / "multirun_outputs" / "bn_landscape"
    other, elsewhere, _ = composed(*saved, "seed=3", "name=other")
    assert other.seed == 3 and elsewhere.parent.name == "other" and other.optim == cfg.optim
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    assert "(optim.momentum: 0.8 -> 0.9)" in fails(*saved)
    assert composed(*saved, "optim.momentum=0.8")[0].optim.momentum == 0.8
    (folder / ".hydra" / "overrides.yaml").unlink()
    assert "overrides.yaml is missing" in fails(*saved)


def test_a_command_ignores_the_matplotlib_backend(tmp_path):
    environment = ENVIRONMENT | {"MPLBACKEND": "nonsense"}
    arguments = [sys.executable, "-m", "cifarbn.report", "nowhere"]
    ended = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("error: there is no folder nowhere")


@pytest.mark.parametrize(
    "main",
    [
        pytest.param(lambda: benchmark(["speedrun", "--width-scale", "0"]), id="benchmark"),
        pytest.param(lambda: predict(["nowhere", "cat.png"]), id="predict"),
        pytest.param(lambda: report(["nowhere"]), id="report"),
        pytest.param(lambda: reproduce(["course_report", "epochs=3"]), id="reproduce"),
        pytest.param(lambda: tensorboard(["nowhere"]), id="tensorboard"),
        pytest.param(train.main, id="train"),
    ],
)
def test_a_command_collects_garbage_after_its_imports(monkeypatch, main):
    monkeypatch.setattr("sys.argv", ["train", "--resolve"])
    gc.disable()
    with pytest.raises(SystemExit):
        main()
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("started", "on"),
    [("-m cifarbn.train", False), ("cifarbn-train epochs=1", False), ("-m theirs", True), ("theirs.py -m", True)],
)
def test_only_commands_import_without_garbage_collection(started, on):
    code = f"import gc, sys; sys.argv[0], sys.orig_argv = {started.split()[0]!r}, {started.split()}; import cifarbn; "
    done = subprocess.run([sys.executable, "-c", f"{code}print(gc.isenabled())"], capture_output=True, text=True)
    assert done.stdout == f"{on}\n"


def test_importing_the_package_keeps_the_matplotlib_backend(tmp_path):
    code = "import cifarbn, matplotlib; print(matplotlib.get_backend())"
    environment = ENVIRONMENT | {"MPLBACKEND": "svg"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stdout == "svg\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, trainer=gpu is valid")
def test_trainer_gpu_without_a_gpu(fails):
    assert "use trainer=auto to run on the CPU" in fails("data=shapes", "trainer=gpu")


def test_a_script_imports_modules_of_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = sys.path.copy()
    monkeypatch.setattr(sys, "path", path.copy())
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cifarbn-train", "--resolve"])
    with pytest.raises(SystemExit):
        train.main()
    assert sys.path == [*path, str(tmp_path)]


def test_missing_data_without_a_network(fails, tmp_path):
    printed = fails(f"data.root={tmp_path}/nowhere", "data.download=false")
    assert f"{tmp_path}/nowhere" in printed and "data=shapes" in printed and "data.root=PATH" in printed


def test_unwritable_output_folder(fails, tmp_path):
    (tmp_path / "multirun_outputs").write_text("a file where a folder should be")
    assert "cannot read or write" in fails(*SHAPES)
    assert (tmp_path / "multirun_outputs").read_text() == "a file where a folder should be"


def test_a_damaged_checkpoint(command, tmp_path):
    command(*SHAPES)
    (result,) = tmp_path.glob("multirun_outputs/*/*/result.json")
    result.write_text(result.read_text().replace('"done"', '"interrupted"'))
    (result.parent / "last.ckpt").write_text("not a checkpoint")
    command(*SHAPES)
    assert json.loads(result.read_text())["status"] == "done", "it restarted from scratch"
    assert (result.parent / "last.ckpt.unusable").read_text() == "not a checkpoint", "nothing is lost"


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        (
            "resume_from=multirun_outputs/a/optim.lr=1e-3,seed=0",
            'resume_from="multirun_outputs/a/optim.lr=1e-3,seed=0"',
        ),
        ('data.root="/a=b"', 'data.root="/a=b"'),
        ("data.root=/data", "data.root=/data"),
        ("name=a=b", "name=a=b"),
    ],
)
def test_a_path_may_contain_the_characters_of_run_folder_names(monkeypatch, argument, quoted):
    monkeypatch.setattr(sys, "argv", ["train", "-m", argument])
    quote_paths()
    assert sys.argv == ["train", "-m", quoted]


def test_flags_may_stand_between_overrides(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "a=1", "-m", "b=1,2", "--config-dir", "conf", "~c"])
    gather_overrides()
    assert sys.argv == ["train", "a=1", "b=1,2", "~c", "-m", "--config-dir", "conf"]


def test_ctrl_c_in_a_run_of_a_sweep_is_one_message(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # by the sweep, not by the user
    monkeypatch.setenv(command_line.PLAIN, "1")
    with pytest.raises(SystemExit, match="130"):
        command_line.run_cli(interrupted)
    assert capsys.readouterr().err.startswith("interrupted; ")
