"""One training run: `python -m cifarbn.train model=resnet18_pool optim=adam`."""

import gc
import os
from contextlib import nullcontext
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate, to_absolute_path
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from cifarbn import figures
from cifarbn.cli.command_line import CONF, friendly_errors, run_cli, settle_data_root
from cifarbn.cli.composition import resolved
from cifarbn.cli.errors import instantiation_errors
from cifarbn.data.interface import check_data, class_names, describe, num_classes
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.threads import threads_kept
from cifarbn.runs.checkpoints import forget_previous
from cifarbn.runs.code_hash import sources
from cifarbn.runs.folder import Run
from cifarbn.runs.schema import Result
from cifarbn.smoothness.dead_runs import constant_prediction_loss
from cifarbn.training.callbacks.resume_checkpoint import signals_kept
from cifarbn.training.callbacks.standard import StandardCallbacks
from cifarbn.training.callbacks.tensorboard_log import TensorBoardLog, hparams
from cifarbn.training.classifier import Classifier
from cifarbn.training.trainer import (
    check_eval_batch_size,
    check_one_process,
    check_options,
    devices_here,
    make_trainer,
    plain_misconfiguration,
    starts_processes,
)

rank_zero_print = rank_zero_only(print)


def train(cfg: DictConfig, folder: Path, overrides: list[str]) -> Result:
    """Train, then test once; all that comes of it is in `folder`, the run folder. Returns its `result.json`."""
    if not starts_processes(cfg.trainer):
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # a task of SLURM's is not a process of this run's
    gc.collect()  # the run before, in a sweep: a trainer and its parts refer to each other
    config = resolved(cfg)
    how = {"resume": cfg.resume, "retry": cfg.retry, "on_code_change": cfg.on_code_change}
    source = Path(to_absolute_path(os.path.expanduser(str(cfg.resume_from)))) if cfg.resume_from else None
    run = Run.open(folder, config, overrides, sources(config), **how, resume_from=source)
    if run.finished:
        rank_zero_print(f"{run}\nnothing to do; resume=false starts this run afresh")
        return run.result

    with run.recorded(), signals_kept(), threads_kept(), TensorBoardLog(folder, purge_step=run.steps or None) as logger:
        pl.seed_everything(cfg.seed, verbose=False)
        options = check_options(cfg.trainer)
        check_eval_batch_size(cfg.data, options.pop("eval_batch_size"), overrides)
        chosen = ("accelerator", "precision", "channels_last", "compile", "cuda_graphs", "kernels", "threads")
        hardware = Hardware.choose(**{key: options.pop(key) for key in chosen}, processes=devices_here(cfg.trainer))
        with instantiation_errors("data"):
            data = check_data(instantiate(cfg.data))
        with instantiation_errors("model"):
            net = accelerate(instantiate(config["model"]), hardware)
        with instantiation_errors("loss, optim or schedule"):
            loss, optimizer, schedule = map(instantiate, (cfg.loss, cfg.optim, cfg.schedule))
            fast = hardware.compile, hardware.cuda_graphs
            classifier = Classifier(net, loss, optimizer, schedule, num_classes(data), cfg.tta, *fast)
        with instantiation_errors("record"):
            recorders = [instantiate(recorder, folder=folder) for recorder in cfg.record.values()]

        minutes, bar = cfg.checkpoint_minutes, options["enable_progress_bar"]
        callbacks = StandardCallbacks(folder, recorders, minutes, threads=hardware.threads, progress_bar=bar)
        timing, history = callbacks.timing, callbacks.history
        options |= {"callbacks": callbacks.in_order, "logger": logger}
        # Lightning looks for checkpoints of a cluster in the root folder, by default the working folder of all runs.
        trainer = make_trainer(hardware, default_root_dir=folder, **options)
        rank_zero_print(f"{folder}\n{hardware}")
        run.started(**hardware.facts(), devices=trainer.world_size)
        level = constant_prediction_loss(loss, num_classes(data) or 0, getattr(data, "batch_size", None))
        run.update(parameters=sum(p.numel() for p in net.parameters()), constant_prediction_loss=level)

        try:
            with plain_misconfiguration():
                trainer.fit(classifier, data, ckpt_path=run.checkpoint, weights_only=True)
        finally:  # a diverged run is a result, an interrupted one will be continued
            if trainer.global_step > run.steps:
                run.computed(**classifier.step.facts)
            run.update(steps=trainer.global_step, images_per_second=timing.images_per_second)
            run.update(metrics=history.epoch_metrics, data=describe(data), seconds=dict(timing.seconds))
            run.update(thread_changes=callbacks.thread_changes)
        with plain_misconfiguration():
            trainer.test(classifier, data, verbose=False)
        tested = {name: float(value) for name, value in trainer.callback_metrics.items()}
        run.update(metrics=history.epoch_metrics | tested, seconds=dict(timing.seconds))
        logger.log_hyperparams(hparams(overrides, config), run.result["metrics"], step=trainer.global_step)
        if classifier.confusion is not None:
            run.update(confusion=classifier.confusion.tolist())
            names = class_names(data, len(classifier.confusion))
            confusion = figures.confusion_matrix(classifier.confusion.numpy(), names)
            logger.experiment.add_figure("test/confusion", confusion, trainer.global_step)
        if trainer.is_global_zero:
            forget_previous(folder)
    rank_zero_print(run)
    return run.result


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    """One run; returns its validation accuracy, which a sweeper that searches asks for."""
    hydra_config = HydraConfig.get()
    # In a sweep, `cifarbn.cli.sweep` hears of errors.
    with nullcontext() if hydra_config.mode is RunMode.MULTIRUN else friendly_errors():
        settle_data_root(cfg)
        if hydra_config.mode is RunMode.MULTIRUN:
            check_one_process(cfg.trainer)
        result = train(cfg, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
        return result.get("metrics", {}).get("val/acc")


def main() -> None:
    """The command line."""
    run_cli(_hydra_main)


if __name__ == "__main__":
    main()
