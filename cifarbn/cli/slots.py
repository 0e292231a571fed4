"""Divide a machine among parallel runs: how many there are, and which GPU or cores each of them uses."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import torch

from cifarbn.errors import UserError
from cifarbn.fast.cgroup import memory_limit
from cifarbn.fast.cores import usable_cores

# Resources of one run, for `--jobs auto`. Processes take turns on a GPU (unless NVIDIA MPS is running), so parallel
# runs only use the time in which a single run leaves it idle: start-up, compilation, evaluation, and gaps between
# kernels. The gaps take a larger share of the time on larger GPUs; therefore four runs for the 132 multiprocessors of
# an H100, and fewer for smaller GPUs. Not yet measured.
GPU_BYTES = 6 * 2**30
MULTIPROCESSORS = 33
CORES_PER_GPU_RUN = 3  # for the run itself and the threads that compile its kernels
# One CPU run uses two cores well, so two cores execute one run. More cores have not been measured.
CORES = 4
BYTES = 6 * 2**30

Slot = dict[str, str]
"""Environment variables that assign a process its share of the machine."""


def parse_jobs(text: str, option: str = "--jobs") -> int | None:
    """Return the number of parallel processes; None for "auto".

    Args:
        text: what the user wrote.
        option: where, for the error message.

    Raises:
        UserError: if the text is neither an integer of at least 1 nor "auto".
    """
    if text == "auto":
        return None
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise UserError(f"{option} takes a whole number of at least 1, or auto, not {text!r}")
    return int(text)


def make_slots(jobs: int | None, accelerators: Sequence[str]) -> list[Slot]:
    """Divide the machine into slots for parallel processes.

    Several slots share the available CPU cores equally, unless the user has set OMP_NUM_THREADS. With several GPUs,
    each slot uses one of them, and the slots are spread over the GPUs: eight slots on four GPUs are two on each. A
    single slot has no restrictions. If some processes use GPUs and some do not, each slot fits both kinds.

    Args:
        jobs: number of parallel processes; None for as many as fit the machine.
        accelerators: trainer.accelerator of each process; more slots than processes would leave cores idle.

    Raises:
        UserError: if `jobs` is None and the GPUs cannot be queried.
    """
    most = max(1, len(accelerators))
    gpus = gpu_names() if any(accelerator != "cpu" for accelerator in accelerators) else []
    if jobs is None:
        rooms = _rooms_on_gpus() if gpus else [_room_on_cpu()]
        if "cpu" in accelerators:
            most = min(most, _room_on_cpu())
    else:
        rooms = [len(range(first, jobs, len(gpus) or 1)) for first in range(len(gpus) or 1)]
    # Use every GPU once before any GPU twice.
    order = sorted((place, gpu) for gpu, room in enumerate(rooms) for place in range(room))[:most]
    if len(order) <= 1:
        return [{}]
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, usable_cores() // len(order)))}
    several = len(gpus) > 1
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[gpu]} if several else {}) for _, gpu in order]


def gpu_names() -> list[str]:
    """Return the visible GPUs as named in CUDA_VISIBLE_DEVICES, without creating a CUDA context."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(count))
    return [name.strip() for name in names][:count]


def _room_on_cpu() -> int:
    memory, limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), memory_limit()
    memory = memory if limit is None else min(memory, limit)
    return max(1, min(usable_cores() // CORES, memory // BYTES))


# Executed in a separate process, because a CUDA context occupies half a gigabyte of GPU memory until its process ends.
_QUERY = """
import json, torch
cuda = torch.cuda
free = [cuda.mem_get_info(i)[0] for i in range(cuda.device_count())]
print(json.dumps([[each, cuda.get_device_properties(i).multi_processor_count] for i, each in enumerate(free)]))
"""


def _rooms_on_gpus() -> list[int]:
    """Return the number of runs that fit each visible GPU, at least one."""
    query = subprocess.run([sys.executable, "-c", _QUERY], capture_output=True, text=True)
    if query.returncode:
        reason = (query.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--jobs auto cannot query the GPUs ({reason}); give a number, such as --jobs 2")
    facts: list[tuple[int, int]] = json.loads(query.stdout.splitlines()[-1])
    cores = usable_cores() // CORES_PER_GPU_RUN // len(facts)
    return [
        max(1, min(free // GPU_BYTES, multiprocessors // MULTIPROCESSORS, cores)) for free, multiprocessors in facts
    ]
