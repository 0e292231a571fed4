"""One test for each statement of docs/sweep-contract.md that no other test covers.

All runs are those of one experiment, `experiment=tiny`: one epoch of three steps on CPUs. A sweep of two runs is
executed once; tests work on copies of it.
"""

import ast
import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from cifarbn import train
from cifarbn.cli.sweep import SweepCallback
from cifarbn.report.gather import gather
from cifarbn.runs.identity import EXECUTION_KEYS
from cifarbn.runs.locks import Lock
from cifarbn.training.classifier import Classifier

TINY = """# @package _global_
# A tiny run.
defaults:
  - override /data: shapes
  - override /model: vgg_a
  - override /trainer: cpu
  - override /record: none
  - override /logger: none
data: {train_size: 80, val_size: 20, test_size: 20, batch_size: 20}
model: {width: 1}
trainer: {enable_progress_bar: false, kernels: false, precision: 32-true}
epochs: 1
checkpoint_minutes: 0
"""
STEPS = 3
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "sweep-contract.md"


class Ended(NamedTuple):
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def table(self):
        """The lines of the table at the end of a sweep: status and run, without accuracy and seconds."""
        header, *lines = self.out[self.out.index("\nstatus ") :].strip().splitlines()[:-2]
        return [f"{line[: header.index('test acc')].strip()} {line[header.index('run') :]}" for line in lines]

    @property
    def last_line(self):
        return self.out.strip().splitlines()[-1]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Function that executes `cifarbn-train experiment=tiny ...` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    return _command(tmp_path, monkeypatch, capsys)


def _command(folder, monkeypatch, capsys=None):
    experiments = folder / "conf" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "tiny.yaml").write_text(TINY)

    def execute(*arguments):
        flags = [argument for argument in arguments if argument.startswith("-")]
        overrides = [argument for argument in arguments if argument not in flags]
        monkeypatch.setattr("sys.argv", ["train", *flags, "--config-dir", "conf", "experiment=tiny", *overrides])
        code = 0
        try:
            train.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr() if capsys else ("", "")
        return Ended(code, out, err) if isinstance(code, int) else Ended(1, out, f"{err}{code}\n")

    return execute


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder of a finished sweep over two seeds."""
    folder = tmp_path_factory.mktemp("executed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _command(folder, patch)("-m", "seed=0,1").code == 0
    return folder / "multirun_outputs" / "train"


@pytest.fixture
def finished(command, executed):
    """A copy of the finished sweep, where `command` finds it."""
    return Path(shutil.copytree(executed, "multirun_outputs/train")).absolute()


def read(folder):
    result = json.loads((folder / "result.json").read_text())
    result.pop("checksum", None)
    return result


def change(folder, **facts):
    """Change facts in result.json and its copy, without a checksum, as in results of older versions."""
    for name in ("result.json", ".run.json"):
        (folder / name).write_text(json.dumps(read(folder) | facts))


def names(sweep="train"):
    """The names of all run folders of a sweep; other names begin with a dot."""
    return sorted(file.parent.name for file in Path("multirun_outputs", sweep).glob("[!.]*/result.json"))


def content(folder):
    """The files that a run has written. Hydra writes .hydra and train.log before a run opens its folder."""
    return {
        file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file() and file.suffix != ".log"
    }


def at_step(monkeypatch, step, action):
    """Call a function at the beginning of a training step of this process, counted from 0."""
    original = Classifier.training_step

    def training_step(self, *arguments):
        if self.trainer.global_step == step:
            action()
        return original(self, *arguments)

    monkeypatch.setattr(Classifier, "training_step", training_step)


def interrupt(command, monkeypatch, *overrides):
    """Execute a command that gets SIGTERM in its second step."""
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        return command(*overrides)


def starts(folder):
    """The step with which each start of a run began."""
    return [start["step"] for start in read(folder)["starts"]]


# Identity


def test_the_folder_is_named_after_the_sorted_overrides(finished):
    assert names() == ["experiment=tiny,seed=0", "experiment=tiny,seed=1"]


def test_execution_keys_do_not_identify_a_run(command, finished):
    listed = re.search(r"Execution keys \((.+?)\)", PAGE.read_text(), re.DOTALL)
    assert {*re.findall(r"`([a-z_.]+)`", listed[1])} == {*EXECUTION_KEYS}
    again = command("seed=0", "checkpoint_minutes=7", "trainer.threads=1", "retry=false", "resume_from=elsewhere")
    assert again.code == 0 and "nothing to do" in again.out and len(names()) == 2


def test_the_name_chooses_the_folder_of_the_sweep(command, finished):
    assert "name=other" not in command("seed=0", "name=other").out
    assert names("other") == ["experiment=tiny,seed=0"] and len(names()) == 2


def test_another_spelling_is_the_same_run_and_so_is_a_run_of_a_sweep(command, monkeypatch):
    def done(cfg, folder, overrides):
        folders.append(folder.name)
        return {}

    folders: list[str] = []
    monkeypatch.setattr(train, "train", done)
    command("optim.lr=1e-3", "data.test_curve=false", "seed=0")
    command("seed=0", "data.test_curve=False", "optim.lr=0.0010")
    command("++optim.lr=5", "data.test_curve=false", "seed=0", "optim.lr=1e-3")
    command("-m", "optim.lr=1e-3", "data.test_curve=false", "seed=0")
    assert folders == ["data.test_curve=False,experiment=tiny,optim.lr=0.001,seed=0"] * 4


def test_a_default_that_is_written_out_is_another_folder_but_the_same_run(command, finished):
    assert command("seed=1", "loss=cross_entropy").code == 0
    assert len(names()) == 3
    (group,) = gather(finished).groups
    assert len(group.runs) == 2


def test_the_config_is_kept_in_the_run_folder(finished):
    folder = finished / "experiment=tiny,seed=1"
    assert {file.name for file in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    config = read(folder)["config"]
    assert config["seed"] == 1 and config["model"]["width"] == 1
    assert not {key for key in EXECUTION_KEYS if key in config}
    assert read(folder)["overrides"] == ["experiment=tiny", "seed=1"]


# Folders


def test_a_run_of_a_different_config_is_a_conflict_and_left_unchanged(command, finished):
    file = Path("conf/experiment/tiny.yaml")
    file.write_text(file.read_text().replace("width: 1", "width: 2"))
    before = content(finished / "experiment=tiny,seed=0")
    ended = command("-m", "seed=0,2")
    assert ended.code == 1 and ended.last_line == "1 done, 1 conflict of 2"
    assert "model.width: 1 -> 2" in ended.out and "name=OTHER" in ended.out
    assert content(finished / "experiment=tiny,seed=0") == before


def test_resume_false_sets_the_old_run_aside(command, finished):
    old = [content(finished / "experiment=tiny,seed=0")]
    for number in (1, 2):
        assert command("seed=0", "resume=false").code == 0
        assert content(finished / ".replaced" / f"experiment=tiny,seed=0.{number}") == old[-1]
        old.append(content(finished / "experiment=tiny,seed=0"))
    assert old[0] != old[1]


def test_an_extended_sweep_executes_only_its_new_runs(command, finished):
    before = {name: content(finished / name) for name in names()}
    ended = command("-m", "seed=2,1,0")
    assert ended.code == 0 and ended.table == ["done seed=2", "done before seed=1", "done before seed=0"]
    assert before == {name: content(finished / name) for name in before}


def test_a_combination_that_occurs_twice_is_one_run(command):
    ended = command("-m", "seed=0,0", "optim.lr=1e-3")
    assert ended.code == 0 and len(names()) == 1 and ended.last_line == "2 done of 2"
    assert [line.partition(" exp")[0] for line in ended.table] == ["done", "done before"]


# States


def test_a_done_run_is_skipped(command, finished):
    before = {name: content(finished / name) for name in names()}
    ended = command("-m", "seed=0")
    assert ended.code == 0 and ended.table == ["done before experiment=tiny seed=0"]
    assert before == {name: content(finished / name) for name in names()}


def test_a_failed_run_is_retried_unless_retry_is_false(command, finished):
    change(finished / "experiment=tiny,seed=0", status="failed", error="no memory")
    left = command("-m", "seed=0", "retry=false")
    assert left.code == 1 and left.table == ["failed before experiment=tiny seed=0 retry=False: no memory"]
    retried = command("-m", "seed=0")
    assert retried.code == 0 and retried.table == ["done experiment=tiny seed=0"]


def test_a_diverged_run_is_a_result_and_skipped(command):
    diverging = ("-m", "seed=0", "optim.lr=1e30", "loss=mse")
    ended = command(*diverging)
    assert ended.code == 0 and ended.last_line == "0 done, 1 diverged of 1"
    assert "not finite" in ended.table[0]
    assert command(*diverging).table[0].startswith("diverged before ")


def test_an_interrupted_run_continues_from_its_checkpoint(command, monkeypatch):
    assert interrupt(command, monkeypatch, "seed=0").code != 0
    (folder,) = Path("multirun_outputs/train").glob("exp*")
    assert read(folder)["status"] == "interrupted" and read(folder)["steps"] == 2
    assert command("-m", "seed=0").last_line == "1 done of 1"
    assert starts(folder) == [0, 2] and read(folder)["steps"] == STEPS


def test_a_killed_run_continues_from_its_checkpoint(command, monkeypatch, executed):
    if (child := os.fork()) == 0:
        at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
        command("-m", "seed=0")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (folder,) = Path("multirun_outputs/train").glob("exp*")
    assert read(folder)["status"] == "running"
    assert command("-m", "seed=0").last_line == "1 done of 1"
    assert starts(folder) == [0, 2]
    assert read(folder)["metrics"] == read(executed / folder.name)["metrics"]


def test_a_run_that_another_process_executes_is_locked(command, finished):
    folder = finished / "experiment=tiny,seed=0"
    change(folder, status="running")
    before = content(folder)
    lock = Lock(finished / ".locks" / f"{folder.name}.lock")
    ended = command("-m", "seed=0")
    assert ended.code == 0 and ended.last_line == "0 done, 1 locked of 1"
    assert ended.table[0].startswith("locked experiment=tiny seed=0: ") and content(folder) == before
    lock.release()


@pytest.mark.parametrize("missing", ["result", "marker", "both"])
def test_a_half_written_folder_is_not_done(command, finished, executed, missing):
    """The run was killed between the creation of its folder and its first step, or result.json is damaged."""
    folder = finished / "experiment=tiny,seed=0"
    (folder / "last.ckpt").unlink()
    change(folder, status="running", metrics={}, steps=0)
    if missing != "marker":
        text = (folder / "result.json").read_text()
        (folder / "result.json").write_text(text[: len(text) // 2])
    if missing != "result":
        (folder / ".run.json").unlink()
    if missing == "both":
        (folder / "result.json").unlink()
        (folder / "metrics.csv").unlink()
        (folder / "checkpoints.sha256").unlink(missing_ok=True)
    ended = command("-m", "seed=0")
    assert ended.code == 0 and ended.table == ["done experiment=tiny seed=0"]
    assert read(folder)["metrics"] == read(executed / folder.name)["metrics"]


# Code


def test_a_run_of_different_code_is_a_conflict_unless_accepted(command, finished):
    folder = finished / "experiment=tiny,seed=0"
    change(folder, code=read(folder)["code"] | {"cifarbn.models.vgg": "other"})
    before = content(folder)
    ended = command("-m", "seed=0")
    assert ended.code == 1 and ended.last_line == "0 done, 1 conflict of 1"
    assert "cifarbn.models.vgg" in ended.table[0] and content(folder) == before
    accepted = command("-m", "seed=0", "on_code_change=accept")
    assert accepted.code == 0 and accepted.last_line == "1 done of 1"


# Retries


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_retry_starts_from_the_last_checkpoint_or_from_scratch(command, monkeypatch, checkpoint):
    def full_disk():
        raise OSError(28, "No space left on device", "metrics.csv")

    with monkeypatch.context() as patch:
        at_step(patch, 2 if checkpoint else 0, full_disk)
        assert command("seed=0").code == 1
    (folder,) = Path("multirun_outputs/train").glob("exp*")
    assert read(folder)["status"] == "failed"
    assert command("seed=0").code == 0
    assert starts(folder) == ([0, 2] if checkpoint else [0])


# Exit codes


def test_the_exit_code_is_1_if_a_run_failed_or_conflicts_and_the_others_are_executed(command):
    ended = command("-m", "model.width=0,1", "seed=0")
    assert ended.code == 1 and ended.last_line == "1 done, 1 failed of 2"
    assert re.fullmatch(r"failed model\.width=0: .*width.*", ended.table[0]) and "Traceback" not in ended.err


def test_a_command_line_that_cannot_be_read_ends_before_the_first_run(command):
    ended = command("-m", "seed=0,1", "modle=vgg_a")
    assert ended.code == 1 and ended.err.startswith("error: ") and not Path("multirun_outputs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_run_ends_the_sweep_and_prints_the_table(command, monkeypatch, number):
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), number))
        ended = command("-m", "seed=0,1,2")
    assert ended.code == 128 + number
    assert [line.partition(" exp")[0] for line in ended.table] == ["interrupted"]
    assert ended.last_line == "0 done, 1 interrupted of 3" and "run the same command again" in ended.err
    assert [read(Path("multirun_outputs/train", name))["steps"] for name in names()] == [2]


def test_a_second_ctrl_c_stops_within_the_step(command, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        at_step(patch, 1, twice)
        ended = command("-m", "seed=0,1")
    assert ended.code == 130 and ended.last_line == "0 done, 1 interrupted of 2"
    (folder,) = Path("multirun_outputs/train").glob("exp*")
    assert command("seed=0").code == 0
    assert starts(folder) == [0, 1]


# Searches


def test_every_run_returns_its_validation_accuracy(command, finished, monkeypatch):
    returned = []
    original = SweepCallback.on_job_end

    def on_job_end(self, config, job_return, **others):
        returned.append(job_return.return_value)
        original(self, config, job_return, **others)

    monkeypatch.setattr(SweepCallback, "on_job_end", on_job_end)
    command("-m", "seed=0,2")
    folders = [finished / f"experiment=tiny,seed={seed}" for seed in (0, 2)]
    assert returned == [read(folder)["metrics"]["val/acc"] for folder in folders]


# The page

STATEMENT = re.compile(r"^(\d+)\. (.+?) \(`(tests/\w+\.py)::(\w+)`\)$", re.MULTILINE | re.DOTALL)


def test_each_statement_names_one_test_and_each_test_here_has_a_statement():
    text = PAGE.read_text()
    statements = STATEMENT.findall(text)
    lines = re.findall(r"^\d+\. ", text, re.MULTILINE)
    assert [int(number) for number, *_ in statements] == [*range(1, len(lines) + 1)]
    assert all(body.count("::") == 0 for _, body, _, _ in statements)
    named = Counter((file, test) for _, _, file, test in statements)
    assert max(named.values()) == 1
    tests = {file: _tests(ROOT / file) for file in {file for file, _ in named}}
    assert [test for file, test in named if test not in tests[file]] == []
    here = f"tests/{Path(__file__).name}"
    unnamed = tests[here] - {test for file, test in named if file == here}
    assert unnamed == {test_each_statement_names_one_test_and_each_test_here_has_a_statement.__name__}


def _tests(file):
    functions = (node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
    return {name for name in functions if name.startswith("test_")}
