"""A stand-in for SLURM on one machine: executes the batch scripts of `sbatch`, and restarts jobs that are requeued.

A test puts one link to this file for each command of SLURM on PATH; the state is in the folder FAKE_SLURM.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scontrol", "sacct", "scancel")


def install(folder):
    """Create the commands in a folder; return the environment variables that select them."""
    folder.mkdir()
    for command in COMMANDS:
        (folder / command).write_text(f"#!{sys.executable} -S\nexec(open({__file__!r}).read())\n")
        (folder / command).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def sbatch(script):
    text = Path(script).read_text()
    last = re.search(r"--array=0-(\d+)", text)
    job = 1000 + len(list(state.glob("job.*")))
    (state / f"job.{job}").write_text(text)
    print(f"Submitted batch job {job}", flush=True)
    for number in range(int(last[1]) + 1) if last else [None]:
        if not os.fork():
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # sbatch's caller reads its output to the end
            os.dup2(1, 2)
            execute(script, job, number)
            os._exit(0)


def execute(script, job, number):
    name = str(job) if number is None else f"{job}_{number}"
    environment = os.environ | {
        **{"SLURM_JOB_ID": str(job if number is None else 9000 + number), "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        **{"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "localhost"},
    }
    if number is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(number)}
    requeued = True
    while requeued:
        log = open(state / f"log.{name}", "a")
        subprocess.run(["bash", script], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        requeued = (state / f"requeue.{name}").exists()
        if requeued:
            (state / f"requeue.{name}").rename(state / f"requeued.{name}")
    (state / f"ended.{name}").touch()


def srun(*arguments):
    command = list(arguments)
    while command[0].startswith("--"):
        del command[: 1 if command[0] == "--unbuffered" else 2]
    job, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    (state / f"pid.{f'{job}_{number}' if job else os.environ['SLURM_JOB_ID']}").write_text(str(os.getpid()))
    os.execvp(command[0], command)


def scontrol(action, job):
    assert action == "requeue"
    (state / f"requeue.{job}").touch()


def scancel(job, _, name):
    os.kill(int((state / f"pid.{job}").read_text()), signal.Signals[name])


def sacct(*_):
    print("JobID|State|NodeList")
    for file in state.glob("pid.*"):
        job = file.name.partition(".")[2]
        print(f"{job}|{'COMPLETED' if (state / f'ended.{job}').exists() else 'RUNNING'}|localhost")


if __name__ == "__main__":
    state = Path(os.environ["FAKE_SLURM"])
    {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "sacct": sacct, "scancel": scancel}[Path(sys.argv[0]).name](
        *sys.argv[1:]
    )
