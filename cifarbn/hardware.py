"""What the device can do, and the Lightning Trainer that makes use of it."""

import ctypes
import difflib
import inspect
import logging
import math
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from cifarbn.errors import UserError
from cifarbn.fast.training_step import contiguous_inputs
from cifarbn.kernels.library import why_unavailable
from cifarbn.models.batch_norm import BatchNorm2d
from cifarbn.models.convolution import Conv2d
from cifarbn.models.max_pool import MaxPool2d
from cifarbn.threads import Threads, choose_threads, counted, set_threads

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
_SHORT = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # as Lightning reads them
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


@dataclass(frozen=True)
class Hardware:
    """How a run computes: chosen once, printed, and recorded in result.json.

    Attributes:
        accelerator: "cpu" or "gpu".
        device: the device's name, for the record.
        precision: Lightning's name, such as "bf16-mixed" or "32-true".
        channels_last: whether nets and pictures are laid out NHWC, which convolutions on both kinds prefer.
        compile: torch.compile's mode, such as "default"; "auto", on a GPU, for compiling where it saves time; "" for
            none. See `cifarbn.fast.training_step`.
        cuda_graphs: whether training steps are captured in CUDA graphs.
        kernels: whether nets use this package's own C for bf16 on a CPU (`cifarbn.kernels`).
        threads: the number of the CPU's threads, which torch is set to, and where it comes from.
    """

    accelerator: str
    device: str
    precision: str
    channels_last: bool
    compile: str
    cuda_graphs: bool
    kernels: bool
    threads: Threads

    @classmethod
    def choose(
        cls,
        accelerator: str = "auto",
        precision: str = "auto",
        channels_last: bool = True,
        compile: bool | str = "auto",
        cuda_graphs: bool | str = "auto",
        kernels: bool | str = "auto",
        threads: int | str = "auto",
        processes: int = 1,
    ) -> "Hardware":
        """Replace each "auto" by what this machine does best.

        bf16 autocast is chosen where the hardware multiplies bf16 natively (CUDA from compute capability 8.0, AMX,
        AVX512-BF16): elsewhere it is emulated and slower than fp32. The kernels are chosen for it on a CPU, where there
        is a C compiler and the net is not compiled as a whole. See `choose_threads` for the number of threads, which
        torch has from here on; `processes` share this machine's cores.

        Raises:
            UserError: if a GPU or the kernels are asked for and there are none, or a name or number is unknown.
        """
        if accelerator not in ("auto", "cpu", "gpu"):
            raise UserError(f"trainer.accelerator is auto, cpu or gpu, not {accelerator!r}")
        if accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError("trainer=gpu needs a CUDA device and torch sees none; trainer=auto takes what there is")
        if compile not in ("auto", True, False, *COMPILE_MODES):
            raise UserError(f"trainer.compile is auto, true, false or one of {COMPILE_MODES}, not {compile!r}")
        cuda = torch.cuda.is_available() and accelerator != "cpu"
        precision = _SHORT.get(str(precision), str(precision))
        if precision not in ("auto", *PRECISIONS):
            raise UserError(f"trainer.precision is auto or one of {', '.join(PRECISIONS)}, not {precision!r}")
        if precision.startswith("16") and not cuda:
            # Lightning would compute in bf16 without a word, or in float16 and underflow.
            raise UserError(f"trainer.precision={precision} needs a GPU; on a CPU use bf16-mixed or 32-true")
        if precision == "auto":
            precision = "bf16-mixed" if multiplies_bf16(cuda) else "32-true"
        if compile == "auto":
            compile = "auto" if cuda else ""
        elif compile not in COMPILE_MODES:
            compile = "default" if compile else ""
        if cuda_graphs not in ("auto", True, False):
            raise UserError(f"trainer.cuda_graphs must be auto, true or false, not {cuda_graphs!r}")
        if cuda_graphs is True and not cuda:
            raise UserError("trainer.cuda_graphs=true needs a GPU; leave it out, or set it to auto")
        if cuda_graphs is True and processes > 1:
            raise UserError("trainer.cuda_graphs=true does not work with several processes; leave it out, or use auto")
        if cuda_graphs is True and precision == "16-mixed":
            raise UserError("trainer.cuda_graphs=true does not work with trainer.precision=16-mixed; use bf16-mixed")
        if kernels not in ("auto", True, False):
            raise UserError(f"trainer.kernels is auto, true or false, not {kernels!r}")
        if kernels:
            useful = not cuda and precision == "bf16-mixed" and channels_last and not compile
            missing = why_unavailable() if useful else "they are for bf16-mixed and channels_last on a CPU, uncompiled"
            if missing and kernels is True:
                raise UserError(f"trainer.kernels=true: {missing}; trainer.kernels=auto does without")
            kernels = not missing
        chosen = choose_threads(threads, gpu=cuda, processes=processes)
        set_threads(chosen.count)
        return cls(
            accelerator="gpu" if cuda else "cpu",
            device=torch.cuda.get_device_name() if cuda else _cpu_name(),
            precision=precision,
            channels_last=channels_last,
            compile=str(compile),
            # Gradient scaling changes the loss between the forward and the backward pass.
            cuda_graphs=bool(cuda_graphs) and cuda and precision != "16-mixed",
            kernels=bool(kernels),
            # Compiled code is made for one number of threads, and would be compiled again for another.
            threads=replace(chosen, watched=chosen.watched and not compile),
        )

    def facts(self) -> dict[str, Any]:
        """Return what `result.json` keeps of it."""
        threads = {"threads": self.threads.count, "threads_reason": self.threads.reason}
        return {field.name: getattr(self, field.name) for field in fields(self)} | threads

    def prepare(self, net: nn.Module) -> nn.Module:
        """Lay the model out in memory, in place, and choose its kernels."""
        if self.accelerator == "gpu":
            # TF32 for what autocast leaves in fp32, and the convolution algorithm measured, not guessed.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        else:
            _keep_freed_memory()
        if self.channels_last:
            net.to(memory_format=torch.channels_last)
        else:
            # A convolution goes by the layout of its weights or of its pictures, and pictures come channels_last.
            net.register_forward_pre_hook(contiguous_inputs)
        for module in net.modules():
            if isinstance(module, (BatchNorm2d, Conv2d, MaxPool2d)):
                module.kernels = self.kernels
        return net

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        kernels = ", own kernels" if self.kernels else ""
        graphs = ", CUDA graphs" if self.cuda_graphs else ""
        line = f"{self.device}, {self.precision}, {layout}, compile {self.compile or 'off'}{graphs}{kernels}"
        return f"{line}; {self.threads}" if self.threads.count < self.threads.most else line


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


def multiplies_bf16(cuda: bool) -> bool:
    """Whether the GPU, or else the CPU, multiplies bf16 natively."""
    if cuda:
        return torch.cuda.get_device_capability() >= (8, 0)
    return any(_cpu_facts().get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def _keep_freed_memory() -> None:
    """Let this process keep the memory of one step's tensors for the next step's.

    glibc gives that of large ones back to the system, which has to clear each page of the next: 3 to 5 % of a
    ResNet-18 step. The numbers are its M_MMAP_MAX and M_TRIM_THRESHOLD; other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)
        libc.mallopt(-1, -1)


def _cpu_name() -> str:
    name = _cpu_facts().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {counted(torch.get_num_threads())}"


def _cpu_facts() -> Mapping[str, Any]:
    """What torch knows of this CPU; nothing before torch 2.12, which has no such function."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
