"""The processes of a run that Lightning has started end soon after the first one, also if that one was killed."""

import os
import sys
import threading
import time

from lightning_fabric.plugins.environments import SLURMEnvironment
from torch.distributed import is_torchelastic_launched

from cifarbn.errors import LOST_PROCESS

PARENT = "CIFARBN_PARENT"  # in the environment: the id of the run's first process
POLL_SECONDS = 0.5
GRACE_SECONDS = 5  # for the error that a step raises if another process is gone


def end_with_parent() -> None:
    """In a process that Lightning has started, end when its parent has ended; in the parent, prepare that.

    Without this, a process would wait half an hour for a parent that was killed before they were connected, and NCCL
    waits for minutes in any step. `torchrun` and SLURM start, and end, all processes themselves.
    """
    if is_torchelastic_launched() or SLURMEnvironment.detect():
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[PARENT] = str(os.getpid())
    elif PARENT in os.environ:
        threading.Thread(target=_end_after, args=(int(os.environ[PARENT]),), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    time.sleep(GRACE_SECONDS)
    print(f"error: {LOST_PROCESS}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread waits in a library
