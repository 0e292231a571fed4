"""Commands that are forked from a server behave as if they were started by `python -m`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cifarbn import train  # noqa: F401  (imported code is hashed)
from cifarbn.cli.fork_server import SERVER_LOST, ForkServer
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


def write_module(folder):
    (folder / "probed.py").write_text(MODULE)
    (folder / "imported.py").write_text("import os\nPROCESS = os.getpid()")


def make_server(folder):
    write_module(folder)
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


def test_a_killed_server_is_reported(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "nowhere")  # so that the server ends at once
    monkeypatch.chdir(tmp_path)
    lost = ForkServer("probed", {})
    lost._server.kill()
    lost._server.wait()
    assert lost.start(["0"], {}).wait() == SERVER_LOST
    lost.close()


def test_without_the_server_the_end_of_a_command_is_noticed(tmp_path):
    lost = make_server(tmp_path)
    started = Started(lost, tmp_path, "sleep")
    started.found()
    lost._server.kill()
    lost._server.wait()
    assert lost.has_ended and started.process.poll() is None
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait() == SERVER_LOST == started.process.poll()
    lost.close()


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
