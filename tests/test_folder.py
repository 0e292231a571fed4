import shutil

import pytest
import torch
from data_files import write_folder
from PIL import Image

from cifarbn.data import ImageFolder, decoded
from cifarbn.data.class_folders import content_key
from cifarbn.errors import UserError
from cifarbn.report import Options
from cifarbn.report.trained_model import _test_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The default cache folder, in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cifarbn"


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "flowers")


def sizes(data):
    data.setup()
    return [len(images) for images in (data.train_images, data.val_images, data.test_images)]


# Layouts


def test_without_folders_for_them_validation_and_test_images_are_selected_at_random(root, capsys):
    data = ImageFolder(root)
    assert data.classes == ("a", "b", "c")
    assert sizes(data) == [22, 2, 6]  # 20 % of 30, then 10 % of 24
    assert "test set: 6 of 30 images, selected at random (data.split_seed=0)" in capsys.readouterr().out
    assert sizes(ImageFolder(root, val_size=4, test_size=5)) == [21, 4, 5]
    other, same = ImageFolder(root, split_seed=1), ImageFolder(root, seed=1)
    assert sizes(other) == sizes(same) == [22, 2, 6]
    assert same.test_images.fingerprint == data.test_images.fingerprint != other.test_images.fingerprint


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_train_val_and_test_folders_are_used(tmp_path, val):
    for part, count in (("train", 5), (val, 2), ("test", 3)):
        write_folder(tmp_path / "data" / part, count=count)
    data = ImageFolder(tmp_path / "data")
    assert data.val_names == ("val",)
    assert sizes(data) == [15, 6, 9]
    assert data.train_images.labels.bincount().tolist() == [5, 5, 5]


@pytest.mark.parametrize("parts, expected", [(("train", "test"), [13, 2, 3]), (("train", "val"), [12, 3, 3])])
def test_a_missing_part_is_split_off_the_training_images(tmp_path, parts, expected):
    for part in parts:
        write_folder(tmp_path / "data" / part, count=5 if part == "train" else 1)
    assert sizes(ImageFolder(tmp_path / "data")) == expected


def test_a_validation_folder_is_left_out_with_val_size_0(tmp_path):
    for part in ("train", "val", "test"):
        write_folder(tmp_path / "data" / part, count=2)
    assert sizes(ImageFolder(tmp_path / "data", val_size=0)) == [6, 0, 6]


def test_classes_may_be_called_train_and_test(tmp_path):
    for name in ("test", "train"):
        (tmp_path / "vehicles" / name).mkdir(parents=True)
        for k in range(5):
            Image.new("RGB", (8, 8), (50 * k, 9, 9)).save(tmp_path / "vehicles" / name / f"{k}.png")
    assert ImageFolder(tmp_path / "vehicles").classes == ("test", "train")


def test_hidden_files_are_skipped_and_other_files_are_ignored_with_a_notice(root, capsys):
    (root / ".cache").mkdir()
    (root / "a" / ".DS_Store").write_text("x")
    (root / "a" / "notes.txt").write_text("x")
    (root / "readme.txt").write_text("x")
    data = ImageFolder(root)
    assert sum(sizes(data)) == 30
    assert "ignoring files that are not images: 1 (.txt)" in capsys.readouterr().out


# Decoding


@pytest.mark.parametrize("size, expected", [(32, (32, 32)), ((24, 40), (24, 40)), ([8, 8], (8, 8))])
def test_images_of_any_size_mode_and_format_get_one_size(tmp_path, size, expected):
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "data" / name / "sub").mkdir(parents=True)
        image = Image.new("RGB", (50, 30), colour)
        image.save(tmp_path / "data" / name / "1.PNG")
        image.resize((7, 90)).save(tmp_path / "data" / name / "2.bmp")
        image.convert("P").save(tmp_path / "data" / name / "3.gif")
        image.convert("RGBA").save(tmp_path / "data" / name / "sub" / "4.webp", lossless=True)
    train, test = ImageFolder(tmp_path / "data", size, test_size=1).read()
    assert train.image_size == expected and len(train) + len(test) == 8
    for images in (train, test):
        blue, red = images.pixels[images.labels == 0], images.pixels[images.labels == 1]
        assert (red == torch.tensor([255, 0, 0])[:, None, None]).all()
        assert (blue == torch.tensor([0, 0, 255])[:, None, None]).all()


def fingerprint(root, **options):
    data = ImageFolder(root, **options)
    data.setup()
    return data.describe()["fingerprint"]


def test_images_are_decoded_once_and_then_read_from_the_cache(root, cache, monkeypatch):
    first = fingerprint(root)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(decoded, "_decoded", lambda *_: pytest.fail("decoded again"))
    assert fingerprint(root) == first


@pytest.mark.parametrize("change", ["add", "replace", "size"])
def test_changed_images_are_decoded_again_and_the_old_cache_is_deleted(root, cache, change):
    first = fingerprint(root)
    if change == "add":
        shutil.copy(root / "a" / "0.png", root / "a" / "new.png")
    elif change == "replace":
        Image.new("RGB", (9, 9), "red").save(root / "a" / "0.png")
    assert fingerprint(root, size=16 if change == "size" else 32) != first
    assert len(list(cache.iterdir())) == (2 if change == "size" else 1)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"garbage"])
def test_a_damaged_cache_is_replaced(root, cache, damage):
    first = fingerprint(root)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(damage or good[:-1])
    assert fingerprint(root) == first
    assert file.read_bytes() == good


def test_without_a_cache_nothing_is_written(root, cache):
    fingerprint(root, cache=False)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_error(root, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    fingerprint(root, cache=tmp_path / "file" / "cache")
    assert "cannot cache the decoded images" in capsys.readouterr().out


def test_decoding_shows_a_progress_bar(root, capfd):
    fingerprint(root)
    assert "decoding train images: 100%" in capfd.readouterr().err


# Mistakes


def test_unreadable_files_are_named(root):
    (root / "a" / "3.png").write_bytes((root / "a" / "3.png").read_bytes()[:100])
    (root / "b" / "text.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"cannot read 2 of 31 images .*a/3.png \(.*b/text.jpg \(.*Delete or replace"):
        ImageFolder(root).setup()


def no_images(root):
    shutil.rmtree(root / "b")
    (root / "b").mkdir()


def one_class(root):
    shutil.rmtree(root / "b"), shutil.rmtree(root / "c")


def no_folders(root):
    shutil.rmtree(root)
    root.mkdir()
    Image.new("RGB", (8, 8)).save(root / "1.png")


def other_classes(root):
    write_folder(root / "train"), write_folder(root / "test", "abd")
    for name in "abc":
        shutil.rmtree(root / name)


def two_validations(root):
    write_folder(root / "train"), write_folder(root / "val"), write_folder(root / "valid")
    for name in "abc":
        shutil.rmtree(root / name)


@pytest.mark.parametrize(
    "change, message",
    [
        (shutil.rmtree, "there is no folder .*flowers; set data.root=DIR"),
        (no_folders, "has no sub-folders; put the images of each class into a folder of its own"),
        (one_class, "must have one sub-folder per class, at least two; it has only 'a'"),
        (no_images, "no images in .*flowers/b .*; add images, or delete the folder"),
        (other_classes, "must have the same class folders; only one of them has c, d"),
        (two_validations, "several folders for validation"),
        (lambda root: write_folder(root / "train"), "has the folder train, and also a, b, c;"),
    ],
)
def test_a_folder_that_is_no_data_set_is_an_error_with_the_remedy(root, change, message):
    change(root)
    with pytest.raises(UserError, match=f"data.root: .*{message}"):
        ImageFolder(root)
    assert content_key(root) == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"root": None}, "data.root must be the folder of your images, not None; set data.root=DIR"),
        ({"size": 0}, "data.size must be at least 1"),
        ({"size": (8, 8, 8)}, r"data.size must be a number of pixels, or \[height, width\]"),
        ({"size": "big"}, r"data.size must be a number of pixels, or \[height, width\]|a whole number"),
        ({"test_size": 0}, "data.test_size must be above 0"),
        ({"test_size": 30}, "data.test_size must be below the number of training images, 30"),
        ({"val_size": 24}, "data.val_size must be below the number of training images, 24"),
        ({"cache": 5}, "data.cache must be a folder"),
        ({"content": "flowers-0123456789ab"}, "does not hold the images of data.content"),
    ],
)
def test_invalid_options_are_an_error(root, options, message):
    with pytest.raises(UserError, match=message):
        ImageFolder(**{"root": root} | options)


def test_a_size_for_a_part_that_has_a_folder_is_an_error(tmp_path):
    for part in ("train", "val", "test"):
        write_folder(tmp_path / part, count=2)
    for key in ("val_size", "test_size"):
        with pytest.raises(UserError, match=f"data.{key} cannot be set: .* has a folder"):
            ImageFolder(tmp_path, **{key: 2})


# What identifies the images


def test_the_content_key_is_of_names_and_sizes_and_of_the_folders_name(root, tmp_path):
    key = content_key(root)
    assert key.startswith("flowers-")
    shutil.copytree(root, tmp_path / "elsewhere" / "flowers")
    assert content_key(tmp_path / "elsewhere" / "flowers") == key
    ImageFolder(shutil.copytree(root, tmp_path / "renamed"), content=key)
    (root / "a" / "0.png").rename(root / "a" / "renamed.png")
    assert content_key(root) != key


def test_a_report_does_not_write_where_a_stored_config_says(root, cache, tmp_path):
    config = {"_target_": "cifarbn.data.ImageFolder", "cache": str(tmp_path / "elsewhere")}
    test = _test_images(config, Options(data_root=root))
    assert len(test) and list(cache.iterdir()) and not (tmp_path / "elsewhere").exists()
