"""Old spellings of overrides and config keys, accepted for one release: what a user typed, and what old runs stored."""

import re
from collections.abc import Mapping
from typing import Any

# Old key -> new key.
KEYS = {
    "test_views": "tta",
    "changed_code": "on_code_change",
    "model.letter": "model.variant",
    "model.identity": "model.dirac_init",
}
# New key -> old value -> new value.
VALUES = {"tta": {"plain": "none"}, "on_code_change": {"refuse": "error"}}
# Key -> old text within its value -> new text.
TEXTS = {
    "source": {
        "the course setting in the report, ": "course handout's setting in the course report, ",
        "the report, ": "course report, ",
        "the paper, ": "Santurkar et al. 2018, ",
        "deep linear net ": "deep linear network ",
        "deep linear net,": "deep linear network,",
    },
}
SUITES = {"report": "course_report", "paper": "santurkar2018", "course": "course_handout"}
_EXPERIMENT = re.compile(rf"(?<![\w/])({'|'.join(SUITES)})(?=/|_fig4\b|_dln\b)")


def modern_override(override: str) -> str:
    """Return an override such as "experiment=report/l2" in today's spelling; one that is up to date as it is.

    >>> modern_override("test_views=plain,flip")
    'tta=none,flip'
    """
    prefix, key, equals, value = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    if key == "experiment":
        value = _EXPERIMENT.sub(lambda suite: SUITES[suite[0]], value)
    key = KEYS.get(key, key)
    for old, new in VALUES.get(key, {}).items():
        value = re.sub(rf"\b{old}\b", new, value)
    return prefix + key + equals + value


def modern_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a run's stored config with today's keys and values.

    >>> modern_config({"test_views": "plain", "model": {"letter": "A"}})
    {'tta': 'none', 'model': {'variant': 'A'}}
    """
    return _modern(config, "")


def _modern(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    renamed = {}
    for name, value in config.items():
        key = KEYS.get(f"{prefix}{name}", f"{prefix}{name}")
        if isinstance(value, Mapping):
            value = _modern(value, f"{key}.")
        elif isinstance(value, str):
            value = VALUES.get(key, {}).get(value, value)
            for old, new in TEXTS.get(key, {}).items():
                value = value.replace(old, new)
        renamed[key.removeprefix(prefix)] = value
    return renamed
