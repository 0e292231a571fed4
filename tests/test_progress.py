"""Terminal output: one permanent line per epoch, and a progress bar that fits."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

import pytest
from in_process import make_run, result

from cifarbn.training.callbacks.progress import ProgressBar

LINE = re.compile(
    r"^epoch (\d)/2: train loss \d\.\d{4}, acc \d\.\d{4}; val loss \d\.\d{4}, acc \d\.\d{4}; "
    r"[\d,]+ images/s(; .+ left)?$",
    re.MULTILINE,
)


@pytest.mark.parametrize("bar", ["true", "false"])
def test_a_line_an_epoch_stays_also_in_a_pipe_and_without_a_bar(tmp_path, capsys, bar):
    make_run(tmp_path, f"trainer.enable_progress_bar={bar}")
    output = re.sub(r".*\r", "", capsys.readouterr().out)  # what is drawn over does not stay
    found = list(LINE.finditer(output))
    assert [(line[1], bool(line[2])) for line in found] == [("1", True), ("2", False)], output
    metrics = result(tmp_path)["metrics"]
    assert f"val loss {metrics['val/loss']:.4f}, acc {metrics['val/acc']:.4f}" in found[1][0]


@pytest.fixture
def terminal(monkeypatch):
    """Open a terminal with a given number of columns for the output; returns its file descriptor."""
    opened = []

    def open_terminal(columns):
        main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        opened.extend([main, os.fdopen(other, "w")])
        monkeypatch.setattr(sys, "stdout", opened[1])
        return main

    yield open_terminal
    os.close(opened[0])
    opened[1].close()


@pytest.mark.parametrize("columns", [80, 60, 40])
def test_the_bar_fits_its_terminal(terminal, columns):
    main = terminal(columns)
    bars = ProgressBar()._bar("Epoch 123"), ProgressBar()._bar("Validation DataLoader 0", position=1)
    bars[0].total = bars[1].total = 391
    for n in (1, 390):
        bars[0].n, bars[1].n = n, n
        bars[0].set_postfix({"loss": "2.3026", "img/s": "123,456"})
        bars[1].refresh()
    sys.stdout.flush()
    drawn = b""
    while select.select([main], [], [], 0.3)[0]:
        drawn += os.read(main, 10_000)
    shown = [line.replace("\x1b[A", "") for line in re.split(r"[\r\n]", drawn.decode())]
    epochs = [line for line in shown if line.startswith("Epoch")]
    assert max(map(len, shown)) <= columns
    assert "390/391" in epochs[-1] and "loss=2.3026" in epochs[-1] and epochs[-1].rstrip().endswith("]")
    assert ("img/s=123,456" in epochs[-1]) == (columns >= 60)
    assert any(line.startswith("Validation") and "390/391" in line and line.rstrip().endswith("]") for line in shown)
    for bar in reversed(bars):
        bar.close()


def test_a_clock_that_is_set_back_changes_no_seconds(tmp_path, monkeypatch, capsys):
    clock, start = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: 2 * start - 1e7 - clock())
    make_run(tmp_path, "trainer.enable_progress_bar=true")
    seconds = result(tmp_path)["seconds"]
    assert all(0 < seconds[kind] < 600 for kind in ("first_step", "train", "evaluate", "checkpoint"))
    assert 0 < result(tmp_path)["images_per_second"] < 1e6
    output = capsys.readouterr().out
    assert not re.search(r"-\d+:\d\d", output) and "-" not in "".join(re.findall(r"images/s; (.*) left", output))
