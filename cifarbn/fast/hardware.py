"""Hardware detection, and the settings a run computes with."""

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
_SHORT = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # Lightning's short forms


@dataclass(frozen=True)
class Hardware:
    """The hardware settings of a run: chosen once at its start, printed, and saved in result.json.

    Attributes:
        accelerator: "cpu" or "gpu".
        device: name of the device.
        precision: Lightning's name of the precision, such as "bf16-mixed" or "32-true".
        channels_last: whether models and images have the memory format NHWC, which is faster for convolutions.
        compile: mode of torch.compile, such as "default"; "auto" to compile on a GPU if it saves time; "" to not
            compile. See `cifarbn.fast.training_step`.
        cuda_graphs: whether training steps are captured in CUDA graphs.
        kernels: whether models use this package's faster layers for CPUs (`cifarbn.fast.accelerate`) instead of torch's
            own.
        threads: number of CPU threads, and the reason for it.
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
        """Replace each "auto" by the best setting for this machine, and set torch's number of threads.

        bf16 autocast is chosen if the hardware multiplies bf16 natively (CUDA with compute capability >= 8.0, AMX,
        AVX512-BF16); otherwise it would be emulated, which is slower than fp32. The kernels are chosen for bf16 and
        fp32 on a CPU if there is a C compiler and the model is not compiled. See `choose_threads` for the number of
        threads.

        Args:
            accelerator: trainer.accelerator.
            precision: trainer.precision.
            channels_last: trainer.channels_last.
            compile: trainer.compile.
            cuda_graphs: trainer.cuda_graphs.
            kernels: trainer.kernels.
            threads: trainer.threads.
            processes: number of processes of the run that share this machine's cores.

        Raises:
            UserError: If a GPU or the kernels are requested but not available, or a value is invalid.
        """
        if accelerator not in ("auto", "cpu", "gpu"):
            raise UserError(f"trainer.accelerator must be auto, cpu or gpu, not {accelerator!r}")
        if accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError("trainer=gpu needs a CUDA device, but torch finds none; use trainer=auto to run on the CPU")
        if compile not in ("auto", True, False, *COMPILE_MODES):
            modes = ", ".join(COMPILE_MODES)
            raise UserError(f"trainer.compile must be auto, true, false or one of {modes}, not {compile!r}")
        cuda = torch.cuda.is_available() and accelerator != "cpu"
        precision = _SHORT.get(str(precision), str(precision))
        if precision not in ("auto", *PRECISIONS):
            raise UserError(f"trainer.precision must be auto or one of {', '.join(PRECISIONS)}, not {precision!r}")
        if precision.startswith("16") and not cuda:
            # Lightning would silently compute in bf16, or in float16 and underflow.
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
            raise UserError("trainer.cuda_graphs=true needs a GPU; use trainer.cuda_graphs=auto")
        if cuda_graphs is True and processes > 1:
            raise UserError(
                "trainer.cuda_graphs=true does not work with several processes; use trainer.cuda_graphs=auto"
            )
        if cuda_graphs is True and precision == "16-mixed":
            raise UserError("trainer.cuda_graphs=true does not work with trainer.precision=16-mixed; use bf16-mixed")
        if kernels not in ("auto", True, False):
            raise UserError(f"trainer.kernels must be auto, true or false, not {kernels!r}")
        if kernels:
            dtype = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}.get(precision)
            missing = (
                "they need a CPU, bf16-mixed or 32-true, channels_last and trainer.compile=false"
                if cuda or dtype is None or not channels_last or compile
                else why_unavailable(dtype)
            )
            if missing and kernels is True:
                raise UserError(f"trainer.kernels=true: {missing}. Use trainer.kernels=auto to run without them.")
            kernels = not missing
        thread_choice = choose_threads(threads, gpu=cuda, processes=processes)
        set_threads(thread_choice.count)
        return cls(
            accelerator="gpu" if cuda else "cpu",
            device=torch.cuda.get_device_name() if cuda else _cpu_name(),
            precision=precision,
            channels_last=channels_last,
            compile=str(compile),
            # Gradient scaling changes the loss between the forward and the backward pass.
            cuda_graphs=bool(cuda_graphs) and cuda and precision != "16-mixed",
            kernels=bool(kernels),
            # Compiled code is specialised on the number of threads; changing it would recompile.
            threads=replace(thread_choice, watched=thread_choice.watched and not compile),
        )

    def facts(self) -> dict[str, Any]:
        """Return the settings as saved in `result.json`."""
        threads = {"threads": self.threads.count, "threads_reason": self.threads.reason}
        return {field.name: getattr(self, field.name) for field in fields(self)} | threads

    def set_up_process(self) -> None:
        """Configure this process: TF32 and cuDNN on a GPU, memory allocation on a CPU."""
        if self.accelerator == "gpu":
            # TF32 for the operations that autocast leaves in fp32; convolution algorithms chosen by measuring them.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        else:
            _keep_freed_memory()

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        kernels = ", C kernels" if self.kernels else ""
        graphs = ", CUDA graphs" if self.cuda_graphs else ""
        line = f"{self.device}, {self.precision}, {layout}, compile {self.compile or 'off'}{graphs}{kernels}"
        return f"{line}; {self.threads}" if self.threads.count < self.threads.most else line


def multiplies_bf16(cuda: bool) -> bool:
    """Return whether the GPU (if `cuda`) or the CPU multiplies bf16 natively."""
    if cuda:
        return torch.cuda.get_device_capability() >= (8, 0)
    return any(_cpu_facts().get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def _keep_freed_memory() -> None:
    """Keep freed memory in this process, to reuse it in the next step.

    By default glibc returns the memory of large tensors to the system, which then has to clear each page again: 3 to
    5 % of a ResNet-18 step. The numbers below are M_MMAP_MAX and M_TRIM_THRESHOLD. Other C libraries are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)
        libc.mallopt(-1, -1)


def _cpu_name() -> str:
    name = _cpu_facts().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {counted(torch.get_num_threads())}"


def _cpu_facts() -> Mapping[str, Any]:
    """Return torch's description of this CPU; empty before torch 2.12."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
