"""Which images the benchmarks use, and what the benchmark of a GPU runs."""

import argparse

import pytest

from cifarbn.benchmark import gpu
from cifarbn.benchmark.images import data_overrides, read_images
from cifarbn.data import draw_shapes


def test_without_cifar10_images_are_drawn_and_the_name_says_so(tmp_path):
    name, train, test = read_images(str(tmp_path), 12)
    assert name == f"shapes (no CIFAR-10 in {tmp_path})" and (len(train), len(test)) == (12, 2)
    assert train.fingerprint == draw_shapes(12, seed=0).fingerprint
    assert data_overrides(str(tmp_path)) == ["data=shapes", "data.train_size=50000", "data.test_size=10000"]


def test_drawn_images_repeat_where_fewer_are_enough(tmp_path):
    _, train, _ = read_images(str(tmp_path), 5, drawn=2)
    assert train.fingerprint == draw_shapes(2, seed=0)[[0, 1, 0, 1, 0]].fingerprint


@pytest.mark.cifar10
def test_cifar10_is_used_where_it_is(cifar10_root):
    name, train, test = read_images(str(cifar10_root), 10)
    assert name == "cifar10" and (len(train), len(test)) == (10, 2)
    assert data_overrides(str(cifar10_root)) == [f"data.root={cifar10_root}", "data.download=false"]


@pytest.fixture
def part(monkeypatch, tmp_path):
    """Measure a part whose command is a Python program; returns what was found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "FOLDER", tmp_path)

    def measure(program, limit=60.0):
        (tmp_path / "program.py").write_text(program)
        monkeypatch.setitem(gpu.PARTS, "mine", gpu.Part("", limit, ("program", "begin"), ("report", "root")))
        return gpu._measure("mine", limit, argparse.Namespace(root="here", peer=None))

    return measure


def test_a_part_s_report_is_its_figures(part):
    found = part("import sys, json\nopen(sys.argv[3], 'w').write(json.dumps({'arguments': sys.argv[1:]}))")
    assert found["arguments"][::2] == ["begin", found["arguments"][2], "here"] and "not measured" not in found
    assert found["arguments"][1:4:2] == ["--json", "--root"] and found["seconds with start"] > 0


def test_a_part_that_fails_or_takes_too_long_says_so(part):
    assert part("import sys\nsys.exit('no luck')")["not measured"] == "exit code 1; last line: no luck"
    assert part("import time\ntime.sleep(60)", limit=0.5)["not measured"].startswith("stopped after 0 s; last line:")


def test_every_part_takes_options_that_there_are():
    assert {option for part in gpu.PARTS.values() for option in part.takes} == {"report", "root", "peer", "overrides"}
