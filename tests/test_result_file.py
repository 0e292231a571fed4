"""result.json from untrusted sources: a valid result, or one line that names the file and the field."""

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cifarbn.errors import UserError
from cifarbn.report import table
from cifarbn.report.gather import gather
from cifarbn.runs.result_file import overwrite_result, read_result, write_result
from cifarbn.runs.schema import COLUMNS, check_result, throughout

START = {"step": 0, "device": "a CPU", "devices": 1, "precision": "32-true", "compile": "", "versions": {"torch": "2"}}
RESULT: dict[str, Any] = {
    "status": "done",
    "error": None,
    "overrides": ["model=vgg_a"],
    "config": {
        "data": {"_target_": "cifarbn.data.Shapes", "batch_size": 5},
        "model": {"_target_": "cifarbn.models.VGG", "num_classes": 2},
        "optim": {"lr": 0.1},
        "seed": 0,
        "epochs": 1,
        "target": 0.5,
        "source": None,
    },
    "code": {"cifarbn.train": "abc"},
    "metrics": {"test/acc": 0.5, "val/loss": float("nan")},
    "steps": 3,
    "parameters": 7,
    "seconds": {"total": 1.5},
    "images_per_second": None,
    "device": "a CPU",
    "channels_last": True,
    "compile": False,
    "data": {"name": "shapes", "classes": ["a", "b"], "train_size": 4, "mean": [0.5, 0.5, 0.5]},
    "versions": {"torch": "2"},
    "git_commit": None,
    "starts": [START],
    "confusion": [[1, 2], [3, 4]],
    "divergence": {"step": 3, "lr": 0.1, "grad_norm": None},
}


def test_a_result_is_given_back_as_it_is(tmp_path):
    write_result(tmp_path / "result.json", RESULT)
    assert json.dumps(read_result(tmp_path)) == json.dumps(RESULT)
    assert read_result(tmp_path / "nowhere") is None


def test_a_changed_result_is_an_error_until_its_checksum_is_deleted(tmp_path):
    file = tmp_path / "result.json"
    write_result(file, RESULT | {"steps": 7})
    file.write_text(file.read_text().replace('"steps": 7', '"steps": 8'))
    with pytest.raises(UserError, match="its checksum differs.*delete the line with `checksum`"):
        read_result(tmp_path)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if '"checksum"' not in line))
    assert read_result(tmp_path)["steps"] == 8


def paths(node, path=()):
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from paths(child, (*path, key))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(paths(RESULT))), anything)
@example(("steps",), float("inf"))
@example(("metrics", "test/acc"), 10**400)
@example(("overrides",), ["\ud800"])
@example(("config", "model"), None)
@example(("confusion",), [])
@example(("confusion",), [[1, 2]])
def test_any_value_in_place_of_any_field_gives_a_result_or_one_line(tmp_path_factory, path, value):
    result: Any = copy.deepcopy(RESULT)
    node = result
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    folder = tmp_path_factory.getbasetemp() / "anything"
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    try:
        read = read_result(folder)
    except UserError as error:
        assert str(error).startswith(f"{folder}/result.json is not a valid result")
        assert "\n" not in str(error) and str(error).isprintable()
    else:
        assert isinstance(read["status"], str) and isinstance(read["config"], dict)
        assert all(isinstance(number, int | float) for number in read["metrics"].values())
        assert all(isinstance(override, str) for override in read["overrides"])
        json.dumps(read, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "finished"}, "'status' takes one of new, running"),
        ({"metrics": {"test/acc": "0.5"}}, "'metrics.test/acc' takes a number, not '0.5'"),
        ({"seconds": {"total": float("nan")}}, "'seconds.total' takes a number, not nan"),
        ({"steps": True}, "'steps' takes a whole number, not True"),
        ({"steps": 2**63}, "'steps' has more than 64 bits"),
        ({"config": {"seed": "0"}}, "'config.seed' takes a whole number or null, not '0'"),
        ({"config": {"model": 3}}, "'config.model' takes a group of fields, not 3"),
        ({"starts": [START, 5]}, "'starts.1' takes a group of fields, not 5"),
        ({"confusion": [[1, 2, 3], [1, 2, 3], [1, 2, 3]]}, "'confusion' is not a square"),
        ({"overrides": ["\ud800"]}, "'overrides.0' holds invalid Unicode"),
    ],
)
def test_the_field_is_named(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_result(RESULT | change)


@pytest.mark.parametrize("text", ["", "\0\0\0", "{", "[" * 100_000, "5", "null", '{"status": "done"}', "\xff"])
def test_what_is_no_result(tmp_path, text):
    (tmp_path / "result.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"result\.json is not a valid result.*delete the folder") as raised:
        read_result(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path):
    (tmp_path / "folder" / "result.json").mkdir(parents=True)
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "result.json")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "result.json").symlink_to("result.json")
    for name in ("folder", "fifo", "loop"):
        with pytest.raises(UserError, match=r"result\.json"):
            read_result(tmp_path / name)


def test_a_result_is_overwritten_only_inside_its_own_space(tmp_path):
    file = tmp_path / "result.json"
    write_result(file, RESULT)
    assert overwrite_result(file, RESULT | {"status": "failed"})
    assert read_result(tmp_path)["status"] == "failed"
    before = file.read_bytes()
    assert not overwrite_result(file, RESULT | {"error": "x" * 100_000})
    assert file.read_bytes() == before


def test_the_report_s_device_is_that_of_every_start(tmp_path):
    starts = [START, START | {"step": 2, "precision": "bf16-mixed"}]
    (tmp_path / "run").mkdir()
    write_result(tmp_path / "run" / "result.json", RESULT | {"metrics": {"test/acc": 0.5}, "starts": starts})
    (tmp_path / "run" / "metrics.csv").write_text(",".join(COLUMNS) + "\n")
    sweep = gather(tmp_path)
    assert table.devices(sweep) == ["a CPU, 32-true and bf16-mixed"]
    (row,) = table.run_rows(sweep)
    assert row["device"] == "a CPU" and row["precision"] == "32-true and bf16-mixed"


def test_a_fact_is_told_of_every_start():
    starts = [START, START, START | {"precision": "bf16-mixed", "git_commit": None}]
    assert throughout({"starts": starts, "precision": "bf16-mixed"}, "precision") == "32-true and bf16-mixed"
    assert throughout({"precision": "bf16-mixed"}, "precision") == "bf16-mixed"
    assert throughout({"starts": starts}, "git_commit") is None
