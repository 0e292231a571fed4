import json
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarbn.errors import Diverged, Interrupted, MadeElsewhere, Refused, UserError
from cifarbn.runs import LONGEST_NAME, Run, differences, find_runs, folder_name, read_result

CONFIG = {"optim": {"lr": 0.1}, "seed": 0, "resume": True, "data": {"root": "/here", "val_size": 5}}


def test_folder_name_is_the_overrides():
    assert folder_name(["model=vgg_a", "optim.lr=1e-3"]) == "model=vgg_a,optim.lr=1e-3"
    assert folder_name([]) == "defaults"


def test_folder_name_does_not_depend_on_order_or_on_how_the_run_is_carried_out():
    assert folder_name(["b=2", "a=1", "resume=false", "data.root=/x", "name=n"]) == folder_name(["a=1", "b=2"])


overrides = st.lists(
    st.tuples(st.text(string.ascii_lowercase + "._/", min_size=1), st.text(min_size=1)).map("=".join), unique=True
)


@given(overrides, overrides)
def test_folder_names_are_safe_short_and_never_clash(first, second):
    one, two = folder_name(first), folder_name(second)
    assert set(one) <= set(string.ascii_letters + string.digits + "_=,.+~-")
    assert len(one) <= LONGEST_NAME + 9
    assert one not in (".", "..")
    kept = [sorted(o for o in some if folder_name([o]) != "defaults") for some in (first, second)]
    assert (one == two) == (kept[0] == kept[1])


def test_differences_name_the_nested_key():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 -> 3"]


def finished(folder, config=CONFIG):
    folder.mkdir(exist_ok=True)
    run = Run.open(folder, config, [])
    with run.recorded():
        run.update(metrics={"test/acc": 0.5})
    return run


def test_a_finished_run_is_left_alone(tmp_path):
    finished(tmp_path / "run")
    again = Run.open(tmp_path / "run", CONFIG, [])
    assert again.finished and again.result["metrics"] == {"test/acc": 0.5}


def test_result_says_nothing_of_the_machine_s_paths(tmp_path):
    finished(tmp_path / "run")
    assert "/here" not in (tmp_path / "run" / "result.json").read_text()


def test_another_config_in_the_same_folder_is_refused_with_the_remedy(tmp_path):
    finished(tmp_path / "run")
    with pytest.raises(UserError, match=r"optim\.lr: 0\.1 -> 0\.2.*name=OTHER.*resume=false"):
        Run.open(tmp_path / "run", {**CONFIG, "optim": {"lr": 0.2}}, [])


def test_starting_afresh_keeps_the_old_run(tmp_path):
    finished(tmp_path / "run")
    (tmp_path / "run" / ".hydra").mkdir()
    fresh = Run.open(tmp_path / "run", CONFIG, [], resume=False)
    assert not fresh.finished
    assert (tmp_path / "run" / ".hydra").is_dir()
    assert read_result(tmp_path / ".replaced" / "run.1")["status"] == "done"
    with fresh.recorded():
        pass
    assert list(find_runs(tmp_path)) == [tmp_path / "run"], "what was replaced is no longer found"


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted(), "interrupted"), (KeyboardInterrupt(), "interrupted"), (ValueError("x"), "failed")],
)
def test_status_tells_how_it_ended(tmp_path, error, status):
    run = Run.open(tmp_path, CONFIG, [])
    with pytest.raises(ValueError if status == "failed" else Interrupted), run.recorded():
        assert read_result(tmp_path)["status"] == "running", "what a killed run leaves"
        raise error
    assert read_result(tmp_path)["status"] == status
    assert not Run.open(tmp_path, CONFIG, []).finished


def test_divergence_is_a_result(tmp_path):
    run = Run.open(tmp_path, CONFIG, [])
    with run.recorded():
        raise Diverged(7, 0.1, 3.0)
    result = read_result(tmp_path)
    assert result["status"] == "diverged"
    assert result["divergence"] == {"step": 7, "lr": 0.1, "grad_norm": 3.0}
    assert Run.open(tmp_path, CONFIG, []).finished


def test_a_checkpoint_that_is_none_is_named_and_kept_and_the_run_starts_again(tmp_path, capsys):
    run = Run.open(tmp_path, CONFIG, [])
    with pytest.raises(Interrupted), run.recorded():
        raise Interrupted
    (tmp_path / "last.ckpt").write_text("no checkpoint")
    again = Run.open(tmp_path, CONFIG, [])
    assert again.checkpoint is None and again.steps == 0
    assert "last.ckpt is not a checkpoint" in capsys.readouterr().out
    assert (tmp_path / "last.ckpt.unusable").read_text() == "no checkpoint"
    with again.recorded():
        pass
    (said,) = read_result(tmp_path)["recovery"]
    assert "last.ckpt is not a checkpoint" in said and "starting from the beginning" in said


class Bomb:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    run = Run.open(tmp_path, CONFIG, [])
    with pytest.raises(Interrupted), run.recorded():
        raise Interrupted
    torch.save({"global_step": 1, "bomb": Bomb()}, tmp_path / "last.ckpt")
    assert Run.open(tmp_path, CONFIG, []).checkpoint is None
    said = capsys.readouterr().out
    assert "not a checkpoint" in said and "ran" not in said


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is not a result"):
        read_result(tmp_path)


def test_result_is_replaced_whole(tmp_path):
    run = finished(tmp_path)
    run.update(steps=3)
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 3
    assert not list(tmp_path.glob("*.tmp"))


CODE = {"cifarbn.models.vgg": "1", "cifarbn.train": "2"}


def test_code_that_changed_is_refused_by_name(tmp_path):
    (tmp_path / "run").mkdir()
    with Run.open(tmp_path / "run", CONFIG, [], CODE).recorded():
        pass
    assert Run.open(tmp_path / "run", CONFIG, [], CODE).finished
    with pytest.raises(Refused, match=r"changed: cifarbn\.models\.vgg\).*changed_code=accept.*name=OTHER"):
        Run.open(tmp_path / "run", CONFIG, [], CODE | {"cifarbn.models.vgg": "3"})
    assert Run.open(tmp_path / "run", CONFIG, [], {}, changed_code="accept").finished


def test_a_failed_run_is_tried_again_also_by_the_code_that_mends_it(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError), Run.open(tmp_path / "run", CONFIG, [], CODE).recorded():
        raise ValueError
    assert Run.open(tmp_path / "run", CONFIG, [], CODE, retry=False).finished
    mended = Run.open(tmp_path / "run", CONFIG, [], {"cifarbn.train": "3"})
    assert not mended.finished and mended.result["code"] == {"cifarbn.train": "3"}


def test_a_folder_is_open_to_one_at_a_time(tmp_path):
    (tmp_path / "run").mkdir()
    first = Run.open(tmp_path / "run", CONFIG, [])
    with pytest.raises(MadeElsewhere, match="another process is making"):
        Run.open(tmp_path / "run", CONFIG, [])
    with first.recorded(), pytest.raises(MadeElsewhere):
        Run.open(tmp_path / "run", CONFIG, [], resume=False)
    assert Run.open(tmp_path / "run", CONFIG, []).finished


def test_changed_code_is_one_of_two_words(tmp_path):
    with pytest.raises(UserError, match="changed_code must be refuse or accept, not 'yes'"):
        Run.open(tmp_path, CONFIG, [], changed_code="yes")
