"""The comparison figure that --x, --group and --metric ask for."""

import csv

import numpy as np
import pytest
from test_report import make_run
from test_report_smoothness import write_run

from cifarbn.report import Options, gather
from cifarbn.report.__main__ import main
from cifarbn.report.against_key import against_key


@pytest.fixture
def sweep(tmp_path):
    """Two models at two learning rates, of which one has two seeds."""
    for model, lr, seed, accuracy in (
        *(("vgg_a", 0.1, 0, 0.5), ("vgg_a", 0.1, 1, 0.7), ("vgg_a", 0.2, 0, 0.4)),
        *(("resnet18", 0.1, 0, 0.8), ("resnet18", 0.2, 0, 0.9)),
    ):
        config = {"model": {"_target_": model}}
        make_run(tmp_path, f"model={model}", f"optim.lr={lr}", f"seed={seed}", accuracy=accuracy, config=config)
    return tmp_path


def table(section):
    return list(csv.DictReader(section.files["comparison_by_key.csv"].splitlines()))


def test_a_line_for_each_group_with_the_mean_over_runs(sweep):
    section = against_key(gather(sweep), Options(x="lr", group="model"))
    (drawing,) = section.drawings
    assert drawing.alt == (
        "Test accuracy against optim.lr. resnet18: 80.0 % at 0.1, 90.0 % at 0.2; vgg_a: 60.0 % at 0.1, 40.0 % at 0.2."
    )
    assert "n = 1 to 2 per point" in drawing.caption and "Data: shapes" in drawing.caption
    assert "also differ" not in drawing.caption
    rows = [row for row in table(section) if row["model"] == "vgg_a"]
    assert [(row["optim.lr"], row["n"], row["mean"], row["min"], row["max"]) for row in rows] == [
        ("0.1", "2", "0.6", "0.5", "0.7"),
        ("0.2", "1", "0.4", "0.4", "0.4"),
    ]


def test_other_differences_between_the_runs_of_a_point_are_stated(sweep):
    (drawing,) = against_key(gather(sweep), Options(x="model", metric="val/acc")).drawings
    assert "also differ in optim.lr." in drawing.caption and "Validation accuracy" in drawing.caption


def test_arguments_of_a_class_that_differ_within_a_point_are_stated(tmp_path):
    for width, accuracy in ((4, 0.5), (8, 0.7)):
        model = {"_target_": "my.Net", "width": width}
        overrides = ("model=custom", "model._target_=my.Net", f"model.width={width}")
        make_run(tmp_path, *overrides, accuracy=accuracy, config={"model": model})
    make_run(tmp_path, "model=vgg_a", accuracy=0.6)
    section = against_key(gather(tmp_path), Options(x="model"))
    (drawing,) = section.drawings
    assert {row["model"]: row["mean"] for row in table(section)} == {"Net": "0.6", "vgg_a": "0.6"}
    assert drawing.caption.endswith("The runs of a point also differ in model.width.")
    assert not drawing.figure.legends, "there is one line"


def test_a_smoothness_measure_is_its_median_over_steps(tmp_path):
    for model, scale in (("vgg_a", 6.0), ("vgg_a_bn", 2.0)):
        write_run(tmp_path, model, 0.001, scale=scale)
    (drawing,) = (section := against_key(gather(tmp_path), Options(x="model", metric="effective beta"))).drawings
    assert {row["model"]: float(row["mean"]) for row in table(section)} == pytest.approx({"vgg_a": 24, "vgg_a_bn": 8})
    assert drawing.figure.axes[0].get_ylabel() == "effective beta (loss / parameter²)"


def test_several_folders_have_separate_lines(tmp_path):
    for name, accuracy in (("before", 0.5), ("after", 0.6)):
        make_run(tmp_path / name, "optim.lr=0.1", accuracy=accuracy)
    section = against_key(gather(tmp_path / "before", tmp_path / "after"), Options(x="lr"))
    assert {row["line"]: row["mean"] for row in table(section)} == {"before": "0.5", "after": "0.6"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--x nonsense", "no run has the key 'nonsense'; the keys that differ between runs are model, optim.lr, seed"),
        ("--x _target_", "the key '_target_' is ambiguous; use one of data._target_, model._target_, optim._target_"),
        ("--x lr --group nonsense", "no run has the key 'nonsense'"),
        ("--x lr --metric f1", "no run has the metric 'f1'; the runs have test/acc, test/loss, val/acc, val/loss"),
        ("--metric val/acc", "--group and --metric need --x"),
        ("--group=", "--group and --metric need --x"),
        ("--x lr --group=", "no run has the key ''"),
        ("--x lr --metric=", "no run has the metric ''"),
        ("--format png,gif", "--format png,gif: 'gif' is not one of png, pdf, svg"),
    ],
)
def test_errors_name_the_remedy(sweep, options, message):
    with pytest.raises(SystemExit) as ended:
        main([str(sweep), "--models", "0", *options.split()])
    assert str(ended.value.code).startswith(f"error: {message}")


def test_formats_and_style_of_the_command_line(sweep):
    main([str(sweep), "--models", "0", "--format", "svg", "--style", "slides", "--x", "lr", "--group", "model"])
    figures = sweep / "report" / "figures"
    kinds = {file.suffix for file in figures.iterdir()}
    assert kinds == {".png", ".svg"}
    assert (figures / "comparison-by-optim.lr-shapes.svg").read_text().count("<svg") == 1
    page = (sweep / "report" / "index.html").read_text()
    assert page.index("comparison-by-optim.lr-shapes.svg") < page.index("curves-")
    assert "--width:499px" in page, "5.2 inches, as in the page style"
    assert "[SVG](figures/comparison-by-optim.lr-shapes.svg)" in (sweep / "report" / "report.md").read_text()


def test_the_same_runs_give_the_same_files(sweep, monkeypatch):
    monkeypatch.setattr("cifarbn.report.write.SECTIONS", (against_key,))

    def files(name):
        main([str(sweep), "--models", "0", "--format", "pdf,svg", "--x", "lr", "--out", str(sweep / name)])
        return {file.name: file.read_bytes() for file in (sweep / name / "figures").glob("comparison-by*")}

    first, second = files("first"), files("second")
    assert first == second and len(first) == 3 and np.all([len(content) > 1000 for content in first.values()])


def test_a_key_with_a_slash_gives_one_file_name(tmp_path):
    make_run(tmp_path, "lr=0.1", config={"a/../b": {"lr": 0.1}})
    (drawing,) = against_key(gather(tmp_path), Options(x="a/../b.lr")).drawings
    assert drawing.name == "comparison-by-a_.._b.lr-shapes"
