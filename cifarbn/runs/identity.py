"""The role of each config key: which keys identify a run, and how its folder and its labels are named."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum, Flag, auto
from pathlib import PurePath
from typing import Any, NamedTuple

LONGEST_NAME = 120
_QUOTES = "'\""
SEED = "seed"  # also nested, as data.seed
CUSTOM = "custom"  # the option of a config group that builds a class of the user's own


class Role(Enum):
    """The role of a config key that does not define the experiment.

    Attributes:
        EXECUTION: how a run is executed. Neither the run's folder name nor its stored config includes the key.
        PLACE: where files are. Like EXECUTION; as a path of this machine it is not in result.json at all.
        DEVICE: the hardware and its settings. Another value is another run of the same experiment.
        WATCHING: what is measured during training. Another value is another run of the same experiment.
        MEMBER: distinguishes the runs of one experiment, such as the seed.
    """

    EXECUTION = "execution"
    PLACE = "place"
    DEVICE = "device"
    WATCHING = "watching"
    MEMBER = "member"


class Tag(Flag):
    """Further properties of a config key, independent of its role.

    Attributes:
        SUITE: set by `cifarbn.reproduce`, so its users cannot override it.
        RATE: the learning rate, or a key that depends on it. Runs of one family differ only in these and the seed.
        NORM: the normalisation, the only difference between two families that are compared.
        LENGTH: how long a run trains. A finished run may be continued with a larger value.
        NOTE: the source of the experiment and its target accuracy; not shown in labels.
        CHOICE: a key whose value speaks for itself: a label has "vgg_a", not "model vgg_a".
        TRAINING: a key of the data that does not change the test images.
    """

    NONE = 0
    SUITE = auto()
    RATE = auto()
    NORM = auto()
    LENGTH = auto()
    NOTE = auto()
    CHOICE = auto()
    TRAINING = auto()


class Use(NamedTuple):
    """The role and the tags of one key; `role` is None for a key that defines the experiment."""

    role: Role | None
    tags: Tag = Tag.NONE


# All keys that have a role or a tag; every other key defines the experiment. A group includes its keys, except
# `trainer`, many of whose keys define the experiment: it means only the choice `trainer=...`.
KEYS: dict[str, Use] = {
    "resume": Use(Role.EXECUTION),
    "retry": Use(Role.EXECUTION),
    "on_code_change": Use(Role.EXECUTION),
    "checkpoint_minutes": Use(Role.EXECUTION),
    "name": Use(Role.EXECUTION, Tag.SUITE),
    "logger": Use(Role.EXECUTION),
    "trainer.enable_progress_bar": Use(Role.EXECUTION),
    "trainer.threads": Use(Role.EXECUTION),  # like OMP_NUM_THREADS
    "trainer.eval_batch_size": Use(Role.EXECUTION),  # data.eval_batch_size has its value
    "data.download": Use(Role.EXECUTION),
    "data.root": Use(Role.PLACE),  # of data=folder, data.content identifies the images
    "data.cache": Use(Role.PLACE),
    "resume_from": Use(Role.PLACE, Tag.SUITE),
    "trainer": Use(Role.DEVICE),
    "trainer.accelerator": Use(Role.DEVICE),
    "trainer.devices": Use(Role.DEVICE),
    "trainer.precision": Use(Role.DEVICE),
    "trainer.channels_last": Use(Role.DEVICE),
    "trainer.compile": Use(Role.DEVICE),
    "trainer.cuda_graphs": Use(Role.DEVICE),
    "trainer.kernels": Use(Role.DEVICE),
    "data.eval_batch_size": Use(Role.DEVICE, Tag.TRAINING),
    "data.test_curve": Use(Role.WATCHING, Tag.TRAINING),
    "record": Use(Role.WATCHING),
    "model_head": Use(Role.WATCHING),
    "record.gradient_probe.eta": Use(Role.WATCHING, Tag.RATE),
    "experiment": Use(Role.MEMBER, Tag.CHOICE),
    SEED: Use(Role.MEMBER),
    "data": Use(None, Tag.CHOICE),
    "data.augmentation": Use(None, Tag.TRAINING),
    "data.batch_size": Use(None, Tag.TRAINING),
    "data.drop_last": Use(None, Tag.TRAINING),
    "data.seed": Use(None, Tag.TRAINING),
    "model": Use(None, Tag.CHOICE),
    "model.norm": Use(None, Tag.NORM),
    "norm": Use(None, Tag.NORM),
    "activation": Use(None, Tag.CHOICE),
    "loss": Use(None, Tag.CHOICE),
    "optim": Use(None, Tag.CHOICE),
    "optim.lr": Use(None, Tag.RATE),
    "schedule.max_lr": Use(None, Tag.RATE),
    "epochs": Use(None, Tag.LENGTH),
    "trainer.max_epochs": Use(None, Tag.LENGTH),  # follows epochs
    "target": Use(None, Tag.NOTE),
    "source": Use(None, Tag.NOTE),
}


def keys_of_role(*roles: Role) -> tuple[str, ...]:
    """Return the keys that have one of these roles, in the order of the table."""
    return tuple(key for key, use in KEYS.items() if use.role in roles)


def keys_with(tags: Tag) -> tuple[str, ...]:
    """Return the keys that have any of some tags, such as `Tag.NOTE | Tag.RATE`, in the order of the table."""
    return tuple(key for key, use in KEYS.items() if use.tags & tags)


# Groups in which every key has the role of the group.
GROUPS_OF_ONE_ROLE = ("record", "logger")
# Keys that do not identify a run; its stored config omits them.
EXECUTION_KEYS = keys_of_role(Role.EXECUTION, Role.PLACE)


def role_of(override: str) -> Role | None:
    """Return the role of the key of an override such as `seed=3`; None if it defines the experiment."""
    key = key_of(override)
    if override.partition("=")[::2] == ("trainer", "smoke"):  # trains on four batches only
        return None
    group = key.partition(".")[0]
    return KEYS[group].role if group in GROUPS_OF_ONE_ROLE else KEYS.get(key, Use(None)).role


def identifies(override: str) -> bool:
    """Return whether an override is part of what identifies a run, and not only of how it is executed."""
    return role_of(override) not in (Role.EXECUTION, Role.PLACE)


def key_of(override: str) -> str:
    """Return the key of an override such as `+optim.lr=1e-3`."""
    return override.lstrip("+~").partition("=")[0]


def folder_name(overrides: Sequence[str]) -> str:
    """Return the name of a run's folder: its overrides, sorted, in characters that every file system allows.

    A short hash is appended if a character had to be replaced or the name was truncated, so names are unique.

    >>> folder_name(["optim.lr=1e-3", "model=vgg_a", "resume=false"])
    'model=vgg_a,optim.lr=1e-3'
    >>> folder_name(["data=folder", "data.root=/home/jane/flowers"])
    'data.root=flowers,data=folder'
    """
    exact = ",".join(sorted(identifying(overrides))) or "defaults"
    name = re.sub(r"[^\w=,.+~-]", "_", exact, flags=re.ASCII)[:LONGEST_NAME]
    return name if name == exact else f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def identifying(overrides: Sequence[str]) -> Iterator[str]:
    """Yield the overrides that identify a run, with only the last part of a path."""
    for override in overrides:
        if key_of(override) == "init_from":
            # Only the last part, as paths belong to one machine; the config holds the hash of the weights.
            yield f"init_from={PurePath(override.partition('=')[2].strip(_QUOTES)).name}"
        elif identifies(override):
            yield override
        elif "data=folder" in overrides and key_of(override) == "data.root":
            # Other images are another run; of the path, only the last part, as paths belong to one machine.
            yield f"data.root={PurePath(override.partition('=')[2]).name}"


def experiment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON copy of the config without the keys of execution and place."""
    return without(config, EXECUTION_KEYS)


def without(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a nested config without the given dotted keys, such as "optim.lr"."""
    kept: dict[str, Any] = json.loads(json.dumps(config))
    for key in keys:
        parent, last = parent_of(kept, key)
        if parent is not None:
            parent.pop(last, None)
    return kept


def parent_of(config: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """Return the part of a nested config that holds a dotted key, or would hold it, and the last part of the key.

    The part is None if the config has no such group.
    """
    *groups, last = key.split(".")
    node: Any = config
    for group in groups:
        node = node.get(group) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), last


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without any key `seed`, at any depth."""
    nested = {key: without_seed(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    return {key: value for key, value in nested.items() if key != SEED}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the differences of two nested configs as `key: old -> new`, sorted by key."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return changes
