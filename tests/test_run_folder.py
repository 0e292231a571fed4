import errno
import fcntl
import json
import os
import re
import shutil
import string
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_longer import train_run

from cifarbn.errors import Diverged, Interrupted, RunConflict, RunLocked, UserError
from cifarbn.runs.folder import Run, find_runs
from cifarbn.runs.identity import LONGEST_NAME, differences, folder_name
from cifarbn.runs.old_names import ADDED
from cifarbn.runs.result_file import read_result

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
    with run.track_status():
        run.update(metrics={"test/acc": 0.5})
    return run


def test_a_finished_run_is_left_alone(tmp_path):
    finished(tmp_path / "run")
    again = Run.open(tmp_path / "run", CONFIG, [])
    assert again.finished and again.result["metrics"] == {"test/acc": 0.5}


def test_result_says_nothing_of_the_machine_s_paths(tmp_path):
    finished(tmp_path / "run")
    assert "/here" not in (tmp_path / "run" / "result.json").read_text()


def test_a_run_of_an_older_version_lacks_the_keys_that_have_come_since(tmp_path):
    finished(tmp_path, CONFIG | {"trainer": {"compile": "auto"}})
    added = {key.removeprefix("trainer."): value for key, value in ADDED.items() if key.startswith("trainer.")}
    now = CONFIG | {"trainer": {"compile": "auto", **added}}
    assert Run.open(tmp_path, now, []).finished
    now["trainer"]["cuda_graphs"] = False
    with pytest.raises(RunConflict, match="trainer.cuda_graphs: 'auto' -> False"):
        Run.open(tmp_path, now, [])


def test_a_run_of_an_older_version_has_the_old_names_of_layers(tmp_path):
    old, new = "cifarbn.models.BatchNorm2d", "torch.nn.BatchNorm2d"
    nested = {"model": {"norm": {"_target_": old}}, "layers": [{"_target_": old}]}
    finished(tmp_path, CONFIG | nested)
    assert Run.open(tmp_path, json.loads(json.dumps(CONFIG | nested).replace(old, new)), []).finished


def test_another_config_in_the_same_folder_is_an_error_with_the_remedy(tmp_path):
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
    with fresh.track_status():
        pass
    assert list(find_runs(tmp_path)) == [tmp_path / "run"], "what was replaced is no longer found"


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted(), "interrupted"), (KeyboardInterrupt(), "interrupted"), (ValueError("x"), "failed")],
)
def test_status_tells_how_it_ended(tmp_path, error, status):
    run = Run.open(tmp_path, CONFIG, [])
    with pytest.raises(ValueError if status == "failed" else Interrupted), run.track_status():
        assert read_result(tmp_path)["status"] == "running", "what a killed run leaves"
        raise error
    assert read_result(tmp_path)["status"] == status
    assert not Run.open(tmp_path, CONFIG, []).finished


def test_divergence_is_a_result(tmp_path):
    run = Run.open(tmp_path, CONFIG, [])
    with run.track_status():
        raise Diverged(7, 0.1, 3.0)
    result = read_result(tmp_path)
    assert result["status"] == "diverged"
    assert result["divergence"] == {"step": 7, "lr": 0.1, "grad_norm": 3.0}
    assert Run.open(tmp_path, CONFIG, []).finished


def test_a_checkpoint_that_is_none_is_named_and_kept_and_the_run_starts_again(tmp_path, capsys):
    run = Run.open(tmp_path, CONFIG, [])
    with pytest.raises(Interrupted), run.track_status():
        raise Interrupted
    (tmp_path / "last.ckpt").write_text("no checkpoint")
    again = Run.open(tmp_path, CONFIG, [])
    assert again.checkpoint is None and again.steps == 0
    assert "last.ckpt is damaged, or not a checkpoint" in capsys.readouterr().out
    assert (tmp_path / "last.ckpt.unusable").read_text() == "no checkpoint"
    with again.track_status():
        pass
    (output,) = read_result(tmp_path)["recovery"]
    assert "last.ckpt is damaged, or not a checkpoint" in output and "starting from the beginning" in output


class Bomb:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    run = Run.open(tmp_path, CONFIG, [])
    with pytest.raises(Interrupted), run.track_status():
        raise Interrupted
    torch.save({"global_step": 1, "bomb": Bomb()}, tmp_path / "last.ckpt")
    assert Run.open(tmp_path, CONFIG, []).checkpoint is None
    output = capsys.readouterr().out
    assert "not a checkpoint" in output and "ran" not in output


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is not a valid result"):
        read_result(tmp_path)


def test_result_is_replaced_whole(tmp_path):
    run = finished(tmp_path)
    run.update(steps=3)
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 3
    assert not list(tmp_path.glob("*.tmp"))


CODE = {"cifarbn.models.vgg": "1", "cifarbn.train": "2"}


def test_code_that_changed_is_an_error_by_name(tmp_path):
    (tmp_path / "run").mkdir()
    with Run.open(tmp_path / "run", CONFIG, [], CODE).track_status():
        pass
    assert Run.open(tmp_path / "run", CONFIG, [], CODE).finished
    with pytest.raises(RunConflict, match=r"changed: cifarbn\.models\.vgg\).*on_code_change=accept.*name=OTHER"):
        Run.open(tmp_path / "run", CONFIG, [], CODE | {"cifarbn.models.vgg": "3"})
    assert Run.open(tmp_path / "run", CONFIG, [], {}, on_code_change="accept").finished


def test_a_failed_run_is_tried_again_also_by_the_code_that_mends_it(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError), Run.open(tmp_path / "run", CONFIG, [], CODE).track_status():
        raise ValueError
    assert Run.open(tmp_path / "run", CONFIG, [], CODE, retry=False).finished
    mended = Run.open(tmp_path / "run", CONFIG, [], {"cifarbn.train": "3"})
    assert not mended.finished and mended.result["code"] == {"cifarbn.train": "3"}


def test_a_folder_is_open_to_one_at_a_time(tmp_path):
    (tmp_path / "run").mkdir()
    first = Run.open(tmp_path / "run", CONFIG, [])
    with pytest.raises(RunLocked, match="in use"):
        Run.open(tmp_path / "run", CONFIG, [])
    with first.track_status(), pytest.raises(RunLocked):
        Run.open(tmp_path / "run", CONFIG, [], resume=False)
    assert Run.open(tmp_path / "run", CONFIG, []).finished


def test_changed_code_is_one_of_two_words(tmp_path):
    with pytest.raises(UserError, match="on_code_change must be error or accept, not 'yes'"):
        Run.open(tmp_path, CONFIG, [], on_code_change="yes")


# The content of a folder.


def test_no_command_writes_where_the_project_keeps_its_records():
    root = Path(__file__).parents[1]
    listed = subprocess.run(["git", "ls-files", "multirun_outputs"], cwd=root, capture_output=True, text=True)
    files = [Path(line) for line in listed.stdout.splitlines()]
    if listed.returncode or not files:
        pytest.skip("no checkout with records")
    assert [file for file in files if not file.parts[1].endswith(".record")] == [Path("multirun_outputs/README.md")]
    names = [OmegaConf.load(file).get("name", "") for file in (root / "conf").rglob("*.yaml")]
    assert not [name for name in names if name and name.endswith(".record")]
    for folder in {file.parent for file in files if file.name == "result.json"}:
        assert read_result(root / folder)["status"] in ("done", "diverged"), folder


THEIRS = {"metrics.csv": "theirs", "recordings.npz": "theirs", "notes.tmp": "theirs", "last.ckpt": "theirs"}


def filled(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", [*THEIRS, "result.json"])
def test_a_folder_of_the_user_s_is_an_error_and_left_alone(tmp_path, name, resume):
    folder = tmp_path / "run"
    filled(folder, {name: THEIRS.get(name, '{"accuracy": 0.9}'), "train.log": ""})
    (folder / ".hydra").mkdir()
    before = content(folder)
    with pytest.raises(RunConflict, match=r"(cifarbn did not write|not a valid result).*name=OTHER"):
        Run.open(folder, CONFIG, [], resume=resume)
    assert content(folder) == before and not (tmp_path / ".replaced").exists()


def test_what_hydra_has_just_written_is_no_hindrance(tmp_path):
    filled(tmp_path / "run", {"train.log": "", ".result.json.0a1b2c3d.tmp": "left by a kill"})
    (tmp_path / "run" / ".hydra").mkdir()
    finished(tmp_path / "run")


def test_only_the_run_s_own_files_are_removed_or_moved(tmp_path):
    folder = tmp_path / "run"
    run = Run.open(folder, CONFIG, [])
    with pytest.raises(ValueError), run.track_status():
        raise ValueError
    ours = ("metrics.csv", "recordings.npz", "events.out.tfevents.1.x.2.0", "previous.ckpt", "checkpoints.sha256")
    filled(folder, dict.fromkeys(ours[:3], "ours") | {"notes.tmp": "theirs", "my.csv": "theirs"})
    finished(folder)  # from scratch, since it has no checkpoint
    assert {"notes.tmp", "my.csv"} == set(content(folder)) - {"result.json", ".run.json"}
    filled(folder, dict.fromkeys(ours, "ours") | {"last.ckpt": "ours"})
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("seed: 0")
    Run.open(folder, CONFIG, [], resume=False)
    assert set(content(folder)) == {"notes.tmp", "my.csv"} and (folder / ".hydra" / "config.yaml").exists()
    kept = tmp_path / ".replaced" / "run.1"
    assert set(content(kept)) == {*ours, "last.ckpt", "result.json", ".run.json"}
    assert (kept / ".hydra" / "config.yaml").read_text() == "seed: 0"


@pytest.mark.parametrize(
    "name", ["result.json", "metrics.csv", "last.ckpt", ".result.json.0.tmp", ".hydra", "train.log"]
)
def test_a_link_among_a_run_s_own_files_is_an_error(tmp_path, name):
    (tmp_path / "run").mkdir()
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    (tmp_path / "run" / name).symlink_to(outside)
    with pytest.raises(RunConflict, match=f"{name} is a link.*Remove the link, or use name=OTHER"):
        Run.open(tmp_path / "run", CONFIG, [])
    assert outside.read_text() == "theirs"


def test_a_folder_that_is_a_link_is_as_good_as_any(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large disk")
    finished(tmp_path / "run")
    assert read_result(tmp_path / "large disk")["status"] == "done"


def test_folders_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Run.open(Path("out/run"), CONFIG, []).track_status():
        pass
    assert read_result(tmp_path / "out" / "run")["status"] == "done"


@pytest.mark.parametrize("damage", [b"", b"\0" * 400, b"{", b"5", None])
def test_a_result_that_a_power_cut_has_damaged(tmp_path, capsys, damage):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted), Run.open(folder, CONFIG, ["seed=0"], CODE).track_status():
        raise Interrupted
    (folder / "metrics.csv").write_text("ours")
    if damage is None:
        (folder / "result.json").unlink()
    else:
        (folder / "result.json").write_bytes(damage)
    with pytest.raises(RunConflict, match=r"optim\.lr: 0\.1 -> 0\.2"):
        Run.open(folder, {**CONFIG, "optim": {"lr": 0.2}}, [], CODE)
    capsys.readouterr()
    assert Run.open(folder, CONFIG, ["seed=0"], CODE).checkpoint is None
    assert re.search(r"warning: .*result\.json is .*\.run\.json and starting from scratch\n$", capsys.readouterr().err)
    torch.save({"global_step": 7}, folder / "last.ckpt")
    run = Run.open(folder, CONFIG, ["seed=0"], CODE)
    assert run.steps == 7 and run.checkpoint == folder / "last.ckpt"
    assert "continuing from" in capsys.readouterr().err and (folder / "metrics.csv").exists()
    with run.track_status():
        pass
    assert read_result(folder)["overrides"] == ["seed=0"] and read_result(folder)["status"] == "done"


# Changes of the folder during a run.


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("error", [None, FileNotFoundError(2, "No such file", "metrics.csv"), Interrupted()])
def test_a_folder_that_is_removed_or_replaced_meanwhile_ends_its_run(tmp_path, replaced, error):
    folder = tmp_path / "run"
    run = Run.open(folder, CONFIG, [])
    with pytest.raises(UserError, match="was removed or replaced during its run"), run.track_status():
        shutil.rmtree(folder)
        if replaced:
            folder.mkdir()
        if error:
            raise error
    assert run.result["status"] == "failed"
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
def test_a_fault_of_the_machine_s_is_one_message_and_a_failed_run(tmp_path, number):
    folder = tmp_path / "run"
    run = Run.open(folder, CONFIG, [])
    with pytest.raises(UserError, match=os.strerror(number)) as raised, run.track_status():
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    result = read_result(folder)
    assert result["status"] == "failed" and os.strerror(number) in result["error"]
    assert str(tmp_path) not in (folder / "result.json").read_text()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a small disk; the fixture fills it up to a given number of free kilobytes and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk of its own can be mounted here: {mounted.stderr.decode().strip()}")

    def leave(kilobytes):
        with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
            while file.write(b"0" * 1024):
                pass
        os.truncate(folder / "ballast", (folder / "ballast").stat().st_size // 4096 * 4096 - 1024 * kilobytes)
        return folder

    yield leave
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_on_a_full_disk_the_result_is_overwritten_in_its_place(small_disk):
    folder = small_disk(64) / "run"
    run = Run.open(folder, CONFIG, [])
    with pytest.raises(UserError, match=r"No space left on device; free some space"), run.track_status():
        small_disk(0)
        (folder / ".metrics.csv.0a1b2c3d.tmp").touch()
        with (folder / "metrics.csv").open("wb") as file:
            file.write(b"0" * 100_000)
    result = read_result(folder)
    assert result["status"] == "failed" and "No space left on device" in result["error"]
    assert result["config"]["seed"] == 0
    assert not list(folder.glob(".*.tmp"))
    (folder.parent / "ballast").unlink()
    finished(folder)


def test_a_run_whose_last_result_alone_does_not_fit_is_done_if_it_fits_in_its_place(small_disk):
    folder = small_disk(64) / "run"
    with Run.open(folder, CONFIG, []).track_status():
        small_disk(0)
    assert read_result(folder)["status"] == "done"
    run = Run.open(folder, CONFIG, [], resume=False)
    (folder.parent / "ballast").unlink()
    small_disk(64)
    with pytest.raises(UserError, match="No space left"), run.track_status():
        small_disk(0)
        run.result["metrics"] = {f"test/acc{i}": 0.5 for i in range(1000)}
    assert read_result(folder)["status"] == "failed"


def test_a_disk_that_is_full_from_the_start(small_disk):
    run = Run.open(small_disk(0) / "run", CONFIG, [])
    with pytest.raises(UserError, match="No space left"), run.track_status():
        raise AssertionError("the run has begun")
    assert run.result["status"] == "failed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's, raised here too
@pytest.mark.parametrize("kilobytes", [24, 150])
def test_wherever_a_real_run_fills_the_disk_there_is_one_message_and_the_same_command_continues(small_disk, kilobytes):
    folder = small_disk(kilobytes) / "run"
    few = ["epochs=1", "model=vgg_a", "model.width=2", "data.train_size=64", "data.test_size=10", "data.val_size=0"]
    with pytest.raises(UserError, match="No space left on device; free some space") as raised:
        train_run(folder, *few)
    assert "\n" not in str(raised.value)
    assert (read_result(folder) or {}).get("status", "failed") == "failed"
    (folder.parent / "ballast").unlink()
    assert train_run(folder, *few)["status"] == "done"


def test_a_disk_that_becomes_read_only(small_disk):
    folder = small_disk(64) / "run"
    run = Run.open(folder, CONFIG, [])
    with pytest.raises(UserError, match="Read-only file system; check the path and its permissions"):
        with run.track_status():
            run._lock.release()  # a file that is open for writing keeps a disk from becoming read-only
            subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
            (folder / "metrics.csv").write_text("x")
    assert run.result["status"] == "failed"


def test_a_lock_that_cannot_be_opened(tmp_path):
    (tmp_path / ".locks").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot read or write .*\.locks.*: .*name=OTHER"):
        Run.open(tmp_path / "run", CONFIG, [])


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    finished(tmp_path / "run")
    assert Run.open(tmp_path / "run", CONFIG, []).finished
    assert capsys.readouterr().err.count("does not support locks") == 1


def test_a_clock_that_is_set_back_changes_no_duration(tmp_path, monkeypatch):
    run = Run.open(tmp_path / "run", CONFIG, [])
    with run.track_status():
        monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= run.result["seconds"]["total"] < 60


def test_an_error_s_text_names_no_folder_of_the_machine_s(tmp_path):
    folder = tmp_path / "my runs" / "run"
    output = f"cannot read {folder}/x.npz, {Path.home()}/data/y or '/srv/a b/z': damaged"
    with pytest.raises(UserError), Run.open(folder, CONFIG, ["data.root=/srv/data", "seed=0"]).track_status():
        raise UserError(output)
    result = read_result(folder)
    assert result["error"] == "cannot read x.npz, y or 'z': damaged"
    assert result["overrides"] == ["seed=0"]


# How a run ends.


def test_another_program_s_exit_passes_unchanged(tmp_path):
    exit = SystemExit(3)
    with pytest.raises(SystemExit) as raised, Run.open(tmp_path / "run", CONFIG, []).track_status():
        raise exit
    assert raised.value is exit
    assert read_result(tmp_path / "run")["status"] == "interrupted"


def test_the_exit_that_lightning_makes_of_ctrl_c_is_an_interruption(tmp_path):
    with pytest.raises(Interrupted), Run.open(tmp_path / "run", CONFIG, []).track_status():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)


def test_every_start_is_recorded_with_what_it_computed_with(tmp_path):
    folder = tmp_path / "run"

    def start(precision, steps):
        run = Run.open(folder, CONFIG, [])
        with pytest.raises(Interrupted), run.track_status():
            run.started(device="a CPU", accelerator="cpu", precision=precision)
            torch.save({"global_step": steps}, folder / "last.ckpt")
            raise Interrupted

    def starts():
        return [(start["step"], start["precision"]) for start in read_result(folder)["starts"]]

    start("bf16-mixed", 5)
    start("32-true", 5)
    assert starts() == [(0, "bf16-mixed"), (5, "32-true")]
    start("64-true", 8)
    assert starts() == [(0, "bf16-mixed"), (5, "64-true")], "of the second start no step is left"
    assert read_result(folder)["precision"] == "64-true"
    assert set(read_result(folder)["starts"][0]) == {"step", "device", "precision", "versions", "git_commit"}
    (folder / "last.ckpt").unlink()
    start("32-true", 3)
    assert starts() == [(0, "32-true")]


def test_a_start_of_an_older_version_is_recorded_too(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted), Run.open(folder, CONFIG, []).track_status():
        raise Interrupted
    result = read_result(folder) | {"device": "a GPU", "precision": "16-mixed"}
    del result["starts"]
    (folder / "result.json").write_text(json.dumps(result))
    torch.save({"global_step": 5}, folder / "last.ckpt")
    run = Run.open(folder, CONFIG, [])
    with run.track_status():
        run.started(device="a CPU", precision="32-true")
    told = [(start["step"], start["device"], start["precision"]) for start in read_result(folder)["starts"]]
    assert told == [(0, "a GPU", "16-mixed"), (5, "a CPU", "32-true")]


def test_the_seconds_are_those_of_all_starts(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for end in (Interrupted, None):
        run = Run.open(tmp_path / "run", CONFIG, [])
        with pytest.raises(Interrupted) if end else nullcontext(), run.track_status():
            clock[0] += 50
            run.update(seconds={"train": 1.0})
            torch.save({"global_step": 5}, tmp_path / "run" / "last.ckpt")
            if end:
                raise end
    assert read_result(tmp_path / "run")["seconds"] == {"train": 1.0, "total": 100.0}


def test_a_config_that_no_reader_could_use_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="^'target' takes a number or null, not 'high'"):
        Run.open(tmp_path / "run", {**CONFIG, "target": "high"}, [])
    assert not list(tmp_path.iterdir())


def test_runs_on_other_image_folders_have_other_names():
    one, two = (folder_name(["data=folder", f"data.root=/home/jane/{name}"]) for name in ("cats", "dogs"))
    assert (one, two) == ("data.root=cats,data=folder", "data.root=dogs,data=folder")
    assert folder_name(["data=cifar10", "data.root=/home/jane/data"]) == "data=cifar10"
