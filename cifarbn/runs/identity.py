"""What each key of the config counts for: what makes two runs the same, and how their folder and labels are named."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, Flag, auto
from typing import Any, NamedTuple

from cifarbn.runs.old_names import modern_config

LONGEST_NAME = 120
SEED = "seed"  # also further down, as data.seed


class Role(Enum):
    """What a key of the config has to do with the experiment, for those keys that do not define it.

    Attributes:
        EXECUTION: says how a run is carried out. Neither the run's folder name nor its config holds it.
        PLACE: says where a run's files are: like EXECUTION, and a path of the machine, so no result holds it.
        DEVICE: says what computes the run. Another value is another run, of the same experiment.
        WATCHING: says what is measured beside. Another value is another run, of the same experiment.
        MEMBER: tells the runs of one experiment apart.
    """

    EXECUTION = "execution"
    PLACE = "place"
    DEVICE = "device"
    WATCHING = "watching"
    MEMBER = "member"


class Tag(Flag):
    """What else a key counts for, whatever its role.

    Attributes:
        SUITE: `cifarbn.reproduce` sets it, so its user cannot.
        RATE: the learning rate, or what must follow it. Runs of one family differ in nothing else but the seed.
        NORM: the normalisation, the only difference between two families that are compared.
        LENGTH: how long a run trains. Another value may continue a run that has ended.
        NOTE: says where the experiment comes from and what it should reach; no label shows it.
        CHOICE: its value says what it is: a label has "vgg_a", and not "model vgg_a".
        TRAINING: of the data's keys, one that does not change which test images there are.
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
    """What one key counts for; `role` is None where it defines the experiment."""

    role: Role | None
    tags: Tag = Tag.NONE


# Every key that does not define the experiment, or that has a tag; any other key defines it and has none. A group or a
# key stands for all that is below it, but `trainer`, which holds much that defines the experiment, only for the choice
# `trainer=...`.
KEYS: dict[str, Use] = {
    "resume": Use(Role.EXECUTION),
    "retry": Use(Role.EXECUTION),
    "on_code_change": Use(Role.EXECUTION),
    "checkpoint_minutes": Use(Role.EXECUTION),
    "name": Use(Role.EXECUTION, Tag.SUITE),
    "trainer.enable_progress_bar": Use(Role.EXECUTION),
    "trainer.threads": Use(Role.EXECUTION),  # like OMP_NUM_THREADS
    "trainer.eval_batch_size": Use(Role.EXECUTION),  # data.eval_batch_size has its value
    "data.download": Use(Role.EXECUTION),
    "data.root": Use(Role.PLACE),
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


# Stored name -> today's. These layers had the fast code in them, which `accelerate` now adds to torch's.
RENAMED = {
    "cifarbn.models.BatchNorm2d": "torch.nn.BatchNorm2d",
    "cifarbn.models.batch_norm.BatchNorm2d": "torch.nn.BatchNorm2d",
    "cifarbn.models.convolution.Conv2d": "torch.nn.Conv2d",
    "cifarbn.models.max_pool.MaxPool2d": "torch.nn.MaxPool2d",
}
# Keys that older versions did not have, and the value that stands for what they did.
ADDED = {"trainer.cuda_graphs": "auto"}
# Overrides that say how a run is carried out, not what it is: the folder's name leaves them out.
EXECUTION_KEYS = keys_of_role(Role.EXECUTION, Role.PLACE)


def role_of(override: str) -> Role | None:
    """Return what the key of an override such as `seed=3` has to do with the experiment; None: it defines it."""
    key = key_of(override)
    if override.partition("=")[::2] == ("trainer", "smoke"):  # which trains on four batches
        return None
    return KEYS["record"].role if key.startswith("record.") else KEYS.get(key, Use(None)).role


def key_of(override: str) -> str:
    """Return the key of an override such as `+optim.lr=1e-3`."""
    return override.lstrip("+~").partition("=")[0]


def folder_name(overrides: Sequence[str]) -> str:
    """The name of a run's folder: its overrides, sorted, in characters that are safe everywhere.

    A short hash is added where a character had to be replaced or the name cut, so that two runs never share a folder.

    >>> folder_name(["optim.lr=1e-3", "model=vgg_a", "resume=false"])
    'model=vgg_a,optim.lr=1e-3'
    """
    what = sorted(o for o in overrides if key_of(o) not in EXECUTION_KEYS)
    exact = ",".join(what) or "defaults"
    name = re.sub(r"[^\w=,.+~-]", "_", exact, flags=re.ASCII)[:LONGEST_NAME]
    return name if name == exact else f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def experiment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as JSON would give it back, without what says only how the run is carried out, or where."""
    return without(config, EXECUTION_KEYS)


def todays_target(target: Any) -> Any:
    """Return today's name of a stored `_target_`."""
    return RENAMED.get(target, target) if isinstance(target, str) else target


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a run's config as today's version would have written it: with new keys and today's names.

    >>> completed({"trainer": {"compile": "auto"}, "norm": {"_target_": "cifarbn.models.BatchNorm2d"}})
    {'trainer': {'compile': 'auto', 'cuda_graphs': 'auto'}, 'norm': {'_target_': 'torch.nn.BatchNorm2d'}}
    """
    kept: dict[str, Any] = _with_todays_targets(modern_config(config))
    for key, value in ADDED.items():
        group, _, name = key.partition(".")
        if isinstance(kept.get(group), dict):
            kept[group].setdefault(name, value)
    return kept


def _with_todays_targets(node: Any) -> Any:
    """Return a copy of a config, or of a part of it, with today's names."""
    if isinstance(node, Mapping):
        return {k: todays_target(v) if k == "_target_" else _with_todays_targets(v) for k, v in node.items()}
    return [_with_todays_targets(each) for each in node] if isinstance(node, list) else node


def without(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a nested config without some dotted keys, such as "optim.lr", where it has them."""
    kept: dict[str, Any] = json.loads(json.dumps(config))
    for key in keys:
        *groups, last = key.split(".")
        node: Any = kept
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    return kept


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without `seed`, wherever in it that is repeated."""
    nested = {key: without_seed(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    return {key: value for key, value in nested.items() if key != SEED}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested configs differ, as `key: old -> new`, sorted by key."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return found
