"""Run folders as a pandas DataFrame."""

import json
import sys

import pytest

import cifarbn.runs
from cifarbn.errors import UserError

RESULT = {
    "status": "done",
    "config": {"optim": {"lr": 0.1}, "model": {"_target_": "cifarbn.models.VGG", "width": 4}, "seed": 0},
    "metrics": {"test/acc": 0.5, "val/loss": float("nan")},
    "seconds": {"train": 2.0},
    "steps": 8,
    "device": "a CPU",
}


def write(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(RESULT | changes))


def test_a_row_per_run_with_config_metrics_and_seconds(tmp_path):
    pandas = pytest.importorskip("pandas")
    write(tmp_path / "sweep" / "a")
    write(tmp_path / "sweep" / "b", config=RESULT["config"] | {"optim": {"lr": 0.2}, "test_views": "flip"})
    write(tmp_path / "c", status="failed", error="no memory", metrics={})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "result.json").write_text("{")
    runs = cifarbn.runs.frame(tmp_path / "sweep", tmp_path)
    assert isinstance(runs, pandas.DataFrame)
    assert [folder.rpartition("/")[2] for folder in runs["folder"]] == ["a", "b", "c", "d"]
    assert runs["status"].tolist() == ["done", "done", "failed", "unreadable"]
    assert runs["optim.lr"].tolist()[:3] == [0.1, 0.2, 0.1] and runs["model.width"][0] == 4
    assert runs["tta"][1] == "flip", "an old key has its current name"
    assert runs.groupby("optim.lr")["test/acc"].mean()[0.1] == 0.5 and pandas.isna(runs["test/acc"][2])
    assert runs["seconds/train"][0] == 2.0 and runs["device"][0] == "a CPU" and runs["steps"][0] == 8
    assert "not a valid result" in runs["error"][3] and runs["error"][2] == "no memory"


def test_folders_without_runs_are_errors(tmp_path):
    with pytest.raises(UserError, match="there are no runs"):
        cifarbn.runs.frame(tmp_path)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        cifarbn.runs.frame(tmp_path / "nowhere")


def test_without_pandas_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'cifarbn\[pandas\]'"):
        cifarbn.runs.frame(tmp_path)
