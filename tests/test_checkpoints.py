"""After any damage to a run's files, the same command ends with an undisturbed run's weights, or with one error."""

import hashlib
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from disk import restore, watched
from in_process import STEPS, assert_same_run, checkpoint, make_run, result

from cifarbn.errors import UserError
from cifarbn.runs.checkpoints import CHECKSUMS, forget_previous, newest_intact, verify, write_checkpoint
from cifarbn.runs.folder import remove_leftovers
from cifarbn.runs.load import load_run
from cifarbn.runs.old_names import METRICS_STATE

RAW = "record.last_layer_gradients.raw=true"


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """An undisturbed run's folder, and what cuts at many moments of it would have left."""
    root = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as monkeypatch, watched(root, monkeypatch) as disk:
        make_run(root / "train" / "run", RAW)
    return root / "train" / "run", disk.cuts


@pytest.fixture(scope="module")
def undisturbed(cuts):
    return cuts[0]


@pytest.fixture(scope="module")
def after_six_steps(cuts, tmp_path_factory):
    """What a kill behind the sixth step leaves on the disk: a last checkpoint and the one before."""
    root = tmp_path_factory.mktemp("six")
    for kind, cut in cuts[1]:
        if kind == "all" and "train/run/previous.ckpt" in cut:
            restore(cut, root)
            if newest_intact(root / "train" / "run", repair=False).steps == 6:
                return cut
    raise AssertionError("no such moment")


@pytest.fixture
def cut_off(after_six_steps, tmp_path):
    """The folder of a run that was killed behind its sixth step."""
    restore(after_six_steps, tmp_path)
    return tmp_path / "train" / "run"


def test_no_cut_loses_more_than_the_steps_since_the_checkpoint_before(cuts, tmp_path):
    saved = 0
    for number, (kind, cut) in enumerate(cuts[1]):
        root = tmp_path / str(number)
        restore(cut, root)
        folder = root / "train" / "run"
        if kind == "all":  # a killed program loses nothing that has its name
            found = newest_intact(folder, repair=False)
            saved = max(saved, found.steps if found else 0)
            assert not found or found.path.name == "last.ckpt" or not (folder / "last.ckpt").exists()
        else:
            found = newest_intact(folder, repair=False)
            assert (found.steps if found else 0) >= saved - 1, (number, kind)
    assert saved == STEPS


def test_after_a_cut_at_any_moment_the_same_command_ends_like_the_undisturbed_run(cuts, tmp_path):
    undisturbed, moments = cuts
    for number in sorted(random.Random(0).sample(range(len(moments)), 10)):
        kind, cut = moments[number]
        root = tmp_path / str(number)
        restore(cut, root)
        folder = root / "train" / "run"
        make_run(folder, RAW)
        assert_same_run(folder, undisturbed)
        raw = [np.load(f / "last_layer_gradients.npy") for f in (folder, undisturbed)]
        np.testing.assert_array_equal(*raw, err_msg=f"{number} {kind}")
        assert not list(folder.glob(".*.tmp")), "what the cut left is cleared away"


def damage(file, offset):
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(content)


def truncate(file, length):
    file.write_bytes(file.read_bytes()[:length])


def test_a_flipped_byte_and_a_lost_end_are_found_wherever_they_are(cut_off):
    file = cut_off / "last.ckpt"
    whole = file.read_bytes()
    assert newest_intact(cut_off, repair=False).path == file
    places = [0, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 60)]
    for damaging in (damage, truncate):
        for place in places:
            file.write_bytes(whole)
            damaging(file, place)
            found = newest_intact(cut_off, repair=False)
            assert (found.path, found.steps) == (cut_off / "previous.ckpt", 5)
            assert found.notes == (
                "last.ckpt is damaged (its checksum differs from checkpoints.sha256); it is kept as "
                "last.ckpt.unusable; continuing from previous.ckpt, step 5"
            )


@pytest.mark.parametrize("damaging", [lambda f: damage(f, 200_000), lambda f: truncate(f, 0), lambda f: f.unlink()])
def test_a_run_whose_last_checkpoint_is_damaged_continues_from_the_one_before(undisturbed, cut_off, damaging, capsys):
    damaging(cut_off / "last.ckpt")
    make_run(cut_off, RAW)
    assert_same_run(cut_off, undisturbed)
    (output,) = result(cut_off)["recovery"]
    assert output in capsys.readouterr().out and "continuing from previous.ckpt, step 5" in output


def test_without_a_usable_checkpoint_the_run_starts_again_reports_it_and_keeps_both(undisturbed, cut_off, capsys):
    damage(cut_off / "last.ckpt", 1000)
    truncate(cut_off / "previous.ckpt", 1000)
    make_run(cut_off, RAW)
    assert_same_run(cut_off, undisturbed)
    assert "no usable checkpoint is left: starting from the beginning" in capsys.readouterr().out
    assert (cut_off / "last.ckpt.unusable").exists() and (cut_off / "previous.ckpt.unusable").exists()


def test_a_checkpoint_whose_rows_are_gone_is_not_continued_from(undisturbed, cut_off):
    lines = (cut_off / "metrics.csv").read_bytes().splitlines(keepends=True)
    (cut_off / "metrics.csv").write_bytes(b"".join(lines[:1] + lines[2:]))
    make_run(cut_off, RAW)
    assert_same_run(cut_off, undisturbed)
    assert "metrics.csv lacks rows" in result(cut_off)["recovery"][0]


def test_only_the_rows_of_the_last_checkpoint_are_gone(cut_off):
    content = (cut_off / "metrics.csv").read_bytes()
    counted = [checkpoint(cut_off, name)["callbacks"][METRICS_STATE]["file"] for name in ("last.ckpt", "previous.ckpt")]
    assert counted[0]["bytes"] > counted[1]["bytes"] > 0
    (cut_off / "metrics.csv").write_bytes(content[: counted[1]["bytes"]])
    found = newest_intact(cut_off)
    assert found.path.name == "previous.ckpt" and "metrics.csv lacks rows that last.ckpt refers to" in found.notes


def test_a_folder_from_before_there_were_checksums_is_taken_without(undisturbed, cut_off):
    (cut_off / CHECKSUMS).unlink()
    (cut_off / "previous.ckpt").unlink()
    assert newest_intact(cut_off, repair=False) == newest_intact(cut_off)
    assert (cut_off / CHECKSUMS).exists(), "from now on it has one"
    make_run(cut_off, RAW)
    assert_same_run(cut_off, undisturbed)
    assert "recovery" not in result(cut_off)


def listed(folder):
    return dict(re.findall(r"^(\S{64})  (.+)$", (folder / CHECKSUMS).read_text(), re.MULTILINE))


def test_the_checksums_are_what_sha256sum_prints(tmp_path):
    for step in range(3):
        write_checkpoint(tmp_path / "last.ckpt", {"global_step": step})
    expected = {hashlib.sha256((tmp_path / n).read_bytes()).hexdigest(): n for n in ("last.ckpt", "previous.ckpt")}
    assert listed(tmp_path) == expected
    assert [checkpoint(tmp_path, name)["global_step"] for name in ("last.ckpt", "previous.ckpt")] == [2, 1]


def test_a_finished_run_has_one_checkpoint_which_predict_checks(undisturbed, cut_off):
    assert list(listed(undisturbed).values()) == ["last.ckpt"] and not (undisturbed / "previous.ckpt").exists()
    verify(undisturbed / "last.ckpt")
    forget_previous(cut_off)
    assert list(listed(cut_off).values()) == ["last.ckpt"]
    verify(cut_off / "last.ckpt")
    damage(cut_off / "last.ckpt", 5000)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*checkpoints\.sha256"):
        verify(cut_off / "last.ckpt")


def test_predict_refuses_a_checkpoint_with_one_flipped_byte(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    load_run(folder)
    whole = (folder / "last.ckpt").read_bytes()
    for place in random.Random(1).sample(range(len(whole)), 20):
        (folder / "last.ckpt").write_bytes(whole)
        damage(folder / "last.ckpt", place)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
            load_run(folder)


def test_a_whole_checkpoint_that_cannot_be_read_is_no_reason_to_start_again(tmp_path):
    write_checkpoint(tmp_path / "last.ckpt", {"no": "step"})
    with pytest.raises(UserError, match="is intact, but this version of torch cannot read it"):
        newest_intact(tmp_path)
    assert (tmp_path / "last.ckpt").exists()


def test_only_our_own_leftovers_are_removed(tmp_path):
    ours = (".last.ckpt.0a1b2c3d.tmp", ".recordings.npz.0a1b2c3d.tmp", ".last.ckpt.tmp")  # the last of an old version
    for name in (*ours, "mine.tmp", ".mine.tmp", "last.ckpt"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"mine.tmp", ".mine.tmp", "last.ckpt"}


def test_a_checkpoint_is_streamed_and_leaves_the_temp_folder_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    make_run(tmp_path / "run", "epochs=1")
    assert checkpoint(tmp_path / "run")["global_step"] == 4


def test_a_full_disk_keeps_its_error_the_old_checkpoints_and_no_temporary_file(tmp_path, monkeypatch):
    for step in range(2):
        write_checkpoint(tmp_path / "last.ckpt", {"global_step": step})
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    (tmp_path / ".last.ckpt.0.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_checkpoint(tmp_path / "last.ckpt", {"global_step": 2, "weights": torch.zeros(100_000)})
    assert caught.value.errno == 28 and caught.value.filename == str(tmp_path / "last.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == [CHECKSUMS, "last.ckpt", "previous.ckpt"]
    assert newest_intact(tmp_path).steps == 1


def test_the_checkpoint_before_the_last_counts_until_it_is_replaced(tmp_path, monkeypatch):
    last = tmp_path / "last.ckpt"
    for step in (1, 2):
        write_checkpoint(last, {"global_step": step})
    replace = os.replace

    def cut(old, new):
        if Path(new).name == "previous.ckpt":
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", cut)
        write_checkpoint(last, {"global_step": 3})
    damage(last, 100)
    assert newest_intact(tmp_path).path == tmp_path / "previous.ckpt"
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)["global_step"] == 1
