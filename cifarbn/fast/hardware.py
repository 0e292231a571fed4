"""What the device can do, and how a run computes on it."""

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from cifarbn.errors import UserError
from cifarbn.fast.kernels.library import why_unavailable
from cifarbn.fast.threads import Threads, choose_threads, counted, set_threads

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
_SHORT = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # as Lightning reads them


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
        kernels: whether models get this package's faster layers for bf16 on a CPU (`cifarbn.fast.accelerate`); if
            not, they keep torch's own.
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

    def set_up_process(self) -> None:
        """Set what holds for this whole process: TF32 and cuDNN on a GPU, memory allocation on a CPU."""
        if self.accelerator == "gpu":
            # TF32 for what autocast leaves in fp32, and the convolution algorithm measured, not guessed.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        else:
            _keep_freed_memory()

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        kernels = ", own kernels" if self.kernels else ""
        graphs = ", CUDA graphs" if self.cuda_graphs else ""
        line = f"{self.device}, {self.precision}, {layout}, compile {self.compile or 'off'}{graphs}{kernels}"
        return f"{line}; {self.threads}" if self.threads.count < self.threads.most else line


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
