"""Run several processes side by side: their devices, their output, and their end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

import torch

from cifarbn.errors import UserError
from cifarbn.fast.cores import cgroup_limit, usable_cpus

# What one run takes, for `--jobs auto`. Processes take turns on a GPU, unless NVIDIA's MPS shares it between them, so
# what several gain is the time that one leaves it idle: start, compilation, evaluation, and gaps between kernels, which
# grow with the GPU. Hence four for the 132 multiprocessors of an H100, fewer for a smaller one. Not yet measured.
GPU_BYTES = 6 * 2**30
MULTIPROCESSORS = 33
CORES_BESIDE_A_GPU = 3  # the run itself, and the threads that compile its kernels
# On CPUs one run uses two cores well, so two cores have one run. Runs on more cores have not been measured.
CORES = 4
BYTES = 6 * 2**30

SECONDS_TO_SAVE = 5  # after a second Ctrl-C or SIGTERM; then a process is killed
SECONDS_BETWEEN_LOOKS = 0.1

Slot = dict[str, str]
"""The environment variables that give a process its share of the machine."""


def parse_jobs(text: str) -> int | None:
    """Return the number of processes; None for "auto".

    Raises:
        UserError: if it is neither a number of at least 1 nor "auto".
    """
    if text == "auto":
        return None
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise UserError(f"--jobs takes a whole number of at least 1, or auto, not {text!r}")
    return int(text)


def make_slots(jobs: int | None, most: int, *, on_gpus: bool) -> list[Slot]:
    """Divide the machine.

    With several slots, each has an equal share of the CPU cores that this process may use, unless the user has set
    OMP_NUM_THREADS; where there are several GPUs, each slot sees one of them, and neighbouring slots different ones.
    A single slot changes nothing: its process sees the whole machine.

    Args:
        jobs: processes at a time; None for as many as the machine has room for.
        most: processes in all: more slots than that would leave cores idle.
        on_gpus: whether the processes use GPUs where there are any.

    Raises:
        UserError: if `jobs` is None and the GPUs cannot be queried.
    """
    gpus = gpu_names() if on_gpus else []
    if jobs is None:
        rooms = _rooms_on_gpus() if gpus else [_room_on_cpu()]
    else:
        rooms = [len(range(first, jobs, len(gpus) or 1)) for first in range(len(gpus) or 1)]
    # One slot of each GPU before a second one of any.
    order = sorted((place, gpu) for gpu, room in enumerate(rooms) for place in range(room))[: max(1, most)]
    if len(order) <= 1:
        return [{}]
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, usable_cores() // len(order)))}
    several = len(gpus) > 1
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[gpu]} if several else {}) for _, gpu in order]


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, by its affinity and its container's limit."""
    cores, limit = len(usable_cpus()), cgroup_limit()
    return cores if limit is None else max(1, min(cores, round(limit)))


def gpu_names() -> list[str]:
    """Return the visible GPUs as CUDA_VISIBLE_DEVICES names them; makes no CUDA context."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(count))
    return [name.strip() for name in names][:count]


def _room_on_cpu() -> int:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(usable_cores() // CORES, memory // BYTES))


# In a process of its own, since a CUDA context would hold half a gigabyte of the card until the last run has ended.
_QUERY = """
import json, torch
cuda = torch.cuda
free = [cuda.mem_get_info(i)[0] for i in range(cuda.device_count())]
print(json.dumps([[each, cuda.get_device_properties(i).multi_processor_count] for i, each in enumerate(free)]))
"""


def _rooms_on_gpus() -> list[int]:
    """How many runs each visible GPU has room for: at least one."""
    query = subprocess.run([sys.executable, "-c", _QUERY], capture_output=True, text=True)
    if query.returncode:
        reason = (query.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--jobs auto cannot query the GPUs ({reason}); give a number, such as --jobs 2")
    facts: list[tuple[int, int]] = json.loads(query.stdout.splitlines()[-1])
    cores = usable_cores() // CORES_BESIDE_A_GPU // len(facts)
    return [
        max(1, min(free // GPU_BYTES, multiprocessors // MULTIPROCESSORS, cores)) for free, multiprocessors in facts
    ]


@dataclass(frozen=True)
class _Process:
    key: int
    slot: int
    popen: "subprocess.Popen[str]"
    began: float
    output: threading.Thread | None


class SideBySide:
    """Processes of which at most one per slot runs at a time. None of them outlives the `with` block.

    An exception in the block, such as Ctrl-C or the SystemExit of a SIGTERM handler, sends SIGTERM to all of them and
    waits until they have saved and ended. A second one waits `SECONDS_TO_SAVE` seconds, then kills them.

    With one slot, a process has the terminal to itself. With several, each line of their output is printed whole,
    behind the label of its process.

    Args:
        slots: as `make_slots` gives them.

    Attributes:
        stopped: keys of the processes that were sent SIGTERM.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self.stopped: set[int] = set()
        self._running: list[_Process] = []
        self._seconds: list[float] = []  # of the processes that have ended by themselves

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
            self._wait()
        except BaseException:
            try:
                self._wait(time.monotonic() + SECONDS_TO_SAVE)
            finally:
                for process in self._running:
                    process.popen.kill()
                    process.popen.wait()
            raise

    def wait_for_slot(self, deadline: float | None = None) -> bool:
        """Wait until a slot is free, and return True; at the deadline stop all processes, and return False.

        Args:
            deadline: of time.monotonic().
        """
        while not _has_passed(deadline):
            if self._reap() < len(self.slots):
                return True
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.stop()
        return False

    def start(self, key: int, arguments: Sequence[str], label: str) -> None:
        """Start a process in a free slot.

        Args:
            key: for `stopped`.
            arguments: of the command line, the program first.
            label: a few words, printed in front of each line of its output.
        """
        slot = min(set(range(len(self.slots))) - {process.slot for process in self._running})
        environment = os.environ | self.slots[slot]
        with _signals_held():  # between the start of a process and its entry in the list, nobody would stop it
            if len(self.slots) == 1:
                popen, output = subprocess.Popen(arguments, env=environment, text=True), None
            else:
                popen = subprocess.Popen(
                    arguments,
                    env=environment | {"PYTHONUNBUFFERED": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
                output = threading.Thread(target=_print_lines, args=(popen.stdout, label), daemon=True)
                output.start()
            self._running.append(_Process(key, slot, popen, time.monotonic(), output))

    def wait_for_all(self, deadline: float | None = None) -> None:
        """Wait until all processes have ended; at the deadline stop them, and wait until they have saved."""
        if not self._wait(deadline):
            self.stop()
            self._wait()

    def stop(self) -> None:
        """Send SIGTERM, once, to each running process."""
        for process in self._running:
            if process.key not in self.stopped and process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
                self.stopped.add(process.key)  # afterwards: an exception in between must not leave it running

    def seconds_left(self, waiting: int) -> float | None:
        """Estimate when `waiting` more processes and the running ones will have ended, each as long as the mean so far.

        None until one has ended by itself.
        """
        if not self._seconds:
            return None
        each, now = sum(self._seconds) / len(self._seconds), time.monotonic()
        running = sum(max(0.0, each - (now - process.began)) for process in self._running)
        at_a_time = max(1, min(len(self.slots), waiting + len(self._running)))
        return (running + each * waiting) / at_a_time

    def _wait(self, deadline: float | None = None) -> bool:
        """Wait until all processes have ended, at most until the deadline; return whether they have."""
        while self._reap():
            if _has_passed(deadline):
                return False
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return True

    def _reap(self) -> int:
        """Take ended processes off the list; return how many still run."""
        for process in [each for each in self._running if each.popen.poll() is not None]:
            if process.output:
                process.output.join(timeout=1)  # longer only where a process of its own still holds the pipe
            self._running.remove(process)
            if process.key not in self.stopped:
                self._seconds.append(time.monotonic() - process.began)
        return len(self._running)


def _has_passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


_terminal = threading.Lock()


def print_line(text: str) -> None:
    """Print whole lines that those of other threads cannot interrupt."""
    with _terminal:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _print_lines(output: IO[str], label: str) -> None:
    with output:
        for line in output:
            # Keep reading when our own output is closed: a process whose pipe is full waits forever.
            with suppress(OSError, ValueError):
                if line.strip():
                    print_line(f"[{label}] {line.rstrip()}")


@contextmanager
def _signals_held() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM after the block instead of inside it."""
    held: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if callable(signal.getsignal(number)):  # one that is ignored must stay so in the process that is started
                before[number] = signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in held:
        signal.raise_signal(number)
