"""Bad input: one message that names the remedy, a non-zero exit, no traceback, and nothing lost."""

import pytest
import torch

from cifarbn import train

SHAPES = ["data=shapes", "data.train_size=200", "data.test_size=50", "data.val_size=50", "model.width=4", "epochs=1"]
SHAPES += ["trainer=cpu", "trainer.enable_progress_bar=false"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command line, run in an empty folder; test_train.py starts it as its own process."""
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
        # A string as exit code is what Python prints to stderr before it exits with 1.
        assert isinstance(ended.value.code, str)
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out and "rror" not in said.err + said.out
        return ended.value.code

    return message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet19"], r"Could not find 'model/resnet19'"),
        (["model=resnet19"], "resnet18_pool"),
        (["optim.lrr=0.1"], "no key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["modle=vgg_a"], "no key 'modle'; did you mean 'model'?"),
        (["optim.lr=fast"], "optim.lr takes a number (default 0.001)"),
        (["epochs=2.5"], "epochs takes a whole number (default 20)"),
        (["resume=maybe"], "resume takes true or false"),
        (["optim.lr=-1"], "Invalid learning rate: -1"),
        (["+optim.speed=3"], "unexpected keyword argument 'speed'"),
        (["data.batch_size=0"], "data.batch_size must be at least 1, not 0"),
        (["data.val_size=200"], "data.val_size must leave some of the 200 pictures"),
        (["model.stem=large"], "cifar"),
        (["trainer.precision=half"], "trainer.precision is auto or one of 32-true"),
        (["epochs=0"], "epochs must be at least 1"),
        (["epochs=null"], "epochs must be at least 1"),
        (["record=[gradient_probe]", "record.gradient_probe.every=abc"], "takes a whole number (default 50)"),
        (["optim.lr"], "missing EQUAL"),
    ],
)
def test_bad_overrides(fails, overrides, message):
    assert message in fails(*SHAPES, *overrides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so asking for one is no mistake")
def test_a_gpu_where_there_is_none(fails):
    assert "trainer=auto takes what there is" in fails("data=shapes", "trainer=gpu")


def test_missing_data_without_a_network(fails, tmp_path):
    said = fails(f"data.root={tmp_path}/nowhere", "data.download=false")
    assert f"{tmp_path}/nowhere" in said and "data=shapes" in said and "data.root=PATH" in said


def test_unwritable_output_folder(fails, tmp_path):
    (tmp_path / "multirun_outputs").write_text("a file where a folder should be")
    assert "cannot read or write" in fails(*SHAPES)
    assert (tmp_path / "multirun_outputs").read_text() == "a file where a folder should be"


def test_a_checkpoint_that_is_no_checkpoint(command, fails, tmp_path):
    command(*SHAPES)
    (result,) = tmp_path.glob("multirun_outputs/*/*/result.json")
    result.write_text(result.read_text().replace('"done"', '"interrupted"'))
    (result.parent / "last.ckpt").write_text("not a checkpoint")
    assert "is not a checkpoint of this program" in fails(*SHAPES)
    assert (result.parent / "metrics.csv").exists(), "nothing is lost"
