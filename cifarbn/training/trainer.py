"""The Lightning Trainer of a run: which of its options work here, and how it is made."""

import difflib
import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from cifarbn.errors import UserError
from cifarbn.fast.hardware import Hardware
from cifarbn.runs.identity import key_of

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


# The keys of conf/trainer that every run needs, and others of Lightning's Trainer that work here.
NEEDED = (
    *("accelerator", "devices", "strategy", "precision", "channels_last", "compile", "cuda_graphs", "kernels"),
    *("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches", "limit_test_batches"),
    *("gradient_clip_val", "enable_progress_bar", "threads", "eval_batch_size"),
)


POSSIBLE = (
    *("gradient_clip_algorithm", "max_time", "deterministic", "detect_anomaly", "benchmark", "num_nodes"),
    "check_val_every_n_epoch",
)


# Why the others do not, and what to use instead.
INSTEAD = {
    "accumulate_grad_batches": "a step is one minibatch in all curves and recordings; raise data.batch_size",
    "barebones": "it switches off the callbacks that write the run folder",
    "callbacks": "subclass cifarbn.recorders.Recorder and add it to the config group record",
    "default_root_dir": "a run writes into its run folder; use name=NAME",
    "enable_checkpointing": "every run keeps last.ckpt; checkpoint_minutes says how often",
    "enable_model_summary": "the number of parameters is in result.json",
    "fast_dev_run": "use trainer=smoke",
    "inference_mode": "recorders need gradients during evaluation",
    "limit_predict_batches": "a run predicts nothing; use python -m cifarbn.predict",
    "log_every_n_steps": "every step is in metrics.csv",
    "logger": "every run writes metrics.csv and TensorBoard events",
    "min_epochs": "nothing stops a run early but max_time; use epochs",
    "min_steps": "nothing stops a run early but max_time; use trainer.max_steps",
    "num_sanity_val_steps": "the model is checked against the data before the first step",
    "overfit_batches": "use trainer.limit_train_batches, or data.train_size with data=shapes",
    "plugins": "precision and the cluster's environment are chosen by trainer.precision and trainer.strategy",
    "profiler": "use python -m cifarbn.benchmark",
    "reload_dataloaders_every_n_epochs": "a run that was cut off could not continue where it was",
    "sync_batchnorm": "it is on wherever there are several GPUs",
    "val_check_interval": "metrics.csv has one validation an epoch; record=held_out_accuracy measures between steps",
}


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of conf/trainer as a dict.

    Raises:
        UserError: if one is missing, is not supported, or cannot mean anything; nothing is silently ignored.
    """
    options = dict(options)
    if missing := [key for key in NEEDED if key not in options]:
        raise UserError(f"trainer.{missing[0]} is missing; conf/trainer/auto.yaml has its default")
    for key in options.keys() - {*NEEDED, *POSSIBLE}:
        if key not in inspect.signature(pl.Trainer.__init__).parameters:
            nearest = difflib.get_close_matches(key, [*NEEDED, *POSSIBLE], n=1)
            hint = f"did you mean trainer.{nearest[0]}?" if nearest else f"there are {', '.join(NEEDED + POSSIBLE)}"
            raise UserError(f"there is no trainer.{key}; {hint}")
        reason = INSTEAD.get(key, "this program does not use it; leave it out")
        raise UserError(f"trainer.{key} is not supported: {reason}")

    if options["strategy"] not in STRATEGIES:
        raise UserError(f"trainer.strategy must be one of {', '.join(STRATEGIES)}, not {options['strategy']!r}")
    for key in ("max_steps", "limit_train_batches"):
        value = options[key]
        if not _is_number(value) or not (value > 0 or (key, value) == ("max_steps", -1)):
            raise UserError(f"trainer.{key} must leave at least one step, not {value!r}")
    for key in ("max_steps", "num_nodes", "check_val_every_n_epoch"):
        value = options.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < (-1 if key == "max_steps" else 1):
            raise UserError(f"trainer.{key} must be a whole number of at least 1, not {value!r}")
    for key in ("channels_last", "enable_progress_bar", "deterministic", "detect_anomaly", "benchmark"):
        value = options.get(key, False)
        if not isinstance(value, bool) and (key, value) != ("deterministic", "warn"):
            raise UserError(f"trainer.{key} must be true or false, not {value!r}")
    if not isinstance(options.get("max_time", ""), str):
        raise UserError(f"trainer.max_time must be days:hours:minutes:seconds, not {options['max_time']!r}")
    if starts_processes(options) and options["strategy"] == "auto":
        several = "trainer.devices" if options.get("num_nodes", 1) == 1 else "trainer.num_nodes"
        raise UserError(
            f"{several} asks for several processes, which share every batch, so say that you mean it: "
            f"trainer=ddp (on CPUs with trainer.accelerator=cpu)"
        )
    clip, algorithm = options["gradient_clip_val"], options.get("gradient_clip_algorithm")
    if clip is not None and (not _is_number(clip) or not 0 < clip < math.inf):
        raise UserError(f"trainer.gradient_clip_val must be a number above 0, or null for no clipping, not {clip!r}")
    if algorithm not in (None, "norm", "value"):
        raise UserError(f"trainer.gradient_clip_algorithm must be norm or value, not {algorithm!r}")
    if algorithm is not None and clip is None:
        raise UserError("trainer.gradient_clip_algorithm does nothing without trainer.gradient_clip_val")
    return options


def check_eval_batch_size(config: Mapping[str, Any], size: Any, overrides: Sequence[str]) -> None:
    """Refuse a trainer.eval_batch_size on the command line that this data does not take.

    Args:
        config: of the data.
        size: trainer.eval_batch_size.
        overrides: of the command line.

    Raises:
        UserError: naming the remedy.
    """
    said = any(key_of(override) == "trainer.eval_batch_size" for override in overrides)
    if said and config.get("eval_batch_size") != size:
        has = "sets its own: use data.eval_batch_size" if "eval_batch_size" in config else "has none: leave it out"
        raise UserError(f"trainer.eval_batch_size={size} does nothing here, because the data {has}")


def starts_processes(options: Mapping[str, Any]) -> bool:
    """Whether a run with these options of conf/trainer has processes of its own.

    Raises:
        UserError: if `devices` is nothing that says how many.
    """
    several = options.get("strategy", "auto") != "auto" or options.get("num_nodes", 1) != 1
    return devices_here(options) > 1 or several


def devices_here(options: Mapping[str, Any]) -> int:
    """Return the number of devices on this machine that these options of conf/trainer ask for.

    Raises:
        UserError: if `devices` is nothing that says how many.
    """
    on_gpus = options.get("accelerator") != "cpu" and torch.cuda.is_available()
    devices = options.get("devices", 1)
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count() if on_gpus else 1
    if str(devices).isdecimal():
        return int(devices)
    if isinstance(devices, Sequence):  # the devices' own numbers, also as one word
        return len(devices.split(",") if isinstance(devices, str) else devices)
    raise UserError(f"trainer.devices is a number of devices, auto, or a list of their numbers, not {devices!r}")


def check_one_process(options: Mapping[str, Any]) -> None:
    """Refuse options that start processes, in a sweep.

    Raises:
        UserError: naming the remedy.
    """
    if starts_processes(options):
        raise UserError(
            "a sweep makes its runs one after another in one process, and several devices need processes of their own: "
            "leave out -m and run trainer=ddp once for each combination, or sweep with trainer.devices=1"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def make_trainer(hardware: Hardware, **arguments: Any) -> pl.Trainer:
    """A Lightning Trainer for this hardware; `arguments` are its own.

    Validation runs once an epoch and never before training. Gradients are needed inside evaluation by recorders, so
    inference mode is off. A run in one process ignores what SLURM says of tasks, and no run lets Lightning send itself
    through SLURM's queue again: that writes checkpoints of its own, and would read them before any other.

    Raises:
        UserError: for arguments that the Trainer refuses.
    """
    epochs = arguments.get("max_epochs", 1)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"epochs must be at least 1, not {epochs}")
    # Lightning 2.6 asks torch 2.10 and later in a way that they call deprecated, at every start.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    # Its banner of hints and devices says nothing that the hardware's line does not.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        environment: list[Any] = []
        if not starts_processes(arguments):
            environment = [LightningEnvironment()]
        elif SLURMEnvironment.detect():
            environment = [SLURMEnvironment(auto_requeue=False)]
        return pl.Trainer(
            plugins=environment,
            accelerator=hardware.accelerator,
            precision=hardware.precision,  # type: ignore[arg-type]
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            # One batch's statistics under DDP; torch has it for GPUs only.
            sync_batchnorm=hardware.accelerator == "gpu",
            log_every_n_steps=1,
            **arguments,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error


@contextmanager
def plain_misconfiguration() -> Iterator[None]:
    """Turn what Lightning finds wrong with the trainer's options only as it runs into the user's error.

    An example is `limit_train_batches=1e-6`, a fraction that leaves no batch.

    Raises:
        UserError: in place of Lightning's MisconfigurationException.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
