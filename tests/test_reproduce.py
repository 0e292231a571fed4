"""`python -m cifarbn.reproduce`: planning, parallel runs, and a real run with an exhausted time budget."""

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
from omegaconf import OmegaConf
from processes import ENVIRONMENT, Command, run
from test_config import CONF

from cifarbn.cli.resolvers import run_folder
from cifarbn.errors import UserError
from cifarbn.reproduce.scales import SUITES, Planned
from cifarbn.reproduce.suite import ALLOWED, _execution_options, _folder, main, modern_suite, seconds
from cifarbn.runs.identity import role_of
from cifarbn.runs.locks import Lock, is_held


@pytest.fixture
def planned():
    """Plan experiments while Hydra is initialised."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield Planned.of


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
        ("--budget=", "--budget takes"),
        ("--jobs 0", "--jobs takes a whole number of at least 1, or auto, not '0'"),
        ("--jobs many", "--jobs takes"),
        ("--name ../elsewhere", "name='../elsewhere': name takes the name of a folder under multirun_outputs/"),
        ("resume=false epochs=3", "cannot override epochs=3 here"),
        ("trainer=smoke", "trainer=smoke trains on four batches only; use --scale smoke"),
        ("name=other", "cannot override name=other here; use --name other"),
    ],
)
def test_bad_arguments_end_with_one_message(arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["course_report", *arguments.split()])
    assert str(ended.value.code).startswith(f"error: {message}")


@pytest.mark.parametrize("override", ["trainer=ddp", "trainer.devices=2", "trainer.devices=[1]"])
def test_parallel_runs_have_one_device_each(monkeypatch, override):
    monkeypatch.setitem(SUITES, "course_report", ("course_report/l2",))
    with pytest.raises(SystemExit, match="^error: --jobs 2 starts parallel runs on one device each"):
        main(["course_report", "--jobs", "2", override])


SMOKE = ("cifarbn.reproduce", "course_report", "--scale", "smoke")


def rows(report):
    return list(csv.DictReader((report / "comparison.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """Call reproduce twice: ended by a signal, then with a budget of 1 s.

    Returns the folder, the result of the finished run with its content after the first call, and the second call. At
    the signal, the first run has been rejected, because its folder holds another run, and the second run is finished.
    """
    cwd = tmp_path_factory.mktemp("reproduced")
    root = cwd / "multirun_outputs" / "course_report_smoke"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plans = [Planned.of(f"course_report/{name}", "smoke") for name in ("vgg_a_bn", "vgg_a")]
    rejected, finished = (root / _folder(plan, 0) / "result.json" for plan in plans)
    rejected.parent.mkdir(parents=True)
    another = OmegaConf.to_container(plans[0].scaled, resolve=True) | {"epochs": 99}
    rejected.write_text(json.dumps({"status": "done", "config": another, "overrides": []}))
    begin = Command(*SMOKE, cwd=cwd)
    while (line := begin.stdout.readline()) and not line.startswith("run 3 of 19"):
        pass
    begin.send_signal(signal.SIGTERM)
    begin.communicate()
    return cwd, (finished, finished.read_bytes()), run(*SMOKE, "--budget", "1s", cwd=cwd)


def test_an_exhausted_budget_leaves_a_page_and_the_same_command_continues(reproduced):
    cwd, (finished, before), again = reproduced
    assert "rerun the command to continue" in again.stdout, again.stderr
    root = cwd / "multirun_outputs" / "course_report_smoke"
    table = rows(root / "report")
    assert [row["experiment"] for row in table] == list(SUITES["course_report"])
    assert table[1]["measured, %"] and table[1]["n"] == "1" and table[1]["data"] == "shapes"
    assert table[-1]["excluded or missing"] == "1 not started" and table[-1]["n"] == "0"
    assert "gap" not in table[1], "a smoke test is not the published experiment"
    page = (root / "report" / "index.html").read_text()
    assert page.index("Published and measured accuracy") < page.index("All runs, best first")
    assert "epochs: 20 -&gt; 2" in page and os.fspath(cwd) not in page

    assert "done before" in again.stdout
    assert "run 2 of 19" not in again.stdout
    assert finished.read_bytes() == before


def test_a_folder_with_another_run_is_an_error_and_the_other_runs_are_executed(reproduced):
    cwd, _, finished = reproduced
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "holds a run of a different config" in finished.stderr and "name=OTHER" in finished.stderr
    assert re.search(r"conflict .*experiment=course_report/vgg_a_bn", finished.stdout)
    root = cwd / "multirun_outputs" / "course_report_smoke"
    first, second, *_ = rows(root / "report")
    assert first["n"] == "0" and first["excluded or missing"].startswith(
        "1 conflict: holds a run of a different config"
    )
    assert second["n"] == "1" and not second["excluded or missing"]
    (unchanged,) = root.glob("*vgg_a_bn*/result.json")
    assert json.loads(unchanged.read_text())["config"]["epochs"] == 99


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_run_outlives_reproduce(tmp_path, jobs):
    """SIGTERM and Ctrl-C end reproduce and its runs, after they have saved, and print a table."""
    arguments = [*SMOKE, "--jobs", str(jobs)]
    if jobs == 1:
        process = Command(*arguments, cwd=tmp_path)
    else:  # the start of an interpreter is tested once
        started = [sys.executable, "-m", *arguments]
        process = subprocess.Popen(
            started, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    while not process.stdout.readline().startswith(f"run {jobs} of"):
        pass
    root = tmp_path / "multirun_outputs" / "course_report_smoke"
    wait_for(lambda: len(list(root.glob("*vgg_a*/result.json"))) == jobs, seconds=300)
    number = signal.SIGTERM if jobs == 1 else signal.SIGINT
    process.send_signal(number)
    output, error = process.communicate()
    assert process.returncode == 128 + number
    assert error.rstrip().endswith("interrupted; run the same command again to continue from the last checkpoint")
    table = output[output.index("status ") :]
    assert table.count("interrupted ") == jobs and f"{19 - jobs} of 19 runs not started" in table
    assert not any(map(is_held, (root / ".locks").iterdir()))


@pytest.fixture
def scripted(tmp_path, monkeypatch, capsys):
    """Call reproduce in this process with scripts instead of runs.

    Returns the exit code, the output, and the command line of each run. A script gets the run folder as its argument.
    The script `DONE` leaves a finished run.
    """
    names = ("course_report/vgg_a_bn", "course_report/vgg_a", "course_report/l2", "course_report/pool")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SUITES, "course_report", names)
    monkeypatch.setattr("cifarbn.reproduce.suite._write_page", lambda *_: "the page")

    def run(scripts, *arguments, name="course_report_smoke"):
        root, commands = tmp_path / "multirun_outputs" / name, []

        def command(overrides):
            commands.append(overrides)
            script = scripts[names.index(overrides[0].removeprefix("experiment="))]
            return [sys.executable, "-S", "-c", script, os.fspath(root / run_folder(overrides))]

        monkeypatch.setattr("cifarbn.reproduce.suite._command", command)
        with pytest.raises(SystemExit) as ended:
            main(["course_report", "--scale", "smoke", *arguments])
        return ended.value.code, capsys.readouterr().out, commands

    return run


WRITE = """
import json, os, sys, time
def write(status):
    os.makedirs(sys.argv[1], exist_ok=True)
    result = {"status": status, "overrides": [], "config": {}, "metrics": {"test/acc": 0.5}, "seconds": {"total": 1.0}}
    open(sys.argv[1] + "/result.json", "w").write(json.dumps(result))
"""
DONE = f"{WRITE}\nwrite('done')"
SLOW = f"{WRITE}\ntime.sleep(0.5)\nwrite('done')"
ENDLESS = f"{WRITE}\nwrite('running')\ntime.sleep(60)"


def statuses(output):
    table = output[output.index("status ") :].splitlines()[1:5]
    return [(line.split()[0], line.split("experiment=course_report/")[1].split()[0].rstrip(":")) for line in table]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_failed_run_does_not_stop_the_others_and_the_table_has_the_order_of_the_suite(scripted, jobs):
    code, output, commands = scripted([SLOW, "print('no memory'); raise SystemExit(1)", SLOW, DONE], "--jobs", jobs)
    assert code == 1
    assert statuses(output) == [("done", "vgg_a_bn"), ("failed", "vgg_a"), ("done", "l2"), ("done", "pool")]
    assert re.search(r"experiment=course_report/vgg_a: it ended before training started", output)
    assert ("[vgg_a] no memory" in output) is (jobs == "3")
    assert all(("trainer.enable_progress_bar=false" in run) is (jobs == "3") for run in commands)


@pytest.mark.parametrize("name", ["benchmark_gpu/course", "2026_11_27", "1e3", 'a,b=c (d) "e"'])
def test_the_user_can_choose_the_folder(scripted, name):
    code, output, commands = scripted([DONE] * 4, "--name", name, name=name)
    assert code == 0 and [status for status, _ in statuses(output)] == ["done"] * 4
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert all(compose("train", overrides=run).name == name for run in commands)


def test_the_user_can_enable_the_progress_bar(scripted):
    bar = "trainer.enable_progress_bar=true"
    _, _, commands = scripted([DONE] * 4, "--jobs", "2", bar)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", overrides=commands[0]).trainer.enable_progress_bar is True


def test_at_the_deadline_all_runs_end_and_no_further_run_starts(scripted, tmp_path, monkeypatch):
    def passed(deadline):
        """Let the deadline pass once three runs have written a result."""
        return deadline is not None and len(list(tmp_path.glob("multirun_outputs/*/*/result.json"))) == 3

    monkeypatch.setattr("cifarbn.cli.parallel_runs._has_passed", passed)
    code, output, commands = scripted([DONE, ENDLESS, ENDLESS, DONE], "--jobs", "2", "--budget", "1h")
    assert code == 0 and len(commands) == 3
    assert "time budget exhausted, 1 of 4 runs not started" in output
    table = output[output.index("status ") :]
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["done", "interrupted", "interrupted"]


def test_labels_include_the_seed_if_there_are_several(scripted):
    _, output, _ = scripted(["print('hello')"] * 4, "--jobs", "4", "--seeds", "2")
    assert {f"[{name} seed={seed}] hello" for name in ("l2", "vgg_a_bn") for seed in range(2)} <= set(
        output.splitlines()
    )


def test_runs_of_another_reproduce_are_elsewhere_and_not_a_failure(tmp_path, planned, monkeypatch, capsys):
    """Both if the lock exists at first, and if the other process takes it just before the run starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SUITES, "course_report", ("course_report/vgg_a_bn", "course_report/vgg_a"))
    root = tmp_path / "multirun_outputs" / "course_report_smoke"
    names = [_folder(planned(name, "smoke"), 0) for name in SUITES["course_report"]]
    first = Lock(root / ".locks" / f"{names[0]}.lock")

    def started_by_the_other_process(overrides):
        (root / names[1]).mkdir()
        result = {"status": "running", "overrides": [], "config": {}}
        (root / names[1] / "result.json").write_text(json.dumps(result))
        locks.append(Lock(root / ".locks" / f"{names[1]}.lock"))
        return [sys.executable, "-c", "pass"]

    locks = [first]
    monkeypatch.setattr("cifarbn.reproduce.suite._command", started_by_the_other_process)
    with pytest.raises(SystemExit) as ended:
        GlobalHydra.instance().clear()
        main(["course_report", "--scale", "smoke"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed
    assert re.search(
        r"locked .*course_report/vgg_a_bn.*\n *locked .*course_report/vgg_a", printed.out.replace("\n\n", "\n")
    )


def test_every_key_that_does_not_define_the_experiment_is_allowed(planned):
    options = [
        "trainer.compile=false",
        "trainer=cpu",
        "record=all",
        "data.root=/x",
        "data.download=false",
        "retry=false",
    ]
    assert all(role_of(override) in ALLOWED for override in options)
    for name in ("course_report/vgg_a", "santurkar2018/dln"):
        plan = planned(name, "smoke", options)
        assert plan.scaled.trainer.compile is False and plan.overrides[-3:] == options[:3]
        compose("train", overrides=[*plan.overrides, *_execution_options(plan, options)])
        assert _folder(plan, 0) == run_folder([*plan.overrides, "seed=0", *options[3:]])
        assert {"trainer=cpu", "record=all", "trainer.compile=false"} <= set(plan.changes())
    assert _execution_options(planned("course_report/vgg_a", "full", options), options) == options[3:]
    gaussian = planned("santurkar2018/dln", "full", options)
    assert _execution_options(gaussian, options) == ["retry=false"], "this data set has no folder"


@pytest.mark.parametrize("override", ["epochs=3", "resume_from=x", "seed=3", "optim.lr=1"])
def test_overrides_that_change_an_experiment_are_an_error(override):
    with pytest.raises(SystemExit) as ended:
        main(["course_report", override])
    assert str(ended.value.code).startswith(f"error: cannot override {override} here; only ")
    assert "trainer.compile" in str(ended.value.code)


def test_an_option_that_no_run_accepts_is_one_error(monkeypatch, capsys):
    monkeypatch.setitem(SUITES, "course_report", ("course_report/vgg_a_bn", "course_report/vgg_a"))
    with pytest.raises(SystemExit, match="^error: Could not append to config"):
        main(["course_report", "--scale", "smoke", "+trainer.threads=2"])
    assert capsys.readouterr() == ("", "")


def test_old_names_of_suites_are_accepted_with_a_notice(capsys):
    assert [modern_suite(name) for name in ("report", "paper", "course", "course_report")] == [
        *("course_report", "santurkar2018", "course_handout", "course_report")
    ]
    assert capsys.readouterr().err.startswith("note: report is now called course_report\n")


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
