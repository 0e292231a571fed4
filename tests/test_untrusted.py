"""Run folders that are damaged, hostile or unusual: each is named, and the other runs are reported as usual."""

import csv
import json
import math
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_report import CONFIG, DATA, Page, make_run, rows

from cifarbn import figures
from cifarbn.errors import UserError
from cifarbn.report import Options, escape, gather, table, write, write_report
from cifarbn.report.__main__ import main
from cifarbn.report.curves import training_curves
from cifarbn.report.page import Image, html_page, markdown_page
from cifarbn.report.read import read_metrics, read_recordings
from cifarbn.runs.untrusted import clean
from cifarbn.training.callbacks.metrics_logger import COLUMNS

EVIL = '<b>$x$|`a`*_=1+1^^5c\\input{/etc/passwd}&%#~"\x1b[31m\u202e\r\ny'


# Text.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\tc\r\x85\u2028d", "a b c   d"),
        ("\x1b[31mred\x07\x00", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"),
        ("\ud800", "\N{REPLACEMENT CHARACTER}"),
        ("abc\u202etxt\u200b\ufeff", "abc\ufffdtxt\ufffd\ufffd"),
        ("naïve 日本 ± − ≈", "naïve 日本 ± − ≈"),
        ("x" * 3000, "x" * 2000 + "..."),
    ],
)
def test_text_is_one_printable_line(text, expected):
    assert clean(text) == expected
    assert clean({text: [text, 1, None]}) == {expected: [expected, 1, None]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>&", "&lt;b&gt;&amp;"),
        ("a|b", r"a\|b"),
        ("vgg_a_bn", "vgg_a_bn"),
        ("_x_ y", r"\_x\_ y"),
        ("*a* `b` [c](d) # $e$ ~f~ \\", r"\*a\* \`b\` \[c\](d) \# \$e\$ \~f\~ " + "\\\\"),
        ("see https://example.org", r"see https\://example.org"),
    ],
)
def test_markdown(text, expected):
    assert escape.markdown(text) == expected


def test_markdown_code():
    assert escape.markdown_code("a") == "`a`"
    assert escape.markdown_code("a`b``c") == "``` a`b``c ```"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((c, f"\\{c}") for c in "&%$#_{}"),
        *((c, f"{{{c}}}") for c in "[]*"),
        ("\\", r"\textbackslash{}"),
        ("^^5c", r"\textasciicircum{}\textasciicircum{}5c"),
        (r"\write18{ls}", r"\textbackslash{}write18\{ls\}"),
        ("~<>|", r"\textasciitilde{}\textless{}\textgreater{}\textbar{}"),
        ("90.00 ± 1.00 −3", r"90.00 $\pm$ 1.00 $-$3"),
        ("é日\x1b", "é??"),
        ("plain, words 1.5 (a/b) -x", "plain, words 1.5 (a/b) -x"),
    ],
)
def test_latex(text, expected):
    assert escape.latex(text) == expected


def test_no_cell_is_a_formula_and_numbers_stay_numbers():
    cells = ["=1+1", "+a", "-a", "@x", "＝1", "-1.5", "+0.5", "-inf", "1e-3", "a=b", "", '"q", r']
    text = escape.csv_file(",".join(f'"{cell}"'.replace('"q"', '""q""') for cell in cells) + "\n")
    (found,) = csv.reader(text.splitlines())
    assert found == ["'=1+1", "'+a", "'-a", "'@x", "'＝1", "-1.5", "+0.5", "-inf", "1e-3", "a=b", "", '"q", r']


def test_a_dollar_in_a_figure_is_a_dollar():
    """matplotlib would read the text between two dollars as a formula, and raise an error for an invalid one."""
    for title in (r"$\frac{$", "a $x$ b", "$" * 60, r"\$x$ $"):
        figure = figures.confusion_matrix(np.eye(10, dtype=int), [title, *"bcdefghij"], title)
        figure.draw_without_rendering()
        shown = "".join(text.get_text() for text in figure.texts).replace("\n", "").replace(" ", "")
        assert shown.replace(r"\$", "$").startswith(title.replace(" ", "")[:20])


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """The report of runs whose every text is hostile; figures are not drawn, which takes long."""
    monkeypatch.setattr(write, "_save", lambda drawing, folder, options: Image(b"", 5.0))
    for i, word in enumerate(("ok", EVIL)):
        config = {"model": {"_target_": "torch.nn.Identity", "note": word}, "x": word}
        facts = {"device": word, "precision": word, "versions": {word: word}, "git_commit": word, "confusion": [[1]]}
        folder = make_run(
            tmp_path, accuracy=0.5 + i / 10, config=config, data=DATA | {"name": word, "classes": [word]}, **facts
        )
        folder.rename(tmp_path / f"run{i}")
        result = json.loads((tmp_path / f"run{i}" / "result.json").read_text())
        overrides = [f"+note={word}", f"~{word}={word}", f"={word}"]
        (tmp_path / f"run{i}" / "result.json").write_text(json.dumps(result | {"overrides": overrides}))
    failed = make_run(tmp_path, status="failed", error=EVIL, config={"seed": 3})
    failed.rename(tmp_path / "=run<i>")
    write_report(gather(tmp_path), tmp_path / "out", Options(models=1))
    return tmp_path / "out"


def test_hostile_text_is_escaped_in_every_format(evil):
    html = (evil / "index.html").read_text()
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"b", "script", "i"} and "<b>" in "".join(page.words)
    markdown = (evil / "report.md").read_text()
    assert "<b>" not in re.sub(r"(`+) ?.*?\1", "", markdown)
    table_lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table_lines}) == 1
    for name in ("table.csv", "runs.csv", "curves.csv"):
        cells = [cell for row in csv.reader((evil / name).read_text().splitlines()) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+", "~="))]
    assert rows(evil / "runs.csv")[-1]["run"] == "'=run<i>" or "'=run<i>" in {r["run"] for r in rows(evil / "runs.csv")}
    tex = (evil / "table.tex").read_text()
    assert r"\input" not in tex and "^^" not in tex
    for file in evil.iterdir():
        if file.is_file():
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", file.read_text()), file


def test_a_template_in_a_run_s_text_is_text(tmp_path):
    make_run(tmp_path, status="failed", error="{{ 7 * 7 }}{% raw %}")
    assert "{{ 7 * 7 }}{% raw %}" in html_page(gather(tmp_path), [], {})


def compiled(folder):
    """Compile table.tex in an article, and return the output of pdflatex."""
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex")
    head = r"\documentclass{article}\usepackage{array,booktabs}\begin{document}\input{table.tex}\end{document}"
    (folder / "paper.tex").write_text(head)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_a_hostile_table_tex_compiles(evil):
    compiled(evil)


@pytest.mark.parametrize("data", [{}, {"data": DATA | {"name": "cifar10"}}])
def test_table_tex_fits_on_a_page(tmp_path, data):
    """With all optional columns, and the longest labels of the project's experiments."""
    for name, facts in (("course_report/augmentation", {}), ("report/vgg_a_bn_with_a_longer_name", data)):
        for seed, accuracy in enumerate((0.9, 0.92)):
            overrides = (f"experiment={name}", "trainer=gpu", f"seed={seed}")
            make_run(tmp_path, *overrides, accuracy=accuracy, config={"target": 0.9}, **facts)
    text = table.as_latex(gather(tmp_path))
    for heading in ("test accuracy", "interval", "target", "gap"):
        assert heading in text
    assert "augmentation" in text and ("data" in text) == bool(data)
    assert not re.search("parameters|images/s|training, s|steps", text), "table.csv has them"
    (tmp_path / "table.tex").write_text(text)
    assert "Overfull" not in compiled(tmp_path)


def test_what_cannot_be_encoded_ends_nothing(tmp_path, capsys):
    """Half a character in a result, and a folder's name that is no Unicode."""
    make_run(tmp_path, "seed=0", accuracy=0.5)
    failed = make_run(tmp_path, "seed=1", error="\ud800", status="failed")
    failed.rename(tmp_path / os.fsdecode(b"bad\xff"))
    main([str(tmp_path), "--models", "0", "--out", str(tmp_path / "out")])
    ((run, _, reason),) = gather(tmp_path).excluded
    assert run == "bad\N{REPLACEMENT CHARACTER}"
    assert f"excluded: {run}: {reason}" in capsys.readouterr().out
    assert run in (tmp_path / "out" / "report.md").read_text()


def test_the_terminal_obeys_nothing(evil, capsys):
    main([str(evil.parent), "--out", str(evil), "--models", "2"])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\ud800]", capsys.readouterr().out)


# Links.


def test_the_report_is_never_written_through_a_link(tmp_path, capsys):
    sweep, elsewhere = tmp_path / "sweep", tmp_path / "elsewhere"
    make_run(sweep, "seed=0", status="running")
    elsewhere.mkdir()
    (sweep / "report").symlink_to(elsewhere)
    with pytest.raises(SystemExit, match="is a symbolic link"):
        main([str(sweep)])
    (sweep / "report").unlink()
    (sweep / "report").mkdir()
    (sweep / "report" / "figures").symlink_to(elsewhere)
    with pytest.raises(SystemExit, match="figures is a symbolic link"):
        main([str(sweep)])
    assert not list(elsewhere.iterdir())


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path):
    sweep, victim = tmp_path / "sweep", tmp_path / "victim"
    make_run(sweep, "seed=0", accuracy=0.5)
    victim.write_text("mine")
    main([str(sweep), "--models", "0"])
    for name in ("index.html", "table.csv", "figures/curves-all-runs.png"):
        (sweep / "report" / name).unlink()
        (sweep / "report" / name).symlink_to(victim)
    main([str(sweep), "--models", "0"])
    assert victim.read_text() == "mine"
    assert "1 run in 1 group." in (sweep / "report" / "index.html").read_text()
    assert not any(file.is_symlink() for file in (sweep / "report").rglob("*"))


def test_the_folder_that_a_user_names_may_be_a_link(tmp_path):
    make_run(tmp_path / "sweep", "seed=0", status="running")
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    main([str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    assert (tmp_path / "real" / "index.html").is_file()


def test_no_name_in_a_folder_leads_out_of_the_report(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(write, "_put", lambda file, content: written.append(file))
    for name in ("../../x", "/etc/x"):
        make_run(tmp_path, f"name_={name}", config={"x": name}, data=DATA | {"name": name})
    sweep = gather(tmp_path)
    for drawing in training_curves(sweep, Options()).drawings:
        assert "/" not in drawing.name
    assert {group.data for group in sweep.groups} == {"______x", "_etc_x"}


def test_links_to_folders_are_followed_and_none_for_ever(tmp_path):
    make_run(tmp_path / "elsewhere", "seed=0")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "linked").symlink_to(tmp_path / "elsewhere")
    (sweep / "loop").symlink_to(sweep)
    (sweep / "up").symlink_to(tmp_path)
    (sweep / "again").symlink_to(tmp_path / "elsewhere" / "seed=0")
    (sweep / "nowhere").symlink_to(tmp_path / "gone")
    (group,) = gather(sweep).groups
    assert [run.name for run in group.runs] == ["again"]


# Several folders, and the same run twice.


def test_several_folders_make_one_report(tmp_path):
    for name, accuracy in (("a/sweep", 0.5), ("b/sweep", 0.6), ("c", 0.7)):
        make_run(tmp_path / name, f"optim.lr={accuracy}", "seed=0", accuracy=accuracy)
    main([str(tmp_path / "a" / "sweep"), str(tmp_path / "b" / "sweep"), "--models", "0", str(tmp_path / "c")])
    report = tmp_path / "a" / "sweep" / "report"
    names = {row["run"] for row in rows(report / "runs.csv")}
    assert names == {"sweep/optim.lr=0.5,seed=0", "sweep (2)/optim.lr=0.6,seed=0", "c/optim.lr=0.7,seed=0"}
    assert "Runs in sweep, sweep, c" in (report / "index.html").read_text()
    groups = {row["group"]: row["folder"] for row in rows(report / "table.csv")}
    assert groups == {"c: lr 0.7": "c", "sweep (2): lr 0.6": "sweep (2)", "sweep: lr 0.5": "sweep"}
    assert not (tmp_path / "c" / "report").exists()


def test_a_folder_without_runs_is_named_beside_one_with(tmp_path):
    make_run(tmp_path / "a", "seed=0")
    (tmp_path / "empty").mkdir()
    sweep = gather(tmp_path / "a", tmp_path / "empty", tmp_path / "a" / "seed=0")
    assert sweep.unreadable == {"empty": "there is no run folder (a folder with a result.json)"}
    assert len(sweep.groups[0].runs) == 1, "a folder that was seen already is no second run"


def test_the_same_experiment_and_seed_counts_once(tmp_path):
    overrides_of_runs = [[], ["seed=0"], ["optim.lr=0.1"], ["optim.lr=1e-1"]]
    for i, overrides in enumerate(overrides_of_runs):
        folder = make_run(tmp_path, f"x={i}", accuracy=0.09 if i else 0.08)
        result = json.loads((folder / "result.json").read_text())
        del result["config"]["x"]
        result["config"]["optim"]["decay"] = [0.1, 1e-1, 0.1, "1e-1"][i]
        result["config"]["optim"]["momentum"] = [0, 0.0, 0, 0][i]
        (folder / "result.json").write_text(json.dumps(result | {"overrides": overrides}))
    shutil.copytree(tmp_path / "x=0", tmp_path / "copy")
    decay = {"optim": CONFIG["optim"] | {"decay": 0.1, "momentum": 0}}
    make_run(tmp_path, "seed=1", accuracy=0.1, config=decay)
    make_run(tmp_path / "again", config={"seed": 1, **decay}, status="failed", error="no memory")
    sweep = gather(tmp_path)
    (group,) = sweep.groups
    assert [run.name for run in group.runs] == ["copy", "seed=1"]
    reasons = {run: reason for run, _, reason in sweep.excluded}
    assert reasons == {
        **{f"x={i}": "same experiment and seed as copy, which is included instead" for i in range(4)},
        "again/defaults": "failed: no memory",
    }
    html = html_page(sweep, [], {})
    assert html.count("same experiment and seed as copy") == 4 and "2 runs in 1 group. 5 runs excluded" in html


def test_runs_without_a_seed_are_not_taken_for_one(tmp_path):
    for name in "ab":
        folder = make_run(tmp_path, f"x={name}")
        result = json.loads((folder / "result.json").read_text())
        del result["config"]["x"], result["config"]["seed"]
        (folder / "result.json").write_text(json.dumps(result))
    assert len(gather(tmp_path).groups[0].runs) == 2


# result.json.


def test_a_number_where_lightning_takes_one_is_text(tmp_path):
    """trainer.precision=32 is recorded as a number."""
    make_run(tmp_path, "seed=0", precision=32)
    assert table.run_rows(gather(tmp_path))[0]["precision"] == "32"
    assert table.devices(gather(tmp_path)) == ["some CPU, 32"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"status": [5]}, "status"),
        ({"status": None}, "status"),
        ({"config": []}, "config"),
        ({"config": None}, "config"),
        ({"config": {"model": 3}}, "config.model"),
        ({"config": {"model": {"num_classes": 0}}}, "config.model.num_classes"),
        ({"config": {"seed": "x"}}, "config.seed"),
        ({"config": {"optim": {"lr": "x"}}}, "config.optim.lr"),
        ({"overrides": "x"}, "overrides"),
        ({"overrides": [1]}, "overrides"),
        ({"metrics": [1]}, "metrics"),
        ({"metrics": {"test/acc": "x"}}, "metrics"),
        ({"metrics": {"test/acc": 10**400}}, "metrics"),
        ({"metrics": {"test/acc": 1e300}}, "metrics"),
        ({"seconds": {"train": True}}, "seconds"),
        ({"parameters": 1.5}, "parameters"),
        ({"images_per_second": "x"}, "images_per_second"),
        ({"error": {}}, "error"),
        ({"versions": "x"}, "versions"),
        ({"data": 1}, "data"),
        ({"data": {"name": []}}, "data.name"),
        ({"data": {"classes": [1]}}, "data.classes"),
        ({"data": {"mean": [1, 2]}}, "data.mean"),
        ({"data": {"train_size": -1}}, "data.train_size"),
        ({"confusion": [[1, 2]]}, "confusion"),
        ({"confusion": []}, "confusion"),
        ({"confusion": [[1]]}, "confusion"),
    ],
)
def test_a_result_of_another_shape_is_one_line(tmp_path, facts, message):
    make_run(tmp_path, "seed=0", accuracy=0.5)
    file = make_run(tmp_path, "seed=1") / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    sweep = gather(tmp_path)
    (excluded,) = sweep.excluded
    assert excluded[0] == "seed=1" and "\n" not in excluded[2]
    assert sweep.groups[0].metric("test/acc") == [0.5]
    assert message in excluded[2] and excluded[2].startswith("unreadable: result.json")


@pytest.mark.parametrize(
    "content",
    ["5", "[]", "null", '"x"', "{", "", "{}", "[" * 100_000, '{"a":' * 60 + "1" + "}" * 60, "\udcff", "1" * 5000],
)
def test_what_is_no_result_is_one_line(tmp_path, content):
    make_run(tmp_path, "seed=0")
    folder = make_run(tmp_path, "seed=1")
    (folder / "result.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    ((run, _, reason),) = gather(tmp_path).excluded
    assert run == "seed=1" and reason.startswith("unreadable: ") and str(tmp_path) not in reason


def a_fifo(file):
    os.mkfifo(file)


def a_folder(file):
    file.mkdir()


def a_link_to_itself(file):
    file.symlink_to(file)


def a_link_to_nowhere(file):
    file.symlink_to(file.parent / "gone")


def a_device(file):
    file.symlink_to("/dev/zero")


ODD = (a_fifo, a_folder, a_link_to_itself, a_link_to_nowhere, a_device)


@pytest.mark.parametrize("make", ODD)
def test_a_result_that_is_no_file_is_one_line(tmp_path, make):
    make_run(tmp_path, "seed=0")
    file = make_run(tmp_path, "seed=1") / "result.json"
    file.unlink()
    make(file)
    ((run, _, reason),) = gather(tmp_path).excluded
    assert run == "seed=1" and reason.startswith("unreadable: ") and "result.json" in reason and "\n" not in reason


# metrics.csv and recordings.npz.


HEAD = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not text"),
        (b"", "must have exactly one column step"),
        (b"hello\nworld\n", "must have exactly one column step and one epoch"),
        (f"{HEAD}\n0,0,word,1,1,1,,,,,,\n".encode(), "no number in line 2: 'word'"),
        (f"{HEAD}\n0,0,1,1,1,1,,,,,,\n{HEAD}\n".encode(), "no number in line 3: 'step'"),
        (f"{HEAD}\n0,0,1\n".encode(), "3 fields in line 2, but 12 in its header"),
        (f"{HEAD}\n1,0,1,1,1,1,,,,,,\n0,0,1,1,1,1,,,,,,\n".encode(), "column step that is not in increasing order"),
        (f"{HEAD}\n0,0,1,1,1,1,,,,,,\n0,0,1,1,1,1,,,,,,\n".encode(), "column step that is not in increasing order"),
        (f"{HEAD}\n0,1,1,1,1,1,,,,,,\n1,0,1,1,1,1,,,,,,\n".encode(), "column epoch that is not in increasing order"),
        (f"{HEAD}\n,0,1,1,1,1,,,,,,\n".encode(), "not a whole number"),
        (f"{HEAD}\n0.5,0,1,1,1,1,,,,,,\n".encode(), "not a whole number"),
        (f"{HEAD}\n0,0,1,1e300,1,1,,,,,,\n".encode(), "a value of step/loss whose magnitude exceeds 3e+38"),
        (f"{HEAD},lr\n0,0,1,1,1,1,,,,,,,1\n".encode(), "the column lr twice"),
    ],
)
def test_a_damaged_metrics_csv_costs_a_run_its_curves_alone(tmp_path, content, message):
    make_run(tmp_path, "seed=0", accuracy=0.5)
    folder = make_run(tmp_path, "seed=1", accuracy=0.7)
    (folder / "metrics.csv").write_bytes(content)
    sweep = gather(tmp_path)
    assert sweep.groups[0].metric("test/acc") == [0.5, 0.7] and not sweep.excluded
    ((run, _, reason),) = sweep.read_in_part
    assert run == "seed=1" and reason.startswith("metrics.csv ") and message in reason and "\n" not in reason
    assert sweep.groups[0].curves("val/acc").shape == (2, 2)
    notice = "omitted from training curves"
    assert notice in html_page(sweep, [], {}) and notice in markdown_page(sweep, [], {})


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", ["metrics.csv", "recordings.npz"])
def test_what_is_no_file_costs_no_more(tmp_path, make, name):
    folder = make_run(tmp_path, "seed=0")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    (run,) = gather(tmp_path).groups[0].runs
    assert len(run.epochs["epoch"]) == (2 if name == "recordings.npz" else 0) and not run.recordings
    if make is not a_link_to_nowhere:
        assert run.faults[-1].startswith(name)


def test_metrics_are_read_by_the_names_of_their_columns(tmp_path):
    """As pandas saves them again: an index, sorted columns, other formats of the same numbers, quotes."""
    folder = make_run(tmp_path, losses=(2.0, 1.5))
    before = read_metrics(folder)
    table_ = rows(folder / "metrics.csv")
    lines = [",".join(["", *sorted(COLUMNS), "note"])]
    for i, row in enumerate(table_):
        cells = [f'"{float(row[name]):.6e}"' if row[name] else "" for name in sorted(COLUMNS)]
        lines.append(",".join([str(i), *cells, "1.0"]))
    (folder / "metrics.csv").write_text("\r\n".join(lines) + "\r\n")
    after = read_metrics(folder)
    assert before.keys() == after.keys() == set(COLUMNS)
    for name in COLUMNS:
        np.testing.assert_allclose(after[name], before[name])


def test_a_column_that_is_missing_is_not_measured(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,step/loss\n0,0,2.5\n0,1,nan\n0,2,inf\n1,3,")
    found = read_metrics(tmp_path)
    np.testing.assert_array_equal(found["step/loss"], [2.5, math.nan, math.inf])
    assert np.isnan(found["lr"]).all() and len(found["val/acc"]) == 3


RECORDED = {
    "last_layer.step": np.arange(3),
    "last_layer.first_difference": np.ones(3),
    "last_layer.second_difference": np.ones(3),
}
PROBED = {
    **{
        "probe.step": np.arange(2),
        "probe.s": np.ones(4),
        "probe.dimensions": np.array([4, 1]),
        "probe.every": np.array(1),
    },
    **{f"probe.gradient.{k}": np.ones((2, 4)) for k in ("loss", "gradient_distance", "distance_moved")},
    **{f"probe.gradient.parameter_{k}": np.ones((2, 4, 2)) for k in ("distance", "moved")},
    **{"probe.gradient.gradient_norm": np.ones(2), "probe.gradient.parameter_norm": np.ones((2, 2))},
}


def test_recordings_as_recorders_write_them_are_read(tmp_path):
    np.savez(tmp_path / "recordings.npz", **RECORDED, **PROBED)
    assert read_recordings(tmp_path).keys() == {*RECORDED, *PROBED}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_layer.first_difference": np.ones(4)}, "last_layer.first_difference is float64 (4,), not numbers (3,)"),
        ({"last_layer.first_difference": np.ones((3, 1))}, "not numbers (3,)"),
        ({"last_layer.first_difference": np.array(["a", "b", "c"])}, "not numbers (3,)"),
        ({"last_layer.first_difference": np.full(3, 1e300)}, "magnitude exceeds 3e+38"),
        ({"last_layer.step": np.array([0, 2, 1])}, "last_layer.step is not in increasing order"),
        ({"last_layer.step": np.array(1)}, "last_layer.step is int64 (), not numbers"),
        ({"last_layer.step": None}, "no last_layer.step"),
        ({"probe.gradient.loss": np.ones((4, 2))}, "probe.gradient.loss is float64 (4, 2), not numbers (2, 4)"),
        ({"probe.every": np.array("x")}, "probe.every must be a whole number"),
        ({"probe.gradient.gradient_norm": None}, "has missing or malformed arrays"),
        ({"held_out.step": np.arange(1), "held_out.acc": np.ones(1)}, "held_out.acc needs held_out.source"),
    ],
)
def test_recordings_of_another_shape_are_named(tmp_path, change, message):
    arrays = {name: array for name, array in (RECORDED | PROBED | change).items() if array is not None}
    np.savez(tmp_path / "recordings.npz", **arrays)
    with pytest.raises(UserError, match="^recordings.npz") as refused:
        read_recordings(tmp_path)
    assert message in str(refused.value)


def test_damaged_recordings_are_named_and_run_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "canary"), "w")

    file = tmp_path / "recordings.npz"
    np.savez(file, **RECORDED)
    whole = file.read_bytes()
    np.savez(file, x=np.array([Bomb()], dtype=object))
    pickled = file.read_bytes()
    np.save(tmp_path / "one.npy", np.ones(3))
    for content in (
        b"",
        b"text",
        whole[: len(whole) // 2],
        pickled,
        (tmp_path / "one.npy").read_bytes(),
        b"\x80\x04K\x01.",
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match="^recordings.npz cannot be read"):
            read_recordings(tmp_path)
    assert not (tmp_path / "canary").exists()


# Anything at all.


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANY = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    *(
        ("status",),
        ("config",),
        ("config", "model"),
        ("config", "model", "num_classes"),
        ("config", "data", "_target_"),
    ),
    *(
        ("config", "optim"),
        ("config", "optim", "lr"),
        ("config", "seed"),
        ("overrides",),
        ("overrides", 0),
        ("metrics",),
    ),
    *(
        ("metrics", "test/acc"),
        ("seconds",),
        ("data",),
        ("data", "classes"),
        ("data", "name"),
        ("versions",),
        ("error",),
    ),
    *(
        ("parameters",),
        ("steps",),
        ("confusion",),
        ("config", "model", "norm"),
        ("config", "record"),
        ("config", "target"),
    ),
]


def changed(node, path, value):
    if not path:
        return value
    if isinstance(node, list):
        return [changed(node[0], path[1:], value), *node[1:]]
    return {**node, path[0]: changed(node.get(path[0], {}), path[1:], value)}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    make_run(root, "optim.lr=0.1", "seed=0", status="running")
    victim = make_run(root, "optim.lr=0.2", "seed=1", confusion=(np.eye(10, dtype=int) + 1).tolist())
    np.savez(victim / "recordings.npz", **RECORDED, **PROBED)
    return root, victim


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(["result.json", "key", "metrics.csv", "recordings.npz", "last.ckpt"]), data=st.data())
def test_for_any_a_file_holds_there_is_a_report_that_names_the_run(two_runs, monkeypatch, name, data):
    monkeypatch.setattr(write, "_save", lambda drawing, folder, options: Image(b"", 5.0))
    root, victim = two_runs
    file = victim / ("result.json" if name == "key" else name)
    before = file.read_bytes() if file.exists() else None
    if name == "key":
        content = json.dumps(changed(json.loads(before), data.draw(st.sampled_from(KEYS)), data.draw(ANY))).encode()
    else:
        content = data.draw(ANY.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
    file.write_bytes(content)
    try:
        main([str(root), "--out", str(root / "report")])
    finally:
        file.unlink() if before is None else file.write_bytes(before)
    found = {row["run"]: row for row in rows(root / "report" / "runs.csv")}
    assert found.keys() == {"optim.lr=0.1,seed=0", "optim.lr=0.2,seed=1"}
    if name in ("metrics.csv", "recordings.npz", "last.ckpt"):
        assert f"{name} " in (root / "report" / "report.md").read_text()
    if name == "result.json":
        assert found["optim.lr=0.2,seed=1"]["excluded"].startswith("unreadable: ")
