"""Old spellings of overrides and config keys: accepted on the command line for one release, and in old run folders."""

import json
import re
from collections.abc import Mapping
from typing import Any

from cifarbn.runs.identity import parent_of

# Old key -> new key.
KEYS = {
    "test_views": "tta",
    "changed_code": "on_code_change",
    "model.letter": "model.variant",
    "model.identity": "model.dirac_init",
    "record.held_out_accuracy.pictures": "record.held_out_accuracy.images",
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
# Old `_target_` -> new one. These layers contained the fast code that `accelerate` now adds to torch's layers.
TARGETS = {
    "cifarbn.models.BatchNorm2d": "torch.nn.BatchNorm2d",
    "cifarbn.models.batch_norm.BatchNorm2d": "torch.nn.BatchNorm2d",
    "cifarbn.models.convolution.Conv2d": "torch.nn.Conv2d",
    "cifarbn.models.max_pool.MaxPool2d": "torch.nn.MaxPool2d",
}
# Keys that older versions lack -> the value that describes their behaviour.
ADDED = {"trainer.cuda_graphs": "auto", "trainer.sync_batchnorm": True, "record.step_change.per_layer": False}
SUITES = {"report": "course_report", "paper": "santurkar2018", "course": "course_handout"}
_EXPERIMENT = re.compile(rf"(?<![\w/])({'|'.join(SUITES)})(?=/|_fig4\b|_dln\b)")

# Names inside checkpoints; they stay, so that old checkpoints can be continued.
METRICS_STATE = "StepHistory"  # state of `MetricsLogger`
RESUME_STATE = "LastCheckpoint"  # state of `ResumeCheckpoint`
TIMED_IMAGES = "pictures"  # number of images in the state of `Timing`


def modern_override(override: str) -> str:
    """Return an override such as "experiment=report/l2" in its current spelling.

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
    """Return a copy of a run's stored config with current keys, values and `_target_`s, and with keys added since.

    >>> modern_config({"test_views": "plain", "norm": {"_target_": "cifarbn.models.BatchNorm2d"}})
    {'tta': 'none', 'norm': {'_target_': 'torch.nn.BatchNorm2d'}}
    """
    modern: dict[str, Any] = _modern(json.loads(json.dumps(config)), "")
    for key, value in ADDED.items():
        parent, name = parent_of(modern, key)
        if parent is not None:
            parent.setdefault(name, value)
    return modern


def modern_target(target: Any) -> Any:
    """Return the current name of a stored `_target_`."""
    return TARGETS.get(target, target) if isinstance(target, str) else target


def _modern(node: Any, prefix: str) -> Any:
    """Return a config, or the part of it whose keys begin with `prefix`, in its current spelling."""
    if isinstance(node, list):
        return [_modern(item, f"{prefix}[].") for item in node]
    if not isinstance(node, dict):
        return node
    modern = {}
    for name, value in node.items():
        key = KEYS.get(f"{prefix}{name}", f"{prefix}{name}")
        if name == "_target_":
            value = modern_target(value)
        elif isinstance(value, str):
            value = VALUES.get(key, {}).get(value, value)
            for old, new in TEXTS.get(key, {}).items():
                value = value.replace(old, new)
        modern[key.removeprefix(prefix)] = _modern(value, f"{key}.")
    return modern
