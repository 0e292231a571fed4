"""Commands that are forked from a server behave as if they were started by `python -m`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import run

from cifarbn import train  # noqa: F401  (imported code is hashed)
from cifarbn.cli import fork_server
from cifarbn.cli.conf import CONF
from cifarbn.cli.fork_server import ForkServer
from cifarbn.cli.parallel_runs import IMPORTS, RUN
from cifarbn.runs import code_hash

# Writes what it finds, then does what its first argument says.
MODULE = """
import json, os, signal, sys, time
import imported

if __name__ == "__main__":
    print(json.dumps({
        "arguments": sys.argv[1:],
        "file": os.path.basename(sys.argv[0]),
        "imported_by": imported.PROCESS,
        "parent": os.getppid(),
        "environment": {key: os.environ.get(key) for key in ("ALL", "OWN")},
        "folder": os.getcwd(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    }))
    print("oops", file=sys.stderr)
    if sys.argv[1] == "sleep":
        time.sleep(60)
    if sys.argv[1] == "raise":
        raise RuntimeError("no")
    sys.exit(int(sys.argv[1]))
"""


def write_module(folder, module=MODULE):
    folder.mkdir(exist_ok=True)
    (folder / "probed.py").write_text(module)
    (folder / "imported.py").write_text("import os\nPROCESS = os.getpid()")


def make_server(folder, module=MODULE):
    write_module(folder, module)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])))
        return ForkServer("probed", {"ALL": "shared"})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = make_server(tmp_path_factory.mktemp("modules"))
    yield server
    server.close()


class Started:
    """A process of the server, and its output."""

    def __init__(self, server, folder, *arguments, environment=None):
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = server.start(arguments, environment or {}, out.fileno(), err.fileno())

    def found(self):
        while not self.out.read_text().endswith("\n"):
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.02)
        return json.loads(self.out.read_text())


@pytest.mark.parametrize("code", [0, 3, 130])
def test_a_command_has_its_own_arguments_environment_output_and_exit_code(server, tmp_path, code):
    started = Started(server, tmp_path, str(code), "a=b c", environment={"OWN": "mine"})
    assert started.process.wait() == started.process.poll() == code
    found = started.found()
    assert found["file"] == "probed.py" and found["arguments"] == [str(code), "a=b c"]
    assert found["imported_by"] == found["parent"] == server._server.pid, "imported once"
    assert found["environment"] == {"ALL": "shared", "OWN": "mine"} and found["folder"] != os.getcwd()
    assert found["signals"] == [str(each) for each in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)]
    assert started.err.read_text() == "oops\n"


def test_an_uncaught_error_is_a_traceback_and_exit_code_1(server, tmp_path):
    started = Started(server, tmp_path, "raise")
    assert started.process.wait() == 1
    assert started.err.read_text().endswith("RuntimeError: no\n")


def test_signals_reach_the_command_but_do_not_end_the_server(server, tmp_path):
    started = Started(server, tmp_path, "sleep")
    started.found()
    assert started.process.poll() is None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(server._server.pid, number)
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait() == -signal.SIGTERM
    started.process.send_signal(signal.SIGTERM)  # has no effect
    assert Started(server, tmp_path, "0").process.wait() == 0


def test_several_commands_run_in_parallel(server, tmp_path):
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    started = [Started(server, folder, "sleep") for folder in folders]
    assert len({each.found() and each.process.pid for each in started}) == 3
    started[1].process.kill()
    assert started[1].process.wait() == -signal.SIGKILL
    assert [each.process.poll() for each in started] == [None, -signal.SIGKILL, None]
    for each in started:
        each.process.kill()
    assert [each.process.wait() for each in started] == [-signal.SIGKILL] * 3


def test_no_signal_is_lost_between_the_fork_and_the_command(server, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 5:
        started = Started(server, tmp_path, "sleep")
        started.process.send_signal(number)
        assert started.process.wait() == -number


def test_a_command_that_is_stopped_ends_a_server_that_imports(tmp_path, monkeypatch, capfd):
    (tmp_path / "slow.py").write_text("import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)")
    monkeypatch.chdir(tmp_path)
    server = ForkServer("slow", {})
    process = server.start([], {})
    while not Path("importing").exists():
        time.sleep(0.02)
    server._server.send_signal(signal.SIGINT)  # Ctrl-C: sent to all processes of a terminal
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM and server.has_ended
    server.close()
    assert not capfd.readouterr().err, "no traceback"


def test_without_the_server_the_end_of_a_command_is_noticed(tmp_path):
    lost = make_server(tmp_path)
    started = Started(lost, tmp_path, "sleep")
    started.found()
    lost._server.kill()
    lost._server.wait()
    assert lost.has_ended and started.process.poll() is None
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait() == -signal.SIGKILL == started.process.poll(), "that of the server"
    assert lost.start(["0"], {}).wait() == -signal.SIGKILL, "a command that is started too late"
    lost.close()


def test_a_server_is_kept_as_long_as_a_new_one_would_start_the_same_processes(tmp_path, monkeypatch):
    write_module(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fork_server, "_shared", [])

    def find(*arguments):
        server = fork_server.shared_server("probed", {"ALL": "shared"}, ())
        started = Started(server, tmp_path, *(arguments or "0"))
        found = started.found()
        if not arguments:
            started.process.wait()
        return server, found["folder"], found["environment"]["OWN"], *([started.process] if arguments else [])

    first = find()
    assert first == find()
    *_, running = find("sleep")
    monkeypatch.setenv("OWN", "changed")
    assert find()[2] == "changed"
    assert running.poll() is None and not first[0].has_ended, "a server is closed only after its processes"
    running.send_signal(signal.SIGTERM)
    assert running.wait() == -signal.SIGTERM
    write_module(folder := tmp_path / "other")
    monkeypatch.chdir(folder)
    last, where, _ = find()
    assert where == str(folder) and first[0].has_ended
    last.close()
    assert find()[0] is not last
    for server in fork_server._shared:
        server.close()


def test_threads_of_imported_libraries_neither_prevent_nor_announce_themselves(tmp_path, monkeypatch, capfd):
    (tmp_path / "threaded.py").write_text("""
import threading, time
if __name__ != "__main__":
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
""")
    monkeypatch.chdir(tmp_path)
    server = ForkServer("threaded", {})
    assert server.start([], {}).wait() == 0
    server._server.send_signal(signal.SIGTERM)  # the thread does not block it
    assert server.start([], {}).wait() == 0
    server.close()
    assert not capfd.readouterr().err, "Python 3.12 warns of threads"


def test_the_server_ends_with_its_client_and_its_commands_continue(tmp_path):
    client = """
import os, time
from cifarbn.cli.fork_server import ForkServer
server, nowhere = ForkServer("probed", {}), os.open(os.devnull, os.O_WRONLY)
process = server.start(["sleep"], {}, nowhere, nowhere)
print(server._server.pid, process.pid, flush=True)
time.sleep(60)
"""
    write_module(tmp_path)
    client = subprocess.Popen([sys.executable, "-c", client], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with client.stdout:
        server, command = map(int, client.stdout.readline().split())
    client.kill()
    client.wait()
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{server}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{server}")
    os.kill(command, signal.SIGKILL)  # raises an error if it has ended


def test_the_hash_of_imported_code_is_that_at_the_import(monkeypatch):
    before = code_hash.sources({})
    code_hash._read.cache_clear()
    code_hash.read_imported()
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"changed = True")
    assert code_hash.sources({}) == before
    code_hash._read.cache_clear()
    assert code_hash.sources({}) != before, "this test cannot fail"
    code_hash._read.cache_clear()


def test_a_change_of_the_package_during_a_sweep_has_no_effect(tmp_path):
    """Every module with which a run may compute is imported before the first run."""
    targets = re.findall(r"_target_: (cifarbn\S+)", "\n".join(file.read_text() for file in CONF.rglob("*.yaml")))
    modules = code_hash.sources({str(number): {"_target_": target} for number, target in enumerate(targets)})
    compiled = "sys.modules['cifarbn.fast.kernels.library'].why_unavailable.cache_info().currsize"
    script = f"import sys, {RUN[-1]}, {', '.join(IMPORTS)}\nprint({compiled}, *sys.modules)"
    (tmp_path / "prepared.py").write_text(script)
    compilations, *imported = run("prepared", cwd=tmp_path).stdout.split()
    assert len(modules) > 30 and modules.keys() - imported == set() and compilations == "2"


# A process that is forked from one that has asked for CUDA devices cannot use them.
ASKING = f"""
import torch

def ask(*_):
    raise SystemExit("an import asks for CUDA devices")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = torch._C._cuda_getDeviceCount = ask
import {RUN[-1]}, {", ".join(IMPORTS)}
"""


def test_the_imports_of_the_server_do_not_ask_for_gpus():
    finished = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_forked_command_can_use_the_gpu(tmp_path):
    on_gpu = (
        f"import torch, {RUN[-1]}, {', '.join(IMPORTS)}\nif __name__ == '__main__': print(torch.ones(2).cuda().sum())"
    )
    server = make_server(tmp_path, on_gpu)
    started = Started(server, tmp_path)
    assert started.process.wait() == 0 and "2." in started.out.read_text(), started.err.read_text()
    server.close()
