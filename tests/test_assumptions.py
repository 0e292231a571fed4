"""What the reproduction pages say of the choices made here is what the experiments do."""

from functools import cache
from html import unescape

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_config import CONF
from test_report import make_run

from cifarbn.report.assumptions import ASSUMPTIONS, assumptions
from cifarbn.reproduce.scales import SUITES, Planned
from cifarbn.reproduce.suite import _folder, _write_page

EXPERIMENTS = {source: tuple(dict.fromkeys(name.split()[0] for name in suite)) for source, suite in SUITES.items()}


@cache
def config(experiment):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.create(OmegaConf.to_container(compose("train", [f"experiment={experiment}"]), resolve=True))


@pytest.mark.parametrize("source", SUITES)
def test_every_value_is_that_of_the_experiments(source):
    for assumption in ASSUMPTIONS[source]:
        rows = assumption.rows or EXPERIMENTS[source]
        assert set(rows) <= set(EXPERIMENTS[source])
        for row in rows:
            for key, value in assumption.values.items():
                assert OmegaConf.select(config(row), key) == value, f"{row} {key}: {assumption.text}"


def test_a_value_concerns_no_other_experiment():
    """L2, dropout and decay are stated for the rows that have them, and the others have none."""
    without_l2 = ("course_report/baseline", "course_report/stem_decay", "course_report/augmentation")
    assert all(config(row).optim.weight_decay == 0 for row in without_l2)
    part_1 = [row for row in EXPERIMENTS["course_report"] if "vgg" not in row]
    assert [row for row in part_1 if config(row).model.dropout] == ["course_report/dropout"]
    assert [row for row in part_1 if "gamma" not in config(row).schedule] == ["course_report/baseline"]
    assert {row for row in part_1 if not config(row).data.augmentation.pad} == {
        "course_report/baseline",
        "course_report/stem_decay",
    }


def test_the_page_of_a_suite_ends_with_its_list(tmp_path):
    root = tmp_path / "course_handout_smoke"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        planned = [Planned.of(name, "smoke") for name in SUITES["course_handout"][:2]]
        made = make_run(root, status="failed", error="no memory", config={"seed": 0})
        made.rename(root / _folder(planned[0], 0))
        page = _write_page("course_handout", planned, root, "smoke", 1, {}, [])
    assert page == root / "report" / "index.html"
    text = page.read_text()
    assert (
        text.index("Beside the source") < text.index("All runs, best first") < text.index("Deviations and assumptions")
    )
    assert ASSUMPTIONS["course_handout"][0].text in unescape(text)
    assert "1 failed: no memory" in text and "1 not begun" in text


def test_each_suite_has_its_list():
    assert ASSUMPTIONS.keys() == SUITES.keys()
    said = {source: " ".join(assumptions(source).points) for source in SUITES}
    for words in (
        "Batch size",
        "black pixels",
        "alpha",
        "Initial weights",
        "Baseline",
        "biases",
        "Dropout",
        "averaged",
    ):
        assert words in said["course_report"]
    assert "take the place of validation images" in said["course_report"] and "take the place" in said["course_handout"]
    assert "SGD is plain" in said["santurkar2018"]
