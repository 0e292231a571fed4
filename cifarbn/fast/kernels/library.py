"""The library that the machine's own compiler makes of the C files beside this module."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLAGS = (
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fPIC",
)
SECONDS = 60  # for the compiler, which takes half a second
LANES = 16  # channels that go through one instruction; of a number that is no multiple the rest goes one by one, slowly


def takes(x: Tensor) -> bool:
    """Whether the functions are there and x is what they work well on: bf16 maps (N, C, H, W), channels_last, on a CPU.

    C is a multiple of `LANES`. See also `transforming`.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.dim() == 4
        and x.shape[1] % LANES == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not transforming()
        and why_unavailable() is None
    )


def transforming() -> bool:
    """Return whether torch makes another function of the computation, for which it needs operations of its own.

    It does in `torch.compile`, in the transforms of `torch.func` (grad, jvp, vmap, ...) and in forward-mode AD.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


@cache
def why_unavailable() -> str | None:
    """What keeps this machine from compiling the library, if anything does."""
    try:
        _library()
    except OSError as error:
        return str(error)
    return None


def call(function: str, *arguments: float | Tensor | None) -> None:
    """Call a function of the library: int goes as long, float as double, a tensor as the address of its first value.

    Nobody checks the arguments, and a wrong shape or layout overwrites memory: `ops` does.

    Raises:
        OSError: where the library is unavailable.
    """
    getattr(_library(), function)(*map(_as_c, arguments))


def _as_c(argument: float | Tensor | None) -> Any:
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


@cache
def _library() -> ctypes.CDLL:
    """Compile and load; every process does so for itself, which leaves nothing behind that could be out of date.

    OpenMP is not linked: its functions are found in the process, where torch has loaded its own. With a second OpenMP
    there would be two teams of threads, each waiting on the cores that the other one needs.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no C compiler {compiler[0]!r} (install gcc, or name it in CC)")
    sources = sorted(map(str, Path(__file__).parent.glob("*.c")))
    with tempfile.TemporaryDirectory() as folder:
        _run(folder, *compiler, *FLAGS, "-fopenmp", "-c", *sources)
        _run(folder, *compiler, "-shared", *(f"{Path(source).stem}.o" for source in sources), "-o", "library.so")
        return ctypes.CDLL(f"{folder}/library.so")


def _run(folder: str, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        raise OSError(f"{command[0]} failed: {said.splitlines()[0]}") from error
