"""Families of runs that differ in learning rate and seed only, and pairs of families that differ in the norm only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cifarbn.report.gather import RunRecord, RunSet
from cifarbn.report.labels import name_groups, short
from cifarbn.runs.identity import Tag, keys_with, without, without_seed
from cifarbn.runs.schema import Result


@dataclass
class Family:
    """Runs that differ in nothing but their learning rate and seed.

    Attributes:
        label: what sets it apart, to be read by people.
        norm: its normalisation layer's class, such as BatchNorm2d; Identity for none.
        besides: its config without seed, rate and norm: what families to be paired have in common.
        runs: learning rate -> its runs that count, by seed.
        excluded: name of run -> why it is in no figure.
        data: the name of its data set.
    """

    label: str = ""
    norm: str = ""
    besides: str = ""
    runs: dict[str, list[RunRecord]] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    data: str = ""

    def each(self) -> list[tuple[str, RunRecord]]:
        """Every run that counts, with its rate."""
        return [(rate, run) for rate, runs in self.runs.items() for run in runs]

    def across_rates(self) -> list[dict[str, RunRecord]]:
        """For each seed that has as many learning rates as any: rate -> its run; none where no seed has two.

        A band over rates is one seed's: another number of rates would make it narrower for no reason of its own.
        """
        by_seed: dict[int | None, dict[str, RunRecord]] = {}
        for rate, run in self.each():
            by_seed.setdefault(run.seed, {})[rate] = run
        most = max(map(len, by_seed.values()), default=0)
        return [by_rate for by_rate in by_seed.values() if len(by_rate) == most > 1]


def find_families(sweep: RunSet) -> list[Family]:
    """All families under a folder, in the order of its table but those without normalisation last."""
    members: dict[str, list[RunRecord]] = {}
    for group in sweep.groups:
        for run in (*group.runs, *group.excluded):
            if run.config.get("optim", {}).get("lr") is None:
                continue  # an optimizer that has no rate of its own: nothing here could be said of it
            members.setdefault(json.dumps(_without_rate(run.config), sort_keys=True), []).append(run)
    stripped: list[Result] = []
    for runs in members.values():
        # Where rates are experiments of their own, the family has the plainest one's name.
        result = min((run.result for run in runs), key=lambda result: len(" ".join(result.get("overrides", []))))
        overrides = [o for o in result.get("overrides", []) if not o.startswith("optim.lr=")]
        stripped.append({"overrides": overrides, "config": _without_rate(result.get("config", {}))})
    labels, _ = name_groups(stripped)
    families = []
    for label, runs in zip(labels, members.values(), strict=True):
        config = runs[0].config
        norm = config.get("model", {}).get("norm")
        norm = str(norm.get("_target_", "") if isinstance(norm, dict) else norm or "").rpartition(".")[2]
        besides = json.dumps(without(_without_rate(config), keys_with(Tag.NORM)), sort_keys=True)
        family = Family(label, norm, besides, data=runs[0].data)
        for run in sorted(runs, key=lambda run: (run.config["optim"]["lr"], run.seed or 0)):
            if run.exclusion_reason:
                family.excluded[run.name] = run.exclusion_reason
            else:
                family.runs.setdefault(short(run.config["optim"]["lr"]), []).append(run)
        families.append(family)
    return sorted(families, key=lambda family: family.norm == "Identity")


def find_pairs(families: list[Family]) -> list[tuple[Family, Family]]:
    """Every two families that differ in their normalisation only, as (reference, other).

    The reference is the family without normalisation; where there is none, the last, as in two kinds of norm.
    """
    alike: dict[str, list[Family]] = {}
    for family in families:
        if family.runs:
            alike.setdefault(family.besides, []).append(family)
    return [(members[-1], other) for members in alike.values() for other in members[:-1]]


def _without_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without seed, learning rate and what goes with it, and target."""
    return without(without_seed(config), keys_with(Tag.NOTE | Tag.RATE))
