"""Targets of the user's own: `model._target_=package.Model` chooses the option `custom` of the group."""

from collections.abc import Sequence

from hydra.core.override_parser.types import Override

from cifarbn.runs.identity import CUSTOM

GROUPS = ("model", "optim", "loss", "schedule", "norm", "activation")  # groups with this option


def with_custom_options(overrides: Sequence[Override]) -> list[str]:
    """Return the overrides with `GROUP=custom` for each `GROUP._target_=...` that comes without a choice of GROUP.

    Otherwise the keys of the group's default option would be passed to the target, too. In a group whose option is
    `custom`, `GROUP.KEY=VALUE` may add a key, because the arguments of the target are not known.
    """
    options = {override.key_or_group: override.value() for override in overrides if override.key_or_group in GROUPS}
    keys = [override.key_or_group for override in overrides if not override.is_delete()]
    targets = {key.removesuffix("._target_") for key in keys if key.endswith("._target_")}
    added = [group for group in GROUPS if group in targets and group not in options]
    custom = {*added, *(group for group, option in options.items() if option == CUSTOM)}
    lines = [f"{group}={CUSTOM}" for group in added]
    for override in overrides:
        line = str(override.input_line)
        group, dot, _ = override.key_or_group.partition(".")
        lines.append(f"++{line}" if dot and group in custom and not line.startswith(("+", "~")) else line)
    return lines
