"""A command whose output is closed continues, and loses nothing."""

import json
import subprocess
import sys

import pytest
from processes import Command
from test_train import TINY

NOTE = "note: the output was closed; the command continues without it\n"


def python(script, redirection, cwd):
    """Execute a script of the standard streams in a shell; return its exit code, output and standard error."""
    command = ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script]
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


CLOSED = """
import os, sys
from cifarbn.terminal import open_standard_streams
open_standard_streams()
with open("results", "w") as results:
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        print("printed", file=stream, flush=True)
        os.write(number, b"of a library")
assert not sys.stdin.read()
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, redirection):
    code, out, err = python(CLOSED, redirection if "<" in redirection else f"{redirection} </dev/null", tmp_path)
    assert code == 0 and (tmp_path / "results").read_text() == ""
    assert out == ("" if ">&-" in redirection.replace("2>&-", "") else "printed\nof a library")
    assert err == ("" if "2>&-" in redirection else "printed\nof a library")


OUTLIVES = """
import sys, time
from cifarbn.terminal import outlive_reader
outlive_reader()
print("first ä", flush=True)
sys.stdin.readline()
for _ in range(3):
    print("more", flush=True)
print("at exit")
"""


@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_ends_is_outlived(both):
    error = subprocess.STDOUT if both else subprocess.PIPE
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": error, "encoding": "utf-8"}
    with subprocess.Popen([sys.executable, "-X", "utf8", "-c", OUTLIVES], **pipes) as process:
        assert process.stdout.readline() == "first ä\n"
        process.stdout.close()
        print(file=process.stdin, flush=True)
        assert both or process.stderr.read() == NOTE
        assert process.wait() == 0


SIGNALLED = """
import signal, sys, time
from cifarbn.terminal import outlive_reader, print_in_handler
outlive_reader()
handled = 0
def handle(*_):
    global handled
    handled += 1
    print_in_handler("handled")
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
while handled < 200:
    print("progress", end="\\r", flush=True)
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_signal_handler_can_print_during_a_write(tmp_path):
    code, out, err = python(SIGNALLED, "", tmp_path)
    assert (code, err) == (0, "") and out.count("handled") >= 200


@pytest.mark.parametrize("flush", [True, False])
def test_a_full_disk_is_an_error_that_names_the_output(flush):
    script = f"""
from cifarbn.cli.command_line import friendly_errors
from cifarbn.terminal import outlive_reader
outlive_reader()
with friendly_errors():
    print(1, flush={flush})
"""
    code, _, err = python(script, ">/dev/full", None)
    assert code == 1 and err.startswith("error: cannot read or write the output: No space left on device; free some")
    assert err.count("\n") == 1


def test_a_sweep_without_a_reader_executes_its_runs(tmp_path):
    command = Command("cifarbn.train", "-m", *TINY, "epochs=1", "seed=0,1", cwd=tmp_path)
    command.stdout.close()
    _, err = command.communicate()
    assert command.returncode == 0 and err == NOTE
    results = tmp_path.glob("multirun_outputs/train/*/result.json")
    assert [json.loads(file.read_text())["status"] for file in results] == ["done", "done"]
