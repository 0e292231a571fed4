"""examples/: scripts and notebooks run, with small settings, and the committed notebooks hold a clean execution."""

import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from cifarbn.report.families import find_families, find_pairs
from cifarbn.report.gather import gather
from cifarbn.runs.measures import curves

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
RECORD = ROOT / "multirun_outputs" / "layers.record"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SMALL = {
    "bn_smoothness": """
DATA = "shapes data.train_size=300 data.test_size=20 data.batch_size=10"  # further overrides of the same command
WIDTH, STEPS, RATES, PROBE_EVERY = 1, 12, [1e-3], 4
""",
    "own_model": "STEPS, EVERY, CHANNELS, CIFAR10 = 3, 2, 2, None",
}


def run_script(name, *arguments, monkeypatch, cwd):
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\n{SMALL[path.stem]}"
    for cell in notebook.cells:  # without the slowest parts of a report, which tests/test_report.py covers
        cell.source = cell.source.replace("-m cifarbn.report ", "-m cifarbn.report --models 0 --format png ")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in notebook.cells:  # a failed shell command raises nothing
        assert "Traceback" not in str(cell.get("outputs")) and "rror:" not in str(cell.get("outputs"))
    if path.stem == "bn_smoothness":
        assert (tmp_path / "multirun_outputs/bn_class/report/index.html").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_holds_the_outputs_of_one_execution(path):
    assert path.stat().st_size < 1_000_000
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"this notebook took \d+\.\d minutes", text)
    assert not re.search(r"(^|\s)/(tmp|home|root|work|Users)/", text), "the path of a machine"
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_own_model_in_ten_lines(tmp_path, monkeypatch, capsys):
    run_script("own_model.py", monkeypatch=monkeypatch, cwd=tmp_path)
    assert re.fullmatch(r"(.+: .*\d.*\n){4}", capsys.readouterr().out)
    lines = [line for line in (EXAMPLES / "own_model.py").read_text().splitlines() if line and "import" not in line]
    assert len(lines) - 1 <= 10  # without the docstring
    assert not list(tmp_path.iterdir())


def test_own_loop_writes_runs_that_the_report_pairs(tmp_path):
    runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"](str(tmp_path), steps=12)
    families = find_families(gather(tmp_path))
    assert [family.norm for family in families] == ["BatchNorm1d", "Identity"]
    assert len(find_pairs(families)) == 1
    for family in families:
        ((_, run),) = family.each()
        assert {"course report Lipschitz", "effective beta", "step change", "covariate shift"} <= {
            *curves(run.recordings)
        }


def test_measures_are_drawn(tmp_path, monkeypatch):
    arguments = RECORD, "covariate shift", "activation mean change", "--out", "measures.png"
    run_script("plot_measures.py", *arguments, monkeypatch=monkeypatch, cwd=tmp_path)
    assert (tmp_path / "measures.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step change"], "has recorded 'step change'"),
        (["smoothness"], "invalid choice: 'smoothness'"),
        (["covariate shift", "--lr", "7"], "no run has the learning rate 7; use one of 0.001"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_script("plot_measures.py", RECORD, *arguments, monkeypatch=monkeypatch, cwd=tmp_path)
    assert message in capsys.readouterr().err
