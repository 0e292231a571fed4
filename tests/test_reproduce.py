"""`python -m cifarbn.reproduce`: what it plans, and one real start with a budget that runs out."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from processes import ENVIRONMENT, Command, run
from test_config import CONF, options

from cifarbn.errors import UserError
from cifarbn.locks import Lock, is_held
from cifarbn.reproduce import HOW, SCALES, SUITES, Planned, _carried_out, _folder, main, seconds
from cifarbn.runs import folder_name, role_of

NAMES = [name for suite in SUITES.values() for name in suite]


@pytest.fixture
def planned():
    """A maker of plans."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield Planned.of


def test_every_row_of_every_source_is_run():
    rows = {name for name in options("experiment") if "/" in name}
    assert {name.split()[0] for name in NAMES} == rows
    assert all(len(set(suite)) == len(suite) for suite in SUITES.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_row_states_its_source_and_full_changes_nothing(planned, name):
    plan = planned(name, "full")
    assert plan.written.source and plan.changes() == []
    assert plan.written.data.val_size == 0 if "val_size" in plan.written.data else name.startswith("paper/dln")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_every_row_can_be_made_at_every_scale(planned, name, scale):
    plan = planned(name, scale)
    optimizer = instantiate(plan.scaled.optim)
    net = instantiate(plan.scaled.model)
    optimizer(net.parameters())
    instantiate(plan.scaled.schedule), instantiate(plan.scaled.data), instantiate(plan.scaled.loss)


def test_targets_are_the_report_s(planned):
    said = {name: planned(f"report/{name}", "full").written.target for name in (n.partition("/")[2] for n in RESULTS)}
    assert {f"report/{name}": target for name, target in said.items()} == RESULTS


RESULTS = {
    "report/baseline": 0.819,
    "report/stem_decay": None,
    "report/augmentation": 0.915,
    "report/l2": 0.926,
    "report/dropout": 0.917,
    "report/pool": 0.928,
    "report/sgd": 0.918,
    "report/rmsprop": 0.925,
    "report/mse": 0.912,
    "report/swish": 0.907,
    "report/mish": 0.882,
    "report/vgg_a": 0.78,
    "report/vgg_a_bn": 0.83,
}


def test_a_row_says_what_its_scale_changes_and_what_it_builds_on(planned):
    plan = planned("report/l2", "laptop")
    assert plan.changes() == ["epochs: 200 -> 6", "model.width: 64 -> 16", "schedule.milestones: [100] -> [3]"]
    assert plan.base() == "report/augmentation" and planned("report/baseline", "full").base() is None
    slow = planned("course/vgg_a_bn optim.lr=1e-4", "laptop")
    assert slow.base() == "course/vgg_a optim.lr=1e-4" and slow.base() in SUITES["course"]
    assert planned("report/l2", "fast").changes() == [
        "schedule=onecycle",
        "data.batch_size: 128 -> 512",
        "epochs: 200 -> 20",
        "optim.lr: 0.001 -> 0.003",
    ]


@pytest.mark.parametrize(("text", "expected"), [("45s", 45), ("90m", 5400), ("1h30m", 5400), ("2h", 7200)])
def test_budgets(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "90", "m", "1.5h", "two hours", "5m2h"])
def test_bad_budgets(text):
    with pytest.raises(UserError, match="90m, 2h or 1h30m"):
        seconds(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds 0", "--seeds must"),
        ("--budget soon", "--budget takes"),
        ("resume=false epochs=3", "epochs=3: "),
    ],
)
def test_bad_arguments_end_with_one_message(arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments.split()])
    assert str(ended.value.code).startswith(f"error: {message}")


SMOKE = ("cifarbn.reproduce", "report", "--scale", "smoke")


def rows(report):
    return list(csv.DictReader((report / "comparison.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """Reproduce, ended by a signal, by a budget and by another: folder, outputs of the last two, rows after the first.

    When the signal comes, the first run has been refused, since its folder holds another one, and the second is made.
    """
    cwd = tmp_path_factory.mktemp("reproduced")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plan = Planned.of("report/vgg_a_bn", "smoke")
    folder = cwd / "multirun_outputs" / "report_smoke" / _folder(plan, 0)
    folder.mkdir(parents=True)
    another = OmegaConf.to_container(plan.scaled, resolve=True) | {"epochs": 99}
    (folder / "result.json").write_text(json.dumps({"status": "done", "config": another, "overrides": []}))
    begin = Command(*SMOKE, cwd=cwd)
    while (line := begin.stdout.readline()) and not line.startswith("run 3 of 19"):
        pass
    begin.send_signal(signal.SIGTERM)
    begin.communicate()
    command = [sys.executable, "-m", *SMOKE, "--budget", "10s"]
    first = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    before = rows(folder.parent / "report")
    return cwd, first, before, run(*SMOKE, "--budget", "1s", cwd=cwd)


def test_a_budget_that_runs_out_leaves_a_page_and_the_same_command_goes_on(reproduced):
    cwd, first, before, again = reproduced
    assert "the same command goes on" in first.stdout, first.stderr
    report = cwd / "multirun_outputs" / "report_smoke" / "report"
    assert [row["experiment"] for row in before] == list(SUITES["report"])
    assert before[1]["measured here, %"] and before[1]["n"] == "1" and before[1]["data"] == "shapes"
    assert before[-1]["does not count"] == "1 not begun" and before[-1]["n"] == "0"
    assert "gap" not in before[1], "a smoke test is not the report's experiment"
    page = (report / "index.html").read_text()
    assert page.index("Beside the source") < page.index("All runs, best first")
    assert "epochs: 20 -&gt; 2" in page and os.fspath(cwd) not in page

    assert "done before" in again.stdout
    assert "run 2 of 19" not in again.stdout
    assert rows(report)[1] == before[1]


def test_a_folder_that_holds_another_run_is_refused_and_the_others_are_made(reproduced):
    cwd, _, _, finished = reproduced
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "holds a run of another config" in finished.stderr and "name=OTHER" in finished.stderr
    assert re.search(r"refused .*experiment=report/vgg_a_bn", finished.stdout)
    root = cwd / "multirun_outputs" / "report_smoke"
    first, second, *_ = rows(root / "report")
    assert first["n"] == "0" and first["does not count"].startswith("1 refused: holds a run of another config")
    assert second["n"] == "1" and not second["does not count"]
    (refused,) = root.glob("*vgg_a_bn*/result.json")
    assert json.loads(refused.read_text())["config"]["epochs"] == 99


def test_a_run_is_not_outlived_by_the_one_that_was_to_be_waited_for(tmp_path):
    """SIGTERM ends reproduce and, after it has saved, the run it makes: another can go on at once."""
    arguments = [sys.executable, "-m", "cifarbn.reproduce", "report", "--scale", "smoke"]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    while not process.stdout.readline().startswith("run 1 of"):
        pass
    (lock,) = waited_for(lambda: list(tmp_path.glob("multirun_outputs/report_smoke/.locks/*vgg_a_bn*")))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not is_held(lock)


def test_runs_that_another_reproduce_is_making_are_elsewhere_and_no_fault(tmp_path, planned, monkeypatch, capsys):
    """Whether it is found so at first, or only by the process that was to make it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SUITES, "report", ("report/vgg_a_bn", "report/vgg_a"))
    root = tmp_path / "multirun_outputs" / "report_smoke"
    names = [_folder(planned(name, "smoke"), 0) for name in SUITES["report"]]
    first = Lock(root / ".locks" / f"{names[0]}.lock")

    def begun_by_the_other_just_before(overrides, deadline):
        (root / names[1]).mkdir()
        result = {"status": "running", "overrides": [], "config": {}}
        (root / names[1] / "result.json").write_text(json.dumps(result))
        locks.append(Lock(root / ".locks" / f"{names[1]}.lock"))
        return False

    locks = [first]
    monkeypatch.setattr("cifarbn.reproduce._run", begun_by_the_other_just_before)
    with pytest.raises(SystemExit) as ended:
        GlobalHydra.instance().clear()
        main(["report", "--scale", "smoke"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said
    assert re.search(r"elsewhere .*report/vgg_a_bn.*\n *elsewhere .*report/vgg_a", said.out.replace("\n\n", "\n"))


def test_every_key_that_does_not_define_the_experiment_may_be_said(planned):
    how = ["trainer.compile=false", "trainer=cpu", "record=all", "data.root=/x", "data.download=false", "retry=false"]
    assert all(role_of(said) in HOW for said in how)
    for name in ("report/vgg_a", "paper/dln"):
        plan = planned(name, "smoke", how)
        assert plan.scaled.trainer.compile is False and plan.overrides[-3:] == how[:3]
        compose("train", overrides=[*plan.overrides, *_carried_out(plan, how)])
        assert _folder(plan, 0) == folder_name([*plan.overrides, "seed=0", *how[3:]])
        assert {"trainer=cpu", "record=all", "trainer.compile=false"} <= set(plan.changes())
    assert _carried_out(planned("report/vgg_a", "full", how), how) == how[3:]
    assert _carried_out(planned("paper/dln", "full", how), how) == ["retry=false"], "gaussian has no folder"


@pytest.mark.parametrize("said", ["epochs=3", "name=x", "resume_from=x", "seed=3", "trainer=smoke", "optim.lr=1"])
def test_what_would_change_the_experiments_is_refused(said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", said])
    assert str(ended.value.code).startswith(f"error: {said}: this would change the experiments")
    assert "trainer.compile" in str(ended.value.code)


def waited_for(look, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found
