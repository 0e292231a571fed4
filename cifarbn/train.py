"""One training run: `python -m cifarbn.train model=resnet18_pool optim=adam`."""

import gc
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate, to_absolute_path
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from cifarbn import figures
from cifarbn.cli.command_line import CONF, friendly_errors, run_cli, settle_data_root
from cifarbn.cli.composition import resolved
from cifarbn.cli.errors import instantiation_errors
from cifarbn.cli.sweep import check_processes, table_on_exit
from cifarbn.cli.targets import build, build_loss, build_model
from cifarbn.data.interface import check_data, class_names, describe, num_classes
from cifarbn.errors import UserError
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.threads import threads_kept
from cifarbn.runs.checkpoints import forget_previous
from cifarbn.runs.code_hash import sources
from cifarbn.runs.folder import Run
from cifarbn.runs.identity import key_of
from cifarbn.runs.schema import Result
from cifarbn.smoothness.dead_runs import constant_prediction_loss
from cifarbn.terminal import outlive_reader
from cifarbn.training.callbacks.resume_checkpoint import restore_signal_handlers
from cifarbn.training.callbacks.standard import StandardCallbacks
from cifarbn.training.classifier import Classifier
from cifarbn.training.initial_weights import InitialWeights
from cifarbn.training.loggers import NoLog, RunLogger
from cifarbn.training.lost_parent import end_with_parent
from cifarbn.training.trainer import (
    check_eval_batch_size,
    check_options,
    devices_here,
    make_trainer,
    misconfiguration_errors,
    starts_processes,
)

rank_zero_print = rank_zero_only(print)


def train(cfg: DictConfig, folder: Path, overrides: list[str]) -> Result:
    """Train, test once at the end, and write everything into the run folder.

    Args:
        cfg: the composed config.
        folder: the run folder.
        overrides: overrides of the command line.

    Returns:
        The content of `result.json`.
    """
    _begin(cfg)
    config = resolved(cfg)
    initial = _initial_weights(cfg, config)
    if initial:
        overrides = [f"init_from={initial.label}" if key_of(each) == "init_from" else each for each in overrides]
    policy = {"resume": cfg.resume, "retry": cfg.retry, "on_code_change": cfg.on_code_change}
    run = Run.open(folder, config, overrides, sources(config), **policy, resume_from=_path(cfg.resume_from))
    if run.finished:
        rank_zero_print(f"{run}\nnothing to do; use resume=false to start from scratch")
        return run.result

    with run.track_status(), restore_signal_handlers(), threads_kept(), make_logger(cfg.logger, run) as logger:
        pl.seed_everything(cfg.seed, verbose=False)
        options, hardware = _options_and_hardware(cfg, overrides)
        with instantiation_errors("data"):
            data = check_data(instantiate(cfg.data))
        classifier = _make_classifier(cfg, config, hardware, num_classes(data), initial)
        with instantiation_errors("record"):
            recorders = [instantiate(recorder, folder=folder) for recorder in cfg.record.values()]
        callbacks = StandardCallbacks(
            folder,
            recorders,
            cfg.checkpoint_minutes,
            threads=hardware.threads,
            progress_bar=options["enable_progress_bar"],
            check_folder=run.check_folder,
        )
        # Lightning looks for its own cluster checkpoints in the root folder, which defaults to the working folder.
        options |= {"callbacks": callbacks.in_order, "logger": logger, "default_root_dir": folder}
        trainer = make_trainer(hardware, **options)
        # Lightning does this only after it has loaded a checkpoint, and so would round float64 weights to float32.
        trainer.precision_plugin.convert_module(classifier)
        rank_zero_print(f"{folder}\n{hardware}")
        run.started(**hardware.facts(), devices=trainer.world_size)
        run.update(**_facts(classifier, data))
        logger.start(config)
        if logger.run_id:
            run.update(logger={"kind": type(logger).__name__, "id": logger.run_id})
        _fit(run, trainer, classifier, data, callbacks)
        _test(run, trainer, classifier, data, callbacks)
        logger.finish(overrides, config, run.result["metrics"], trainer.global_step)
        if classifier.confusion is not None and not isinstance(logger, NoLog):
            names = class_names(data, len(classifier.confusion))
            confusion = figures.confusion_matrix(classifier.confusion.numpy(), names)
            logger.log_figure("test/confusion", confusion, trainer.global_step)
        if trainer.is_global_zero:
            forget_previous(folder)
    rank_zero_print(run)
    return run.result


def _begin(cfg: DictConfig) -> None:
    """Prepare this process for a run, perhaps after others in the same process."""
    if starts_processes(cfg.trainer):
        end_with_parent()
    else:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # a SLURM task is not a DDP process of this run
    gc.collect()  # in a sweep, free the previous run: a trainer and its parts form reference cycles
    torch.cuda.empty_cache()  # its CUDA graph had memory of its own, which others could not use


def _options_and_hardware(cfg: DictConfig, overrides: list[str]) -> tuple[dict[str, Any], Hardware]:
    """Check the options of conf/trainer; return those of Lightning's Trainer, and the choice that the others made."""
    options = check_options(cfg.trainer)
    check_eval_batch_size(cfg.data, options.pop("eval_batch_size"), overrides)
    keys = ("accelerator", "precision", "channels_last", "compile", "cuda_graphs", "kernels", "threads")
    hardware = Hardware.choose(**{key: options.pop(key) for key in keys}, processes=devices_here(cfg.trainer))
    return options, hardware


def _make_classifier(
    cfg: DictConfig, config: dict[str, Any], hardware: Hardware, classes: int | None, initial: InitialWeights | None
) -> Classifier:
    """Build model, loss, optimizer and schedule; random weights are drawn here."""
    model = build_model(config["model"])
    if initial:
        rank_zero_print(initial.load_into(model, cfg.model_head))
    model = accelerate(model, hardware)
    loss = build_loss(config["loss"])
    optimizer, schedule = (build(group, config[group]) for group in ("optim", "schedule"))
    with instantiation_errors("loss, optim or schedule"):
        return Classifier(
            model,
            loss,
            optimizer,
            schedule,
            classes,
            cfg.tta,
            compile=hardware.compile,
            cuda_graphs=hardware.cuda_graphs,
            head=cfg.model_head,
            pretrained=initial is not None,
        )


def _facts(classifier: Classifier, data: Any) -> dict[str, Any]:
    """Return what `result.json` says of a model before its training."""
    batch_size = getattr(data, "batch_size", None)
    return {
        "parameters": sum(parameter.numel() for parameter in classifier.net.parameters()),
        "constant_prediction_loss": constant_prediction_loss(classifier.loss, classifier.num_classes or 0, batch_size),
    }


def _fit(run: Run, trainer: pl.Trainer, classifier: Classifier, data: Any, callbacks: StandardCallbacks) -> None:
    """Train, from the run's checkpoint if it has one; write the results so far also if training fails."""
    timing = callbacks.timing
    try:
        with misconfiguration_errors():
            trainer.fit(classifier, data, ckpt_path=run.checkpoint, weights_only=True)
    finally:  # also for runs that diverged or were interrupted
        if trainer.global_step > run.steps:
            run.computed(**classifier.step.facts)
        run.update(
            steps=trainer.global_step,
            metrics=callbacks.metrics_logger.epoch_metrics,
            images_per_second=timing.images_per_second,
            seconds=dict(timing.seconds),
            data=describe(data),
            thread_changes=callbacks.thread_changes,
        )


def _test(run: Run, trainer: pl.Trainer, classifier: Classifier, data: Any, callbacks: StandardCallbacks) -> None:
    """Test once, and add the results to those of the last epoch."""
    with misconfiguration_errors():
        trainer.test(classifier, data, verbose=False)
    tested = {name: float(value) for name, value in trainer.callback_metrics.items()}
    run.update(metrics=callbacks.metrics_logger.epoch_metrics | tested, seconds=dict(callbacks.timing.seconds))
    if classifier.confusion is not None:
        run.update(confusion=classifier.confusion.tolist())


def _path(path: str | None) -> Path | None:
    """Return an absolute path, relative to the folder in which the command was started."""
    return Path(to_absolute_path(os.path.expanduser(str(path)))) if path else None


def _initial_weights(cfg: DictConfig, config: dict[str, Any]) -> InitialWeights | None:
    """Read the weights of `init_from`, and replace its path in `config` by their label.

    Raises:
        UserError: if the weights cannot be read, or `resume_from` is set as well.
    """
    config.pop("init_from", None)  # so that runs without it have the config of older versions
    folder = _path(cfg.get("init_from"))
    if folder is None:
        return None
    if cfg.resume_from:
        raise UserError(
            "init_from and resume_from exclude each other: init_from takes only the weights of another run, "
            "resume_from continues its training. Leave out one of them"
        )
    initial = InitialWeights.read(folder)
    config["init_from"] = initial.label
    return initial


def make_logger(config: DictConfig, run: Run) -> RunLogger:
    """Create the run's logger; a resumed run continues the same run of a tracking service.

    Raises:
        UserError: if the logger cannot be created, or is not a `RunLogger`.
    """
    tracked = run.result.get("logger", {})
    with instantiation_errors("logger"):
        create = instantiate(config, _partial_=True)
        kind = getattr(create.func, "__name__", "")
        run_id = tracked.get("id") if tracked.get("kind") == kind else None
        logger = create(folder=run.folder, run_id=run_id, purge_step=run.steps or None)
    if not isinstance(logger, RunLogger):
        raise UserError(f"logger._target_ must be a cifarbn.training.loggers.RunLogger, not {type(logger).__name__}")
    return logger


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    """Train one run, and return its validation accuracy for sweepers that optimize it."""
    hydra_config = HydraConfig.get()
    # In a sweep, `cifarbn.cli.sweep` handles the errors.
    with nullcontext() if hydra_config.mode is RunMode.MULTIRUN else friendly_errors():
        settle_data_root(cfg)
        check_processes(cfg.trainer, hydra_config)
        result = train(cfg, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
        return result.get("metrics", {}).get("val/acc")


def main() -> None:
    """Run the command line."""
    outlive_reader()
    with table_on_exit():
        run_cli(_hydra_main)


if __name__ == "__main__":
    main()
