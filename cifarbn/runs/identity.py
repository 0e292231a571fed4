"""What makes two runs the same run: which keys of the config count, and the name of the run's folder."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

LONGEST_NAME = 120


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


# Every key that does not define the experiment. A group or a key stands for all that is below it, but `trainer`, which
# holds much that does, only for the choice `trainer=...`.
ROLES: dict[str, Role] = {
    "resume": Role.EXECUTION,
    "retry": Role.EXECUTION,
    "changed_code": Role.EXECUTION,
    "checkpoint_minutes": Role.EXECUTION,
    "name": Role.EXECUTION,
    "trainer.enable_progress_bar": Role.EXECUTION,
    "trainer.threads": Role.EXECUTION,  # like OMP_NUM_THREADS
    "trainer.eval_batch_size": Role.EXECUTION,  # data.eval_batch_size has its value
    "data.download": Role.EXECUTION,
    "data.root": Role.PLACE,
    "resume_from": Role.PLACE,
    "trainer": Role.DEVICE,
    "trainer.accelerator": Role.DEVICE,
    "trainer.devices": Role.DEVICE,
    "trainer.precision": Role.DEVICE,
    "trainer.channels_last": Role.DEVICE,
    "trainer.compile": Role.DEVICE,
    "trainer.cuda_graphs": Role.DEVICE,
    "trainer.kernels": Role.DEVICE,
    "data.eval_batch_size": Role.DEVICE,
    "data.test_curve": Role.WATCHING,
    "record": Role.WATCHING,
    "experiment": Role.MEMBER,
    "seed": Role.MEMBER,
}
# Keys that older versions did not have, and the value that stands for what they did.
ADDED = {"trainer.cuda_graphs": "auto"}
# Overrides that say how a run is carried out, not what it is: the folder's name leaves them out.
NOT_THE_EXPERIMENT = tuple(key for key, role in ROLES.items() if role in (Role.EXECUTION, Role.PLACE))


def role_of(override: str) -> Role | None:
    """Return what the key of an override such as `seed=3` has to do with the experiment; None: it defines it."""
    key = key_of(override)
    if override.partition("=")[::2] == ("trainer", "smoke"):  # which trains on four batches
        return None
    return ROLES.get(key) or (ROLES["record"] if key.startswith("record.") else None)


def key_of(override: str) -> str:
    """Return the key of an override such as `+optim.lr=1e-3`."""
    return override.lstrip("+~").partition("=")[0]


def folder_name(overrides: Sequence[str]) -> str:
    """The name of a run's folder: its overrides, sorted, in characters that are safe everywhere.

    A short hash is added where a character had to be replaced or the name cut, so that two runs never share a folder.

    >>> folder_name(["optim.lr=1e-3", "model=vgg_a", "resume=false"])
    'model=vgg_a,optim.lr=1e-3'
    """
    what = sorted(o for o in overrides if key_of(o) not in NOT_THE_EXPERIMENT)
    exact = ",".join(what) or "defaults"
    name = re.sub(r"[^\w=,.+~-]", "_", exact, flags=re.ASCII)[:LONGEST_NAME]
    return name if name == exact else f"{name}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def experiment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as JSON would give it back, without what says only how the run is carried out, or where."""
    return without(config, NOT_THE_EXPERIMENT)


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a run's config, which an older version may have written, with the keys that have come since.

    >>> completed({"trainer": {"compile": "auto"}})
    {'trainer': {'compile': 'auto', 'cuda_graphs': 'auto'}}
    """
    kept: dict[str, Any] = json.loads(json.dumps(config))
    for key, value in ADDED.items():
        group, _, name = key.partition(".")
        if isinstance(kept.get(group), dict):
            kept[group].setdefault(name, value)
    return kept


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
