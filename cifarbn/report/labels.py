"""Short names for groups of runs, made of the overrides that distinguish them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cifarbn.errors import without_folders
from cifarbn.runs.identity import EXECUTION_KEYS, SEED, Tag, keys_with
from cifarbn.runs.schema import Result

UNNAMED = (*EXECUTION_KEYS, SEED, *keys_with(Tag.NOTE))
# Other choices keep their key: `augment none` is clearer than `none`.
CHOICES_THAT_NAME_THEMSELVES = keys_with(Tag.CHOICE)

LONGEST_VALUE = 100  # characters


def name_groups(results: Sequence[Result]) -> tuple[list[str], dict[str, str]]:
    """Return a unique label for each of several groups, given the result of one run of each.

    A label holds the overrides that differ between groups: `model=vgg_a optim.lr=1e-3` becomes "vgg_a, lr 0.001".
    Overrides implied by the experiment name are omitted from the label. If two labels are equal, the config keys that
    differ between their groups are appended.

    Returns:
        The labels, and override -> value for those overrides that are the same in all groups.
    """
    overrides = [overrides_of(result) for result in results]
    configs = [dict(leaves(result.get("config", {}))) for result in results]
    keys = sorted({key for by_key in overrides for key in by_key}, key=lambda key: ("." in key, key))
    # A group that does not override a key has the default value of its config, unless the key is a config group.
    values = [
        {key: value for key in keys if (value := by_key.get(key, config.get(key))) is not None}
        for by_key, config in zip(overrides, configs, strict=True)
    ]
    differing = [key for key in keys if len({group.get(key) for group in values}) > 1]
    telling = [key for key in differing if key == "experiment" or not _follows_from_experiment(key, values)]
    names = [_label({key: group[key] for key in telling if key in group}) for group in values]
    same = {key: values[0][key] for key in keys if key not in differing}
    return _tell_apart(names, configs), same


def name_groups_of_folders(
    results: Mapping[tuple[str, str], Result],
) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """Return a label for each group of several folders, which begins with its folder, as in "sweep: vgg_a, lr 0.001".

    Args:
        results: (folder, config) -> result of one run. Groups of one config have equal labels apart from the folder,
            and the folder "" is left out.

    Returns:
        (folder, config) -> label, and override -> value for those overrides that are the same in all groups.
    """
    configs = {config: result for (_, config), result in results.items()}
    names, same = name_groups(list(configs.values()))
    by_config = dict(zip(configs, names, strict=True))
    labels = {
        (folder, config): f"{folder}: {by_config[config]}" if folder else by_config[config]
        for folder, config in results
    }
    return labels, same


def short(value: Any) -> str:
    """Format a value: 0.001 for 1e-3, at most 6 digits; only the last part of a path."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        text = without_folders(str(value))
        return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
    if isinstance(value, bool) or not math.isfinite(number):
        return str(value).lower()
    return f"{number:.6g}".replace("e-0", "e-")


def overrides_of(result: Result) -> dict[str, str]:
    """Return override -> formatted value, without the seed and overrides that do not define the experiment."""
    pairs = (override.lstrip("+~").partition("=") for override in result.get("overrides", []))
    return {key: short(value) for key, _, value in pairs if key not in UNNAMED}


def _follows_from_experiment(key: str, groups: Sequence[Mapping[str, str]]) -> bool:
    """Return whether all groups belong to an experiment, and each experiment has a single value of this key."""
    pairs = {(group.get("experiment"), group.get(key)) for group in groups}
    experiments = {experiment for experiment, _ in pairs}
    return None not in experiments and len(pairs) == len(experiments)


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
    """Append to repeated names the config keys in which their groups differ."""
    unique = list(names)
    for name, count in Counter(names).items():
        if count == 1:
            continue
        alike = [i for i, other in enumerate(names) if other == name]
        keys = sorted({key for i in alike for key in configs[i]} - set(UNNAMED))
        differing = [key for key in keys if len({configs[i].get(key) for i in alike}) > 1]
        for i in alike:
            unique[i] = ", ".join(part for part in (name, _label(_some(configs[i], differing))) if part)
    if len(unique) == 1:
        return [unique[0] or "all runs"]
    return [name or "defaults" for name in unique] if len(set(unique)) == len(unique) else _number(unique)


def _some(config: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    return {key: config.get(key, "none") for key in keys}


def _number(names: list[str]) -> list[str]:
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every dotted key of a nested config with its formatted value, except the seed."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != SEED:
            yield f"{prefix}{key}", short(value)
