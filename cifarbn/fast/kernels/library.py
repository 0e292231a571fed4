"""The shared library of the C kernels, compiled at run time with the machine's C compiler."""

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
TYPES = {torch.bfloat16: (), torch.float32: ("-DFLOAT",)}  # dtype of the feature maps -> the compiler's options
SECONDS = 60  # time limit of the compiler, which usually takes half a second
LANES = 16  # channels per SIMD instruction; other numbers of channels leave a slow scalar remainder


def takes(x: Tensor) -> bool:
    """Return whether the kernels are available and fast for x: (N, C, H, W), one of `TYPES`, channels_last, on a CPU.

    C must be a multiple of `LANES`, and `transforming` must be false.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and x.dim() == 4
        and x.shape[1] % LANES == 0
        and not transforming()
        and x.is_contiguous(memory_format=torch.channels_last)
        and why_unavailable(x.dtype) is None
    )


def transforming() -> bool:
    """Return whether torch is transforming the computation, which requires torch's own operations.

    True in `torch.compile`, in the transforms of `torch.func` (grad, jvp, vmap, ...) and in forward-mode AD.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


@cache
def why_unavailable(dtype: torch.dtype) -> str | None:
    """Return why the library for this dtype, one of `TYPES`, cannot be compiled on this machine; None if it can."""
    try:
        _library(dtype)
    except OSError as error:
        return str(error)
    return None


def call(function: str, dtype: torch.dtype, *arguments: float | Tensor | None) -> None:
    """Call a function of the library for feature maps of this dtype.

    Passes int as long, float as double, and tensors as pointers.

    Trap: the arguments are not checked here, and wrong shapes or layouts corrupt memory. Use the checked functions of
    `ops`.

    Raises:
        OSError: If the library is not available.
    """
    getattr(_library(dtype), function)(*map(_as_c, arguments))


def _as_c(argument: float | Tensor | None) -> Any:
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    """Compile and load the library; every process does this itself, so no outdated file can be left behind.

    OpenMP is not linked: its functions are resolved in torch's OpenMP, which is already loaded. A second OpenMP would
    have its own team of threads, and the two would compete for the cores.
    """
    variable = os.environ.get("CC", "")
    try:
        compiler = shlex.split(variable) or ["cc"]
    except ValueError as error:  # such as an unbalanced quote
        raise OSError(f"CC={variable} is not a command ({error}); unset CC, or set it to your compiler") from error
    if shutil.which(compiler[0]) is None:
        raise OSError(f"C compiler {compiler[0]!r} not found; install gcc, or set CC to your compiler")
    sources = sorted(map(str, Path(__file__).parent.glob("*.c")))
    with tempfile.TemporaryDirectory() as folder:
        _run(folder, *compiler, *FLAGS, *TYPES[dtype], "-fopenmp", "-c", *sources)
        _run(folder, *compiler, "-shared", *(f"{Path(source).stem}.o" for source in sources), "-o", "library.so")
        return ctypes.CDLL(f"{folder}/library.so")


def _run(folder: str, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    except subprocess.SubprocessError as error:
        message = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        raise OSError(f"{command[0]} failed: {message.splitlines()[0]}") from error
