"""One training run: `python -m cifarbn.train model=resnet18_pool optim=adam`."""

import gc
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from cifarbn import figures
from cifarbn.checkpoints import forget_previous
from cifarbn.classifier import Classifier
from cifarbn.command_line import CONF, building, check_types, plain_errors, run_plainly
from cifarbn.hardware import Hardware, make_trainer
from cifarbn.progress import EpochLine, ProgressBar
from cifarbn.recorders import LastCheckpoint, RecordingsFile, StepHistory, TensorBoardLog, Timing, signals_kept
from cifarbn.recorders.tensorboard_log import hparams
from cifarbn.runs import Result, Run
from cifarbn.sources import sources

say = rank_zero_only(print)


def train(cfg: DictConfig, folder: Path, overrides: list[str]) -> Result:
    """Train, then test once; all that comes of it is in `folder`, the run folder. Returns its `result.json`."""
    gc.collect()  # the run before, in a sweep: a trainer and its parts refer to each other
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    how = {"resume": cfg.resume, "retry": cfg.retry, "changed_code": cfg.changed_code}
    run = Run.open(folder, config, overrides, sources(config), **how)
    if run.finished:
        say(f"{run}\nnothing to do; resume=false starts this run afresh")
        return run.result

    with run.recorded(), signals_kept(), TensorBoardLog(folder, purge_step=run.steps or None) as logger:
        pl.seed_everything(cfg.seed, verbose=False)
        options = dict(cfg.trainer)
        chosen = ("accelerator", "precision", "channels_last", "compile", "kernels")
        hardware = Hardware.choose(*map(options.pop, chosen))
        with building("data"):
            data = instantiate(cfg.data)
        with building("model"):
            net = hardware.prepare(instantiate(cfg.model))
        with building("loss, optim or schedule"):
            loss, optimizer, schedule = map(instantiate, (cfg.loss, cfg.optim, cfg.schedule))
            classifier = Classifier(net, loss, optimizer, schedule, test_views=cfg.test_views)
        with building("record"):
            recorders = [instantiate(recorder, folder=folder) for recorder in cfg.record.values()]

        timing, history = Timing(), StepHistory(folder)
        last = LastCheckpoint(folder, cfg.checkpoint_minutes, timing)
        bar = [ProgressBar()] if options["enable_progress_bar"] else []
        line = EpochLine(history, timing)
        callbacks = [timing, history, *recorders, RecordingsFile(folder, recorders), last, *bar, line]
        # Lightning looks for checkpoints of a cluster in the root folder, by default the working folder of all runs.
        trainer = make_trainer(hardware, callbacks=callbacks, logger=logger, default_root_dir=folder, **options)
        say(f"{folder}\n{hardware}")
        run.update(**asdict(hardware), devices=trainer.world_size, parameters=sum(p.numel() for p in net.parameters()))

        try:
            trainer.fit(classifier, data, ckpt_path=run.checkpoint, weights_only=True)
        finally:  # a diverged run is a result, an interrupted one will be continued
            run.update(steps=trainer.global_step, images_per_second=timing.pictures_per_second)
            run.update(metrics=history.epoch_metrics, data=data.describe(), seconds=dict(timing.seconds))
        trainer.test(classifier, data, verbose=False)
        tested = {name: float(value) for name, value in trainer.callback_metrics.items()}
        run.update(metrics=history.epoch_metrics | tested, seconds=dict(timing.seconds))
        logger.log_hyperparams(hparams(overrides, config), run.result["metrics"], step=trainer.global_step)
        if classifier.confusion is not None:
            run.update(confusion=classifier.confusion.tolist())
            confusion = figures.confusion_matrix(classifier.confusion.numpy(), data.classes)
            logger.experiment.add_figure("test/confusion", confusion, trainer.global_step)
        if trainer.is_global_zero:
            forget_previous(folder)
    say(run)
    return run.result


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    """One run; returns its validation accuracy, which a sweeper that searches asks for."""
    hydra_config = HydraConfig.get()
    # In a sweep, `cifarbn.sweep` hears of errors.
    with nullcontext() if hydra_config.mode is RunMode.MULTIRUN else plain_errors():
        check_types(cfg)
        result = train(cfg, Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task))
        return result.get("metrics", {}).get("val/acc")


def main() -> None:
    """The command line."""
    run_plainly(_hydra_main)


if __name__ == "__main__":
    main()
