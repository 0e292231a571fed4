"""A forked command does what `python -m` does."""

import os
import signal
import subprocess
import sys

import pytest
from processes import ENVIRONMENT, Command, run

SHOW = "import os, sys\nprint(__name__, __spec__.name, sys.argv[1:], os.getcwd(), os.environ.get('COLOUR'))\n"
SHOW += "print(sys.path[0], __import__('__main__').__spec__.name, sys.stdin.read())\n"
ENDINGS = ["", "import sys; sys.exit(3)", "import sys; sys.exit('error: why')", "import os; os.kill(os.getpid(), 15)"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_is_as_python_m(tmp_path, ending):
    (tmp_path / "shown.py").write_text(f"{SHOW}sys.stdout.flush()\n{ending}\n")
    env = ENVIRONMENT | {"COLOUR": "red"}
    how = {"cwd": tmp_path, "capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    real = subprocess.run([sys.executable, "-m", "shown", "a", "b=c"], env=env, **how)
    forked = run("shown", "a", "b=c", cwd=tmp_path, env=env)
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)


def test_an_error_has_a_traceback_and_exit_code_1(tmp_path):
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    ended = run("wrong", cwd=tmp_path)
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "ZeroDivisionError" in ended.stderr


def test_a_signal_reaches_it_and_it_alone(tmp_path):
    (tmp_path / "waits.py").write_text("import signal\nprint('ready', flush=True)\nsignal.pause()\n")
    first, second = (Command("waits", cwd=tmp_path) for _ in range(2))
    assert first.stdout.readline() == second.stdout.readline() == "ready\n"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL and second.returncode is None
    second.communicate(timeout=0.1)
    assert second.returncode == -signal.SIGKILL


def test_imports_are_made_before_the_fork(tmp_path):
    (tmp_path / "loaded.py").write_text("import os, sys\nprint('pytorch_lightning' in sys.modules, os.getppid())\n")
    output, parent = run("loaded", cwd=tmp_path).stdout.split()
    assert output == "True" and int(parent) != os.getpid()
