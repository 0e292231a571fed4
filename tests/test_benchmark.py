import json

import pytest

from cifarbn import benchmark


def test_sides_run_in_turn_after_one_uncounted_round_each():
    ran = []
    seconds = benchmark.in_turn(2, {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")})
    assert ran == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [2, 2]


# torch and Python warn of few cores and of forking beside threads; both are torchvision's side.
@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("real", [pytest.param(True, marks=pytest.mark.cifar10), False])
def test_our_loader_is_at_least_5_times_as_fast_as_torchvisions_transforms(tmp_path, capsys, request, real):
    root = request.getfixturevalue("cifar10_root") if real else tmp_path
    file = tmp_path / "report.json"
    benchmark.main(f"data --rounds 3 --pictures 4000 --root {root} --json {file}".split())
    shown, report = capsys.readouterr().out, json.loads(file.read_text())
    assert ("4,000 pictures of cifar10" if real else f"4,000 pictures of shapes (no CIFAR-10 in {root})") in shown
    usual, ours = report["seconds"].values()
    assert len(usual) == len(ours) == 3
    assert min(usual) > 5 * min(ours)
    assert report["device"] and report["versions"]["torch"]


def test_a_file_that_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(
        benchmark, "measure_data", lambda _: {"what": "", "unit": "", "amount": 1, "seconds": {"a": [1.0]}}
    )
    with pytest.raises(SystemExit, match="error: .*no such"):
        benchmark.main(["data", "--json", str(tmp_path / "no such" / "file")])
