"""The Lightning Trainer of a run: which of its options are supported, and how it is created."""

import difflib
import inspect
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.distributed import is_torchelastic_launched

from cifarbn.errors import UserError
from cifarbn.fast.cores import usable_cores
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.sync_batch_norm import SyncOnCPU
from cifarbn.runs.identity import key_of

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


# The keys of conf/trainer that every run needs.
NEEDED = (
    *("accelerator", "devices", "strategy", "precision", "channels_last", "compile", "cuda_graphs", "kernels"),
    *("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches", "limit_test_batches"),
    *("gradient_clip_val", "enable_progress_bar", "threads", "eval_batch_size", "sync_batchnorm"),
)

# Further arguments of Lightning's Trainer that are supported.
POSSIBLE = (
    *("gradient_clip_algorithm", "max_time", "deterministic", "detect_anomaly", "benchmark", "num_nodes"),
    "check_val_every_n_epoch",
)

# Why the other arguments are not supported, and what to use instead.
INSTEAD = {
    "accumulate_grad_batches": "in all curves and recordings, a step is one batch; increase data.batch_size",
    "barebones": "it disables the callbacks that write the run folder",
    "callbacks": "subclass cifarbn.recorders.Recorder and add it to the config group record",
    "default_root_dir": "a run writes into its run folder; use name=NAME",
    "enable_checkpointing": "every run writes last.ckpt; checkpoint_minutes sets how often",
    "enable_model_summary": "the number of parameters is in result.json",
    "fast_dev_run": "use trainer=smoke",
    "inference_mode": "recorders need gradients during evaluation",
    "limit_predict_batches": "a run does not predict; use python -m cifarbn.predict",
    "log_every_n_steps": "every step is in metrics.csv",
    "logger": "every run writes metrics.csv and TensorBoard events",
    "min_epochs": "only max_time stops a run early; use epochs",
    "min_steps": "only max_time stops a run early; use trainer.max_steps",
    "num_sanity_val_steps": "the model is checked against the data before the first step",
    "overfit_batches": "use trainer.limit_train_batches, or data.train_size with data=shapes",
    "plugins": "use trainer.precision and trainer.strategy",
    "profiler": "use python -m cifarbn.benchmark",
    "reload_dataloaders_every_n_epochs": "an interrupted run could not be resumed exactly",
    "val_check_interval": "metrics.csv has one validation per epoch; use record=held_out_accuracy for more",
}


SWITCHES = (
    *("channels_last", "enable_progress_bar", "sync_batchnorm"),
    *("deterministic", "detect_anomaly", "benchmark"),
)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of conf/trainer as a dict, after checking all of them.

    Raises:
        UserError: if an option is missing, not supported or invalid; no option is silently ignored.
    """
    options = dict(options)
    if missing := [key for key in NEEDED if key not in options]:
        raise UserError(f"trainer.{missing[0]} is missing; see conf/trainer/auto.yaml for its default")
    for key in options.keys() - {*NEEDED, *POSSIBLE}:
        if key not in inspect.signature(pl.Trainer.__init__).parameters:
            nearest = difflib.get_close_matches(key, [*NEEDED, *POSSIBLE], n=1)
            hint = (
                f"did you mean trainer.{nearest[0]}?" if nearest else f"the options are {', '.join(NEEDED + POSSIBLE)}"
            )
            raise UserError(f"there is no trainer.{key}; {hint}")
        reason = INSTEAD.get(key, "cifarbn does not use it; leave it out")
        raise UserError(f"trainer.{key} is not supported: {reason}")

    if options["strategy"] not in STRATEGIES:
        raise UserError(f"trainer.strategy must be one of {', '.join(STRATEGIES)}, not {options['strategy']!r}")
    for key in ("max_steps", "limit_train_batches"):
        value = options[key]
        if not _is_number(value) or not (value > 0 or (key, value) == ("max_steps", -1)):
            raise UserError(f"trainer.{key} must allow at least one step, not {value!r}")
    for key in ("max_steps", "num_nodes", "check_val_every_n_epoch"):
        value = options.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < (-1 if key == "max_steps" else 1):
            raise UserError(f"trainer.{key} must be a whole number of at least 1, not {value!r}")
    for key in SWITCHES:
        value = options.get(key, False)
        if not isinstance(value, bool) and (key, value) != ("deterministic", "warn"):
            raise UserError(f"trainer.{key} must be true or false, not {value!r}")
    if not re.fullmatch(r"[0-9]+(:[0-9][0-9]){3}", str(options.get("max_time", "00:00:01:00"))):
        raise UserError(f"trainer.max_time must be days:hours:minutes:seconds, not {options['max_time']!r}")
    options["devices"] = _check_devices(options)
    if starts_processes(options) and options["strategy"] == "auto":
        key = "trainer.devices" if options.get("num_nodes", 1) == 1 else "trainer.num_nodes"
        raise UserError(
            f"{key} asks for several processes, which share every batch; add trainer=ddp to confirm this (on CPUs, "
            f"trainer.accelerator=cpu as well)"
        )
    clip, algorithm = options["gradient_clip_val"], options.get("gradient_clip_algorithm")
    if clip is not None and (not _is_number(clip) or not 0 < clip < math.inf):
        raise UserError(f"trainer.gradient_clip_val must be a number above 0, or null for no clipping, not {clip!r}")
    if algorithm not in (None, "norm", "value"):
        raise UserError(f"trainer.gradient_clip_algorithm must be norm or value, not {algorithm!r}")
    if algorithm is not None and clip is None:
        raise UserError("trainer.gradient_clip_algorithm has no effect without trainer.gradient_clip_val; set it, too")
    return options


def check_eval_batch_size(config: Mapping[str, Any], size: Any, overrides: Sequence[str]) -> None:
    """Raise an error if trainer.eval_batch_size is given on the command line, but has no effect on this data.

    Args:
        config: config of the data.
        size: value of trainer.eval_batch_size.
        overrides: overrides of the command line.

    Raises:
        UserError: naming the remedy.
    """
    given = any(key_of(override) == "trainer.eval_batch_size" for override in overrides)
    if given and config.get("eval_batch_size") != size:
        own = "sets its own: use data.eval_batch_size" if "eval_batch_size" in config else "has none: leave it out"
        raise UserError(f"trainer.eval_batch_size={size} has no effect, because the data {own}")


def starts_processes(options: Mapping[str, Any]) -> bool:
    """Return whether a run with these options of conf/trainer starts processes of its own.

    Raises:
        UserError: if `devices` is invalid.
    """
    several = options.get("strategy", "auto") != "auto" or options.get("num_nodes", 1) != 1
    return devices_here(options) > 1 or several


def devices_here(options: Mapping[str, Any]) -> int:
    """Return the number of devices on this machine that these options of conf/trainer ask for.

    Raises:
        UserError: if `devices` is invalid.
    """
    devices = _parse_devices(options.get("devices", 1))
    if devices == "auto":
        return torch.cuda.device_count() if _on_gpus(options) else 1
    return len(devices) if isinstance(devices, list) else int(devices)


def _parse_devices(value: Any) -> int | list[int] | str:
    """Return the number of devices, a list of GPU indices, or "auto" for all GPUs, as Lightning reads the value.

    Raises:
        UserError: if `devices` has another form.
    """
    if str(value) in ("auto", "-1"):
        return "auto"
    is_list = isinstance(value, Sequence) and (not isinstance(value, str) or "," in value)
    parts = [part.strip() for part in str(value).strip("[]").split(",") if part.strip()]
    if parts and len(set(parts)) == len(parts) and all(part.isascii() and part.isdecimal() for part in parts):
        numbers = list(map(int, parts))
        if is_list:
            return numbers
        if numbers[0] > 0:
            return numbers[0]
    raise UserError(
        "trainer.devices must be a number of devices, auto, or a list of different GPU indices such as [0,1], not "
        f"{value!r}"
    )


def _check_devices(options: Mapping[str, Any]) -> int | list[int] | str:
    """Return `devices` as `_parse_devices` does, after checking that this machine has them.

    Raises:
        UserError: if it has fewer GPUs, or fewer CPU cores than processes.
    """
    devices, number = _parse_devices(options["devices"]), devices_here(options)
    given = f"trainer.devices={options['devices']}"
    if options["accelerator"] == "gpu" and not torch.cuda.is_available():
        return devices  # an error of `Hardware.choose`
    if _on_gpus(options):
        gpus = torch.cuda.device_count()
        # torchrun may show each process its own GPU only
        if (max(devices) + 1 if isinstance(devices, list) else number) > gpus and not is_torchelastic_launched():
            raise UserError(
                f"{given} asks for a GPU that is not there; the visible GPUs are {', '.join(map(str, range(gpus)))}"
            )
    elif isinstance(devices, list):
        raise UserError(f"{given} is a list of GPUs, but the run uses the CPU; use trainer.devices=1")
    elif number > (cores := usable_cores()):
        raise UserError(
            f"{given} on the CPU is a process for each device, but this machine has {cores} usable "
            f"core{'s' if cores > 1 else ''}; use trainer.devices={cores} or fewer"
        )
    return devices


def _on_gpus(options: Mapping[str, Any]) -> bool:
    return options.get("accelerator") != "cpu" and torch.cuda.is_available()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def make_trainer(hardware: Hardware, **arguments: Any) -> pl.Trainer:
    """Create a Lightning Trainer for this hardware.

    Validation runs once per epoch and never before training. Inference mode is off, since recorders need gradients
    during evaluation. A run in one process ignores SLURM's tasks. Lightning's own requeueing on SLURM is off: it writes
    checkpoints of its own and would load them before any other.

    Args:
        hardware: where and how to compute.
        **arguments: arguments of the Trainer.

    Raises:
        UserError: for arguments that the Trainer does not accept.
    """
    epochs = arguments.get("max_epochs", 1)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"epochs must be at least 1, not {epochs}")
    # Lightning 2.6 causes a deprecation warning of torch 2.10 and later at every start.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    # Lightning's banner of hints and devices only repeats the printed line of the hardware.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        plugins: list[Any] = []
        if not starts_processes(arguments):
            plugins.append(LightningEnvironment())
        elif SLURMEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))
        # Lightning switches deterministic algorithms on for the whole process: not for a sweep's next run.
        arguments.setdefault("deterministic", False)
        sync_batchnorm = arguments.pop("sync_batchnorm", True) and starts_processes(arguments)
        if sync_batchnorm and hardware.accelerator == "cpu":
            plugins.append(SyncOnCPU())
        trainer = pl.Trainer(
            plugins=plugins,
            accelerator=hardware.accelerator,
            precision=hardware.precision,  # type: ignore[arg-type]
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            sync_batchnorm=sync_batchnorm and hardware.accelerator == "gpu",
            log_every_n_steps=1,
            profiler=NoProfiler(),
            **arguments,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error
    # With max_steps, Lightning 2.6 treats every checkpoint as one within an epoch: a run that is resumed from the end
    # of an epoch would repeat that end, without a step, and count the epoch twice.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return trainer


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that measures nothing, without a new context for each of the 65 hook calls of a step."""

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        """Return a context that does nothing."""
        return nullcontext(action_name)


@contextmanager
def misconfiguration_errors() -> Iterator[None]:
    """Turn Lightning's MisconfigurationException, raised while it runs, into a UserError.

    An example is `limit_train_batches=1e-6`, a fraction that leaves no batch.

    Raises:
        UserError: with Lightning's message.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
