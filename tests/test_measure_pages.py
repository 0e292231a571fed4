"""docs/measures: every measure has one page that states what the table states, and its worked examples are right."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cifarbn.runs.measures import MEASURES

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "measures").glob("*.md"))
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+?) \| `(\w+)` \|$", re.MULTILINE)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_measure_is_on_exactly_one_page_with_its_origin_unit_and_recorder(measure):
    rows = [row for page in PAGES for row in ROW.findall(page.read_text()) if row[0] == measure.name]
    assert len(rows) == 1
    _, origin, unit, recorder = rows[0]
    config = OmegaConf.load(ROOT / "conf" / "record" / f"{recorder}.yaml")
    assert (origin, unit, config[recorder]._target_) == (measure.origin.value, measure.unit, measure.table.recorder)


def test_pages_name_no_measure_that_does_not_exist():
    named = {row[0] for page in PAGES for row in ROW.findall(page.read_text())}
    assert named == {measure.name for measure in MEASURES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run_and_their_assertions_hold(page):
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_of_a_measure_has_the_same_sections_and_a_small_figure(page):
    text = page.read_text()
    if page.stem == "index":
        assert {name for name in re.findall(r"\]\(([\w-]+\.md)\)", text)} == {p.name for p in PAGES} - {"index.md"}
        return
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    optional = {"By hand", "More of the landscape"}
    expected = ["Definition", "Figure", "How to read it", "Traps", "Origin"]
    assert [name for name in sections if name not in optional] == expected
    figures = [page.parent / name for name in re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", text)]
    assert figures and all(figure.stat().st_size < 150_000 for figure in figures)
