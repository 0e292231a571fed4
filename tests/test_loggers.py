"""Loggers: each one logs the same run, which does not depend on it; a resumed run continues the same tracked run."""

import json
import sys

import pytest
import pytorch_lightning as pl
from in_process import assert_same_run, make_run, result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifarbn.errors import Interrupted, UserError
from cifarbn.training.callbacks.metrics_logger import MetricsLogger
from cifarbn.training.loggers import NoLog, TensorBoardLog

LOGGED = {"step/loss", "step/lr", "train/loss", "val/acc", "test/acc"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    make_run(folder, "logger=tensorboard")
    return folder


def interrupted_then_resumed(folder, monkeypatch, *overrides):
    """Run, stop in the second epoch, and resume; returns the result of the interrupted start."""

    def stop(self, trainer, *_):
        if trainer.global_step == 6:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLogger, "on_train_batch_start", stop_before(stop))
        with pytest.raises(Interrupted):
            make_run(folder, *overrides)
    first = result(folder)
    make_run(folder, *overrides)
    return first


def stop_before(stop):
    original = MetricsLogger.on_train_batch_start

    def hook(self, trainer, *args):
        stop(self, trainer)
        original(self, trainer, *args)

    return hook


def test_tensorboard_is_the_default(undisturbed):
    tags = EventAccumulator(str(undisturbed)).Reload().Tags()
    assert LOGGED <= set(tags["scalars"]) and "test/confusion" in tags["images"]
    assert "logger" not in result(undisturbed)


@pytest.mark.parametrize("logger", ["none", "csv"])
def test_without_a_logger_the_run_is_the_same_and_has_no_events(undisturbed, tmp_path, logger):
    make_run(tmp_path / "run", f"logger={logger}")
    assert_same_run(tmp_path / "run", undisturbed)
    names = {file.name for file in undisturbed.iterdir() if not file.name.startswith("events")}
    assert {file.name for file in (tmp_path / "run").iterdir()} == names


@pytest.mark.filterwarnings("ignore")
def test_mlflow_logs_the_run_and_a_resumed_run_continues_the_same_one(undisturbed, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    uri = (tmp_path / "mlruns").as_uri()
    overrides = ["logger=mlflow", f"logger.tracking_uri={uri}", "logger.experiment=tests"]
    first = interrupted_then_resumed(tmp_path / "run", monkeypatch, *overrides)
    assert_same_run(tmp_path / "run", undisturbed)
    tracked = result(tmp_path / "run")["logger"]
    assert tracked == first["logger"] and tracked["kind"] == "MLFlowLog"
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'tests'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == tracked["id"] and run.info.status == "FINISHED"
    assert set(run.data.metrics) >= LOGGED and run.data.params["model/width"] == "4"
    steps = {metric.step for metric in client.get_metric_history(tracked["id"], "step/loss")}
    assert steps == set(range(8))
    assert client.list_artifacts(tracked["id"], "test")[0].path == "test/confusion.png"


@pytest.mark.filterwarnings("ignore")
def test_wandb_logs_the_run_offline_and_a_resumed_run_continues_the_same_one(undisturbed, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, {"WANDB_MODE": "offline"}.get(name, "true"))
    overrides = ["logger=wandb", "logger.offline=true"]
    first = interrupted_then_resumed(tmp_path / "run", monkeypatch, *overrides)
    assert_same_run(tmp_path / "run", undisturbed)
    tracked = result(tmp_path / "run")["logger"]
    assert tracked == first["logger"] and tracked["kind"] == "WandbLog"
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and all(file.name == f"run-{tracked['id']}.wandb" for file in files)
    logged = b"".join(file.read_bytes() for file in files)
    assert all(name.encode() in logged for name in LOGGED)


@pytest.mark.filterwarnings("ignore")
def test_starting_from_scratch_starts_another_tracked_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    overrides = ["logger=mlflow", f"logger.tracking_uri={(tmp_path / 'mlruns').as_uri()}", "epochs=1"]
    make_run(tmp_path / "run", *overrides)
    before = result(tmp_path / "run")["logger"]["id"]
    make_run(tmp_path / "run", *overrides, "resume=false")
    assert mlflow and result(tmp_path / "run")["logger"]["id"] != before


def test_a_store_that_mlflow_cannot_use_is_one_error(tmp_path):
    pytest.importorskip("mlflow")
    with pytest.raises(UserError, match="MLflow cannot be used .* set logger.tracking_uri to a server or a folder"):
        make_run(tmp_path / "run", "logger=mlflow", "logger.tracking_uri=nosuch://store")


def test_wandb_without_an_account_is_one_error_with_the_remedy(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match="No API key configured.*wandb login.*logger.offline=true"):
        make_run(tmp_path / "run", "logger=wandb")


@pytest.mark.parametrize(("logger", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_one_error_that_names_the_extra(tmp_path, monkeypatch, logger, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("pytorch_lightning.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with pytest.raises(UserError, match=rf"logger={logger} needs {package}: pip install 'cifarbn\[{logger}\]'"):
        make_run(tmp_path / "run", f"logger={logger}")


def test_a_logger_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(UserError, match="must be a cifarbn.training.loggers.RunLogger, not CSVLogger"):
        make_run(tmp_path / "run", "logger._target_=test_loggers.csv_logger")


def csv_logger(folder, run_id, purge_step):
    return pl.loggers.CSVLogger(folder)


def test_the_logger_does_not_identify_a_run(tmp_path):
    make_run(tmp_path / "run", "epochs=1")
    again = make_run(tmp_path / "run", "epochs=1", "logger=none")
    assert again["status"] == "done" and "logger" not in again["config"]


def test_loggers_without_a_tracking_service_have_no_id(tmp_path):
    for logger in (NoLog(tmp_path), TensorBoardLog(tmp_path)):
        with logger:
            assert logger.run_id is None
    assert json.dumps(NoLog(tmp_path).name) == '"none"'
