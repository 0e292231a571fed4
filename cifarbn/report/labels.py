"""Short names for groups of runs: what sets each apart, as it was said on the command line."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cifarbn.errors import without_folders
from cifarbn.runs.identity import EXECUTION_KEYS, SEED, Tag, keys_with
from cifarbn.runs.schema import Result

UNNAMED = (*EXECUTION_KEYS, SEED, *keys_with(Tag.NOTE))
# The `none` of `augment=none` does not say what it is.
CHOICES_THAT_NAME_THEMSELVES = keys_with(Tag.CHOICE)

LONGEST_VALUE = 100  # characters


def name_groups(results: Sequence[Result]) -> tuple[list[str], dict[str, str]]:
    """A label for each of several groups, given one run's result of each; and what all of them have in common.

    A label holds the overrides that differ between groups: `model=vgg_a optim.lr=1e-3` becomes "vgg_a, lr 0.001", for a
    config choice is shorter than the keys it stands for. What is the same in all groups of one experiment, but not in
    those of another, the experiment's name stands for. Where that leaves two groups alike, the config's own keys
    that tell them apart are added. All labels differ.

    Returns:
        The labels, and override -> value of those overrides that are the same in all groups.
    """
    overrides = [_overrides(result) for result in results]
    configs = [dict(leaves(result.get("config", {}))) for result in results]
    keys = sorted({key for said in overrides for key in said}, key=lambda key: ("." in key, key))
    # A key that one group left to its default still has a value there, unless it names a choice.
    values = [
        {key: value for key in keys if (value := said.get(key, config.get(key))) is not None}
        for said, config in zip(overrides, configs, strict=True)
    ]
    differing = [key for key in keys if len({group.get(key) for group in values}) > 1]
    telling = [key for key in differing if key == "experiment" or not _follows_from_experiment(key, values)]
    names = [_label({key: group[key] for key in telling if key in group}) for group in values]
    same = {key: values[0][key] for key in keys if key not in differing}
    return _tell_apart(names, configs), same


def short(value: Any) -> str:
    """A value as people write it: 0.001 for 1e-3, and at most 6 digits; of a path only its last part."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        text = without_folders(str(value))
        return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
    if isinstance(value, bool) or not math.isfinite(number):
        return str(value).lower()
    return f"{number:.6g}".replace("e-0", "e-")


def _overrides(result: Result) -> dict[str, str]:
    pairs = (override.lstrip("+~").partition("=") for override in result.get("overrides", []))
    return {key: short(value) for key, _, value in pairs if key not in UNNAMED}


def _follows_from_experiment(key: str, groups: Sequence[Mapping[str, str]]) -> bool:
    """Whether all groups are of an experiment, and the groups of each have one value of this key."""
    found = {(group.get("experiment"), group.get(key)) for group in groups}
    experiments = {experiment for experiment, _ in found}
    return None not in experiments and len(found) == len(experiments)


def _label(values: Mapping[str, str]) -> str:
    last = Counter(key.rpartition(".")[2] for key in values)
    parts = []
    for key, value in values.items():
        brief = key.rpartition(".")[2]
        if key in CHOICES_THAT_NAME_THEMSELVES:
            parts.append(value)
        else:
            parts.append(f"{brief if last[brief] == 1 else key} {value}")
    return ", ".join(parts)


def _tell_apart(names: list[str], configs: list[dict[str, str]]) -> list[str]:
    """Add to names that occur twice the keys of the config in which their groups differ."""
    told = list(names)
    for name, count in Counter(names).items():
        if count == 1:
            continue
        alike = [i for i, other in enumerate(names) if other == name]
        keys = sorted({key for i in alike for key in configs[i]} - set(UNNAMED))
        differing = [key for key in keys if len({configs[i].get(key) for i in alike}) > 1]
        for i in alike:
            told[i] = ", ".join(part for part in (name, _label(_some(configs[i], differing))) if part)
    if len(told) == 1:
        return [told[0] or "all runs"]
    return [name or "the defaults" for name in told] if len(set(told)) == len(told) else _number(told)


def _some(config: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    return {key: config.get(key, "none") for key in keys}


def _number(names: list[str]) -> list[str]:
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key of a nested config with its value as people write it; without seeds."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != SEED:
            yield f"{prefix}{key}", short(value)
