"""What the device can do, and the Lightning Trainer that makes use of it."""

import ctypes
import logging
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from cifarbn.errors import UserError
from cifarbn.kernels.library import why_unavailable
from cifarbn.models.batch_norm import BatchNorm2d
from cifarbn.models.convolution import Conv2d
from cifarbn.models.max_pool import MaxPool2d

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Hardware:
    """How a run computes: chosen once, printed, and recorded in result.json.

    Attributes:
        accelerator: "cpu" or "gpu".
        device: the device's name, for the record.
        precision: Lightning's name, such as "bf16-mixed" or "32-true".
        channels_last: whether nets and pictures are laid out NHWC, which convolutions on both kinds prefer.
        compile: torch.compile's mode, such as "default" or "reduce-overhead" (CUDA graphs); "" for none.
        kernels: whether nets use this package's own C for bf16 on a CPU (`cifarbn.kernels`).
    """

    accelerator: str
    device: str
    precision: str
    channels_last: bool
    compile: str
    kernels: bool

    @classmethod
    def choose(
        cls,
        accelerator: str = "auto",
        precision: str = "auto",
        channels_last: bool = True,
        compile: bool | str = "auto",
        kernels: bool | str = "auto",
    ) -> "Hardware":
        """Replace each "auto" by what this machine does best.

        bf16 autocast is chosen where the hardware multiplies bf16 natively (CUDA from compute capability 8.0, AMX,
        AVX512-BF16): elsewhere it is emulated and slower than fp32. The kernels are chosen for it on a CPU, where there
        is a C compiler and the net is not compiled as a whole.

        Raises:
            UserError: if a GPU or the kernels are asked for and there are none, or a name is unknown.
        """
        if accelerator not in ("auto", "cpu", "gpu"):
            raise UserError(f"trainer.accelerator is auto, cpu or gpu, not {accelerator!r}")
        if accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError("trainer=gpu needs a CUDA device and torch sees none; trainer=auto takes what there is")
        if compile not in ("auto", True, False, *COMPILE_MODES):
            raise UserError(f"trainer.compile is auto, true, false or one of {COMPILE_MODES}, not {compile!r}")
        cuda = torch.cuda.is_available() and accelerator != "cpu"
        if precision == "auto":
            precision = "bf16-mixed" if multiplies_bf16(cuda) else "32-true"
        if compile not in COMPILE_MODES:
            compile = "default" if (cuda if compile == "auto" else compile) else ""
        if kernels not in ("auto", True, False):
            raise UserError(f"trainer.kernels is auto, true or false, not {kernels!r}")
        if kernels:
            useful = not cuda and precision == "bf16-mixed" and channels_last and not compile
            missing = why_unavailable() if useful else "they are for bf16-mixed and channels_last on a CPU, uncompiled"
            if missing and kernels is True:
                raise UserError(f"trainer.kernels=true: {missing}; trainer.kernels=auto does without")
            kernels = not missing
        return cls(
            accelerator="gpu" if cuda else "cpu",
            device=torch.cuda.get_device_name() if cuda else _cpu_name(),
            precision=precision,
            channels_last=channels_last,
            compile=str(compile),
            kernels=bool(kernels),
        )

    def prepare(self, net: nn.Module) -> nn.Module:
        """Lay out, and where chosen compile, the net in place."""
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
            net.register_forward_pre_hook(lambda _, pictures: tuple(each.contiguous() for each in pictures))
        for module in net.modules():
            if isinstance(module, (BatchNorm2d, Conv2d, MaxPool2d)):
                module.kernels = self.kernels
        if self.compile:
            # dynamo counts its compilations of a function over the whole process, and after 8 runs of a sweep would go
            # on uncompiled without a word.
            torch.compiler.reset()
            net.compile(mode=self.compile)
        return net

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        kernels = ", own kernels" if self.kernels else ""
        return f"{self.device}, {self.precision}, {layout}, compile {self.compile or 'off'}{kernels}"


def make_trainer(hardware: Hardware, **arguments: Any) -> pl.Trainer:
    """A Lightning Trainer for this hardware; `arguments` are its own.

    Validation runs once an epoch and never before training. Gradients are needed inside evaluation by recorders, so
    inference mode is off.

    Raises:
        UserError: for arguments that the Trainer refuses.
    """
    epochs = arguments.get("max_epochs", 1)
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"epochs must be at least 1, not {epochs}")
    # Lightning 2.6 asks torch 2.10 and later in a way that they call deprecated, at every start.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    # Its banner of hints and devices says nothing that the hardware's line does not.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        return pl.Trainer(
            accelerator=hardware.accelerator,
            precision=hardware.precision,  # type: ignore[arg-type]
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            sync_batchnorm=hardware.accelerator
            == "gpu",  # one batch's statistics under DDP; torch has it for GPUs only
            log_every_n_steps=1,
            **arguments,
        )
    except (ValueError, TypeError, pl.utilities.exceptions.MisconfigurationException) as error:
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
    return f"{name}, {torch.get_num_threads()} threads"


def _cpu_facts() -> Mapping[str, Any]:
    """What torch knows of this CPU; nothing before torch 2.12, which has no such function."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
