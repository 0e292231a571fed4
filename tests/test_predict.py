import copy
import json
import os
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Command
from torch import nn

from cifarbn import predict
from cifarbn.errors import UserError
from cifarbn.models import ResNet
from cifarbn.predict import BATCH_SIZE, main
from cifarbn.runs.load import TrainedModel, build_model, load_run
from cifarbn.runs.transform import Transform
from cifarbn.training.classifier import Classifier

MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]
RESULT = {
    "status": "done",
    "config": {
        "model": {
            "_target_": "cifarbn.models.ResNet",
            "depth": 18,
            "width": 2,
            "norm": {"_target_": "torch.nn.BatchNorm2d", "_partial_": True},
            "num_classes": 3,
        }
    },
    "data": {"name": "shapes", "mean": MEAN, "std": STD, "classes": ["circle", "ring", "square"]},
}


@pytest.fixture
def model() -> nn.Module:
    return ResNet(18, width=2, num_classes=3)


@pytest.fixture
def run(tmp_path, model):
    """A finished run as train.py leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(RESULT))
    classifier = Classifier(model, nn.CrossEntropyLoss(), torch.optim.SGD, num_classes=3)
    torch.save({"state_dict": classifier.state_dict(), "global_step": 1}, folder / "last.ckpt")
    return folder


@pytest.fixture
def red(tmp_path):
    file = tmp_path / "red.png"
    Image.new("RGB", (64, 48), (255, 0, 0)).save(file)
    return file


def read_image(file, size=(32, 32)):
    return predict.read_image(file, Transform(MEAN, STD, size))


def rewrite(run, **facts):
    (run / "result.json").write_text(json.dumps(copy.deepcopy(RESULT) | facts))


def test_a_loaded_net_gives_the_logits_of_the_trained_one(run, model):
    pixels = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    trained = load_run(run)
    with torch.no_grad():
        expected = model.eval()((pixels / 255 - mean) / std).softmax(1)
    assert not trained.model.training
    torch.testing.assert_close(trained.probabilities(pixels), expected)
    assert trained.classes == ("circle", "ring", "square")


def test_building_a_model_draws_nothing_from_the_users_generator():
    before = torch.get_rng_state()
    build_model(RESULT["config"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_image_is_scaled_and_cropped_to_its_centre(tmp_path):
    # Blue margins left and right of a red square: what the crop must cut off.
    image = Image.new("RGB", (256, 128), (0, 0, 255))
    image.paste((255, 0, 0), (64, 0, 192, 128))
    image.save(tmp_path / "wide.png")
    pixels = read_image(tmp_path / "wide.png")
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    assert (pixels[:, :, 1:-1] == torch.tensor([255, 0, 0])[:, None, None]).all()  # bicubic mixes at the very edge


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_images_of_any_mode(tmp_path, mode):
    Image.new(mode, (40, 40)).save(tmp_path / f"{mode[0]}.{'tiff' if mode == 'CMYK' else 'png'}")
    (file,) = tmp_path.iterdir()
    assert read_image(file).shape == (3, 32, 32)


def test_sixteen_bits_are_scaled_to_eight_and_more_are_errors(tmp_path):
    Image.fromarray(np.full((40, 40), 128 * 257, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == 128).all()
    Image.new("F", (40, 40)).save(tmp_path / "float.tiff")
    message = r"\(its pixels have 32 bits per channel, not 8 or 16\); use an image file .* with 8 or 16 bits"
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "float.tiff")


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert (read_image(tmp_path / "glass.png") == 255).all()


def test_a_photograph_stands_upright(tmp_path):
    image = Image.new("RGB", (32, 32), "black")
    image.paste((255, 255, 255), (0, 0, 32, 16))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(tmp_path / "photo.png", exif=exif)
    pixels = read_image(tmp_path / "photo.png")
    assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all()


def test_the_command_prints_the_most_probable_classes(run, red, capsys):
    main([str(run), str(red), str(red), "--top", "2"])
    output, head, *lines = capsys.readouterr().out.splitlines()
    assert "32x32" in output and head.split() == ["image", "class", "probability"]
    assert len(lines) == 4 and lines[0].startswith(str(red)) and lines[1].startswith(" ")
    first, second = (float(line.split()[-1].rstrip("%")) for line in lines[:2])
    assert 100 >= first >= second >= 0


def no_run(run):
    (run / "result.json").unlink()


def damaged_result(run):
    (run / "result.json").write_text("{")


def no_checkpoint(run):
    (run / "last.ckpt").unlink()


def truncated(run):
    content = (run / "last.ckpt").read_bytes()
    (run / "last.ckpt").write_bytes(content[: len(content) // 2])


def not_a_checkpoint(run):
    (run / "last.ckpt").write_text("weights")


def code_in_the_checkpoint(run):
    torch.save({"state_dict": {"net.x": print}}, run / "last.ckpt")


def other_model(run):
    model = RESULT["config"]["model"] | {"width": 3}
    rewrite(run, config={"model": model})


def unknown_model(run):
    rewrite(run, config={"model": {"_target_": "cifarbn.models.Gone"}})


def unfinished(run):
    rewrite(run, status="interrupted")


def three_classes_for_two(run):
    rewrite(run, data=RESULT["data"] | {"classes": ["circle", "ring"]})


def no_mean(run):
    rewrite(run, data={"classes": RESULT["data"]["classes"]})


def no_model(run):
    rewrite(run, config={})


def a_factory(run):
    rewrite(run, config={"model": {"_target_": "torch.nn.Identity", "_partial_": True}})


def no_image_fits(run):
    rewrite(run, config={"model": {"_target_": "torch.nn.Linear", "in_features": 5, "out_features": 3}})
    torch.save({"state_dict": {"net.weight": torch.zeros(3, 5), "net.bias": torch.zeros(3)}}, run / "last.ckpt")


def another_shape(run):
    rewrite(run, metrics=[])


def a_fifo(run):
    (run / "checkpoints.sha256").write_text(f"{64 * '0'}  last.ckpt\n")
    (run / "last.ckpt").unlink()
    os.mkfifo(run / "last.ckpt")


def regression(run):
    rewrite(run, data={"name": "gaussian", "classes": []})


@pytest.mark.parametrize(
    ("break_it", "message", "remedy"),
    [
        (no_run, "not a run folder", "multirun_outputs"),
        (damaged_result, "not a valid result", "delete"),
        (no_checkpoint, "missing", "resume=false"),
        (truncated, "damaged", "resume=false"),
        (not_a_checkpoint, "damaged", "resume=false"),
        (code_in_the_checkpoint, "damaged", "resume=false"),
        (other_model, "another model", "resume=false"),
        (unknown_model, "cannot build", "git_commit"),
        (unfinished, "not finished (interrupted)", "command"),
        (regression, "has no class names", "gaussian"),
        (three_classes_for_two, "has (3,) outputs", "2 classes"),
        (no_mean, "lacks the images' mean", "must return `mean`, `std` and `image_size`"),
        (no_model, "cannot build", "its config has none"),
        (a_factory, "cannot build", "does not describe an nn.Module"),
        (no_image_fits, "does not accept images", "use another run"),
        (another_shape, "metrics", "run"),
        (a_fifo, "not a regular file", "last.ckpt"),
    ],
)
def test_a_bad_run_ends_with_one_message(run, red, capsys, break_it, message, remedy):
    break_it(run)
    with pytest.raises(SystemExit) as exit_:
        main([str(run), str(red)])
    assert message in exit_.value.code and remedy in exit_.value.code
    assert "\n" not in exit_.value.code and not capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x89PNG\r\n\x1a\n broken"])
def test_a_bad_image_is_named(tmp_path, content):
    file = tmp_path / "bad.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="cannot read .*bad.png"):
        read_image(file)


def test_a_truncated_image_is_named(tmp_path, red):
    content = red.read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot read .*cut.png"):
        read_image(tmp_path / "cut.png")


def test_top_must_be_positive(run, red):
    with pytest.raises(SystemExit, match="--top must be at least 1"):
        main([str(run), str(red), "--top", "0"])


def test_a_checkpoint_in_the_place_of_its_run(run, red):
    with pytest.raises(SystemExit, match=r"last.ckpt is a file; use its run folder, .*run$"):
        main([str(run / "last.ckpt"), str(red)])


def test_images_are_read_and_classified_in_batches(run, red, capsys, monkeypatch):
    """Memory does not grow with the number of images, and what is classified is printed before the rest is read."""
    sizes, lines = [], []
    classify = TrainedModel.probabilities

    def spy(self, pixels):
        sizes.append(len(pixels))
        lines.append(len(capsys.readouterr().out.splitlines()))
        return classify(self, pixels)

    monkeypatch.setattr(TrainedModel, "probabilities", spy)
    main([str(run), *[str(red)] * (2 * BATCH_SIZE + 1), "--top", "1"])
    assert sizes == [1, BATCH_SIZE, BATCH_SIZE, 1]  # first a black image, to check the model
    assert lines[1:] == [2, BATCH_SIZE, BATCH_SIZE]


def test_a_bad_image_does_not_stop_the_others(run, red, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"text")
    with pytest.raises(SystemExit) as ended:
        main([str(run), str(red), str(tmp_path / "bad.png"), str(tmp_path / "gone.png"), str(red), "--top", "1"])
    output = capsys.readouterr()
    assert ended.value.code == 1 and output.out.count("red.png") == 2
    first, second = output.err.splitlines()
    assert re.match("error: cannot read .*bad.png.*Pillow", first) and re.match(
        "error: cannot read .*gone.png.*path", second
    )


def test_for_any_pillow_raises_is_one_message(red, monkeypatch):
    for error in (TypeError("x\ny"), RuntimeError("Invalid data"), struct.error(), ZeroDivisionError(), MemoryError()):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr("cifarbn.data.image_files.ImageOps.exif_transpose", fail)
        with pytest.raises(UserError, match=r"^cannot read .*red.png as an image \(.+\)"):
            read_image(red)


def test_a_camera_s_make_that_is_a_number_is_one_message_or_a_image(tmp_path):
    """Pillow writes Exif of the wrong type again where it turns an image upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (40, 40))
    image.save(tmp_path / "camera.jpg", exif=exif)
    content = (tmp_path / "camera.jpg").read_bytes()
    # Make (0x010F) as an unsigned rational (5) of 1/1, next to the orientation.
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2)
    tiff += struct.pack("<HHII", 0x010F, 5, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    tiff += struct.pack("<I", 0) + struct.pack("<II", 1, 1)
    segment = b"Exif\0\0" + tiff
    start = content.index(b"\xff\xe1")
    (length,) = struct.unpack(">H", content[start + 2 : start + 4])
    new = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    (tmp_path / "camera.jpg").write_bytes(content[:start] + new + content[start + 2 + length :])
    try:
        assert read_image(tmp_path / "camera.jpg").shape == (3, 32, 32)
    except UserError as error:
        assert "camera.jpg" in str(error) and "\n" not in str(error)


def test_an_avif_that_is_damaged_in_its_middle_is_one_message(tmp_path):
    file = tmp_path / "photo.avif"
    try:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    except (KeyError, OSError, ValueError):
        pytest.skip("this Pillow has no AVIF")
    content = file.read_bytes()
    for position in range(0, len(content), 25):  # its decoder fails in a way of its own at some of them
        file.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
        try:
            assert read_image(file).shape == (3, 32, 32)
        except UserError as error:
            assert "photo.avif" in str(error) and "\n" not in str(error)


def test_a_image_that_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_names_of_images_and_classes_are_only_text(run, tmp_path, capsys):
    rewrite(run, data=RESULT["data"] | {"classes": ["\x1b[31mred", "\u202e", "a\nb"]})
    file = tmp_path / os.fsdecode(b"\xff\x1b[31m.png")
    Image.new("RGB", (32, 32)).save(file)
    main([str(run), str(file)])
    out = capsys.readouterr().out
    assert not re.search("[\x1b\u202e\ud800-\udfff]", out) and "a b" in out and len(out.splitlines()) == 5


def test_folders_are_searched_recursively_for_images(run, red, tmp_path, capsys):
    folder = tmp_path / "photos"
    for name in ("b.png", "deep/er/a.JPG", "deep/notes.txt", ".hidden/c.png", ".d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name, format="PNG")
    assert predict.image_files([red, folder]) == [red, folder / "b.png", folder / "deep" / "er" / "a.JPG"]
    main([str(run), str(folder), "--top", "1"])
    assert capsys.readouterr().out.count("photos") == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty contains no image files"):
        main([str(run), str(tmp_path / "empty")])


def test_json_has_a_line_per_image_also_for_those_that_cannot_be_read(run, red, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(run), str(red), str(tmp_path / "gone.png"), "--json"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert ended.value.code == 1
    assert first["image"] == str(red) and sum(c["probability"] for c in first["classes"]) == pytest.approx(1)
    assert {c["class"] for c in first["classes"]} == {"circle", "ring", "square"}
    assert "cannot read" in second["error"] and "classes" not in second


def test_feature_maps_of_every_image(run, red, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "other" / "red.png")
    main([str(run), str(red), str(tmp_path / "other"), "--feature-maps", str(tmp_path / "maps")])
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == [
        *("red-2-feature-maps.png", "red-feature-maps.png")
    ]
    with Image.open(tmp_path / "maps" / "red-feature-maps.png") as figure:
        assert figure.width > 500 and len(figure.getcolors(10**6)) > 100
    assert "feature maps are in" in capsys.readouterr().err


def test_feature_maps_replace_no_image(run, red, tmp_path):
    image = red.read_bytes()
    main([str(run), str(red), "--feature-maps", str(tmp_path)])
    assert red.read_bytes() == image
    figure = tmp_path / "red-feature-maps.png"
    drawn = figure.read_bytes()
    with pytest.raises(SystemExit, match=r"would replace the image .*red-feature-maps.png; choose another folder"):
        main([str(run), str(figure), str(red), "--feature-maps", str(tmp_path)])
    assert figure.read_bytes() == drawn


def test_feature_maps_that_cannot_be_written_are_one_message_with_one_remedy(run, red):
    with pytest.raises(SystemExit, match=r"red.png: File exists; choose another folder with --feature-maps$"):
        main([str(run), str(red), "--feature-maps", str(red)])


@pytest.mark.parametrize(
    ("loss", "score"),
    [
        ("torch.nn.CrossEntropyLoss", "probability"),
        ("torch.nn.functional.cross_entropy", "probability"),
        ("cifarbn.losses.OneHotMSELoss", "softmax"),
    ],
)
def test_the_softmax_is_called_a_probability_if_the_loss_makes_it_one(run, red, capsys, loss, score):
    rewrite(run, config=RESULT["config"] | {"loss": {"_target_": loss}})
    main([str(run), str(red)])
    assert capsys.readouterr().out.splitlines()[1].split() == ["image", "class", score]
    main([str(run), str(red), "--json"])
    assert json.loads(capsys.readouterr().out)["classes"][0].keys() == {"class", score}


def test_a_model_without_convolutions_has_no_feature_maps(run, red):
    layers = [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "in_features": 3072, "out_features": 3}]
    rewrite(run, config={"model": {"_target_": "torch.nn.Sequential", "_args_": layers}})
    torch.save({"state_dict": {"net.1.weight": torch.zeros(3, 3072), "net.1.bias": torch.zeros(3)}}, run / "last.ckpt")
    with pytest.raises(SystemExit, match="no feature maps; leave out --feature-maps"):
        main([str(run), str(red), "--feature-maps", str(run / "maps")])


def test_images_get_the_size_that_the_run_was_trained_with(run, red, capsys):
    rewrite(run, data=RESULT["data"] | {"image_size": [48, 64]})
    trained = load_run(run)
    assert trained.transform.image_size == (48, 64)
    assert read_image(red, (48, 64)).shape == (3, 48, 64)
    main([str(run), str(red)])
    assert "64x48 pixels" in capsys.readouterr().out


def test_it_ends_if_its_reader_has_ended(run, red, tmp_path):
    command = Command("cifarbn.predict", str(run), str(red), "--json", cwd=tmp_path)
    command.stdout.close()
    _, err = command.communicate()
    assert command.returncode == 1 and err == "error: the program that reads this command's output has ended\n"
