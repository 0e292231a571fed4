"""Short names for groups of runs, made of the overrides that distinguish them."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cifarbn.errors import without_folders
from cifarbn.runs.identity import CUSTOM, EXECUTION_KEYS, SEED, Tag, keys_with
from cifarbn.runs.schema import Result

UNNAMED = (*EXECUTION_KEYS, SEED, *keys_with(Tag.NOTE))
# Other choices keep their key: `augment none` is clearer than `none`.
CHOICES_THAT_NAME_THEMSELVES = keys_with(Tag.CHOICE)

LONGEST_VALUE = 100  # characters
TARGET = "._target_"  # ends the key of the class that a config group is built from


def name_groups(results: Sequence[Result]) -> tuple[list[str], dict[str, str]]:
    """Return a unique label for each of several groups, given the result of one run of each.

    A label holds the overrides that differ between groups: `model=vgg_a optim.lr=1e-3` becomes "vgg_a, lr 0.001".
    Overrides implied by the experiment name are omitted from the label. `model._target_=package.Model` becomes "Model";
    of its arguments, those that all groups with this class share are omitted. If two labels are equal, the config keys
    that differ between their groups are appended.

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
    telling = [
        key
        for key in differing
        if key == "experiment" or not (_follows_from_experiment(key, values) or _follows_from_class(key, values))
    ]
    names = _labels([{key: group[key] for key in telling if key in group} for group in values])
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
    """Return override -> formatted value, without the seed, deleted keys and overrides that define no experiment."""
    pairs = (each.lstrip("+").partition("=") for each in result.get("overrides", []) if not each.startswith("~"))
    return {key: short(value) for key, _, value in pairs if key not in UNNAMED}


def of_readers(keys: Iterable[str]) -> list[str]:
    """Return keys as a reader knows them: "model" for "model._target_", and no other key of Hydra's, as `_partial_`."""
    named = (key.removesuffix(TARGET) for key in keys)
    return [key for key in dict.fromkeys(named) if not _is_hydras(key)]


def class_name(target: str) -> str:
    """Return the last part of a dotted name: "Adam" for "torch.optim.Adam"."""
    return target.rpartition(".")[2]


def _follows_from_experiment(key: str, groups: Sequence[Mapping[str, str]]) -> bool:
    """Return whether all groups belong to an experiment, and each experiment has a single value of this key."""
    pairs = {(group.get("experiment"), group.get(key)) for group in groups}
    experiments = {experiment for experiment, _ in pairs}
    return None not in experiments and len(pairs) == len(experiments)


def _follows_from_class(key: str, groups: Sequence[Mapping[str, str]]) -> bool:
    """Return whether a key is an argument of the user's own classes, which only groups with these classes have.

    If its value differs between groups, it does not follow.
    """
    choice, dot, _ = key.partition(".")
    target = f"{choice}{TARGET}"
    having = [group for group in groups if key in group]
    own = dot and key != target and all(target in group and group.get(choice, CUSTOM) == CUSTOM for group in having)
    classes = {group.get(target) for group in having} & {group.get(target) for group in groups if key not in group}
    return bool(own) and not classes and len({group[key] for group in having}) == 1


def _labels(groups: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a label of each group's values; classes of the same name keep their full names."""
    targets = {value for group in groups for key, value in group.items() if key.endswith(TARGET)}
    count = Counter(map(class_name, targets))
    names = {target: class_name(target) if count[class_name(target)] == 1 else target for target in targets}
    return [_label(_readable(group, names)) for group in groups]


def _readable(group: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the values without keys of Hydra's: {"model": "Net"} for {"model._target_": "package.Net"}."""
    values = {key: value for key, value in group.items() if not _is_hydras(key)}
    for key in (key for key in group if key.endswith(TARGET)):
        choice = key.removesuffix(TARGET)
        if values.get(choice, CUSTOM) == CUSTOM:  # the name of any other option is clearer than that of its class
            values[choice] = names[group[key]]
    return dict(sorted(values.items(), key=lambda item: ("." in item[0], item[0])))


def _is_hydras(key: str) -> bool:
    return class_name(key) in ("_target_", "_partial_", "_convert_", "_recursive_")


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
        labels = _labels([_some(configs[i], differing) for i in alike])
        for i, label in zip(alike, labels, strict=True):
            unique[i] = ", ".join(part for part in (name, label) if part)
    if len(unique) == 1:
        return [unique[0] or "all runs"]
    unique = [name or "defaults" for name in unique]
    return unique if len(set(unique)) == len(unique) else _number(unique)


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
