"""A real TensorBoard server on a sweep's folder: readable names, scalars, HParams with the final metrics."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest
from processes import ENVIRONMENT, run
from test_train import TINY

from cifarbn.tensorboard import link_runs, main, run_names


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("sweep")
    short = [o for o in TINY if not o.startswith("epochs")]
    overrides = ["-m", *short, "epochs=1", "optim.lr=1e-3,2e-3"]
    finished = run("cifarbn.train", *overrides, cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    return cwd / "multirun_outputs" / "train"


@pytest.fixture(scope="module")
def ask(sweep):
    """Ask the server: path and query, or a body to post."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(sweep), "--host", "127.0.0.1", "--port", str(port), "--load_fast=false"]
    server = subprocess.Popen(
        [sys.executable, "-m", "cifarbn.tensorboard", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def request(path, body=None, **query):
        url = f"http://127.0.0.1:{port}/data/{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return json.loads(answer.read())

    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                if len(request("runs")) == 2:
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline and server.poll() is None, "TensorBoard shows no two runs"
            time.sleep(0.2)
        yield request
    finally:
        server.terminate()
        server.wait()


def results(sweep):
    found = (json.loads(file.read_text()) for file in sweep.glob("*/result.json"))
    return {next(o for o in result["overrides"] if o.startswith("optim.lr")): result for result in found}


def test_a_run_s_name_is_what_sets_it_apart(ask):
    assert sorted(ask("runs")) == ["optim.lr=0.001", "optim.lr=0.002"]


def test_names_of_several_sweeps_and_of_runs_that_nothing_sets_apart():
    a, b, c = Path("x/a"), Path("x/b"), Path("y/c")
    assert run_names({a: ["s=1"]}) == {a: "a"}
    assert run_names({a: ["s=1", "m=r"], b: ["m=r"]}) == {a: "s=1", b: "b"}
    assert run_names({a: ["s=1"], b: ["s=2"], c: ["s=1"]}) == {a: "s=1 (x)", b: "s=2 (x)", c: "c (y)"}
    d, e = Path("/z/x/d"), Path("/z/x/e")  # another sweep of the same name
    names = run_names({a: ["s=1"], b: ["s=2"], d: ["s=1"], e: ["s=2"]})
    assert names == {a: "s=1 (x)", b: "s=2 (x)", d: "s=1 (x) (2)", e: "s=2 (x) (2)"}


def test_links_follow_the_runs(tmp_path):
    runs, links = tmp_path / "runs", tmp_path / "links"
    links.mkdir()
    for name in ("a", "b"):
        (runs / name).mkdir(parents=True)
        (runs / name / "result.json").write_text(
            json.dumps({"status": "done", "config": {}, "overrides": [f"seed={name}", "model=m"]})
        )
        link_runs([runs], links)
    assert {link.name: link.resolve().name for link in links.iterdir()} == {"seed=a": "a", "seed=b": "b"}
    (runs / "a" / "result.json").write_text("{")
    link_runs([runs], links)
    assert len(list(links.iterdir())) == 2, "a damaged run is still there"


def test_options_in_front_of_the_folders_are_an_error_that_says_so(tmp_path):
    with pytest.raises(
        SystemExit, match="^error: 6123 is not a folder; .*; TensorBoard's own options follow the folders$"
    ):
        main(["--port", "6123", str(tmp_path)])


def test_a_run_has_one_event_file(sweep):
    assert [len(list(folder.parent.glob("events.*"))) for folder in sweep.glob("*/result.json")] == [1, 1]
    assert not list(sweep.glob("*/hparams.yaml")), "which Lightning writes, without a hyperparameter in it"


def test_scalars_are_those_of_the_run(ask, sweep):
    tags = ask("plugin/scalars/tags")
    for name, result in results(sweep).items():
        assert {"step/loss", "train/loss", "val/acc", "test/acc"} <= set(tags[name])
        (_, _, value) = ask("plugin/scalars/scalars", run=name, tag="test/acc")[-1]
        assert value == pytest.approx(result["metrics"]["test/acc"])


def test_hparams_have_a_session_per_run_with_its_config_and_metrics(ask, sweep):
    experiment = ask("plugin/hparams/experiment", body={"experimentName": ""})
    hparams = {info["name"] for info in experiment["hparamInfos"]}
    metrics = [info["name"] for info in experiment["metricInfos"]]
    given = {override.split("=")[0] for result in results(sweep).values() for override in result["overrides"]}
    assert hparams == given - {"trainer.enable_progress_bar"}, "the command line's keys, and no other"
    assert {"test/acc", "val/acc", "train/acc"} <= {metric["tag"] for metric in metrics}
    answer = ask(
        "plugin/hparams/session_groups",
        body={
            "experimentName": "",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
            "colParams": [{"metric": metric} for metric in metrics],
            "startIndex": 0,
            "sliceSize": 10,
        },
    )
    found = {}
    for group in answer["sessionGroups"]:
        rate = next(value for name, value in group["hparams"].items() if name.endswith("lr") and "optim" in name)
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        found[float(rate)] = values["test/acc"]
    expected = {r["config"]["optim"]["lr"]: r["metrics"]["test/acc"] for r in results(sweep).values()}
    assert found == pytest.approx(expected)
