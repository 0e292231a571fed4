"""Old spellings of overrides and stored configs map to the current ones."""

import doctest
import json
from pathlib import Path

from omegaconf import OmegaConf
from test_config import CONF

from cifarbn.runs import old_names

RECORDS = Path(__file__).parents[1] / "multirun_outputs"


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(old_names) == (0, 2)


def test_committed_runs_name_the_same_sources_as_the_experiments():
    """Otherwise a run that an older version created would conflict with the same experiment today."""
    sources = {OmegaConf.load(file).get("source") for file in (CONF / "experiment").rglob("*.yaml")}
    stored = [json.loads(file.read_text())["config"] for file in RECORDS.glob("*.record/*/result.json")]
    modern = {old_names.modern_config(config).get("source") for config in stored}
    assert len(modern) > 10 and modern <= sources
