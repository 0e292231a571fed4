"""Families: runs in one folder that differ only in learning rate and seed. Pairs differ only in normalisation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cifarbn.report.gather import RunRecord, RunSet
from cifarbn.report.labels import name_groups_of_folders, short
from cifarbn.runs.identity import Tag, keys_with, without, without_seed
from cifarbn.runs.schema import Result


@dataclass
class Family:
    """Runs that differ only in learning rate and seed.

    Attributes:
        label: readable name that distinguishes the family.
        norm: class of its normalisation layers, such as BatchNorm2d; Identity for none.
        rest: folder and config without seed, learning rate and normalisation, as JSON; equal in a pair of families.
        runs: learning rate -> included runs, by seed.
        excluded: names of the runs that are excluded from all figures.
        data: name of its data set.
    """

    label: str = ""
    norm: str = ""
    rest: str = ""
    runs: dict[str, list[RunRecord]] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    data: str = ""

    def each(self) -> list[tuple[str, RunRecord]]:
        """Return every included run, with its learning rate."""
        return [(rate, run) for rate, runs in self.runs.items() for run in runs]

    def across_rates(self) -> list[dict[str, RunRecord]]:
        """Return rate -> run for each seed with the full number of learning rates; empty if no seed has two.

        A band over rates belongs to one seed: with fewer rates than for other seeds it would be narrower.
        """
        by_seed: dict[int | None, dict[str, RunRecord]] = {}
        for rate, run in self.each():
            by_seed.setdefault(run.seed, {})[rate] = run
        most = max(map(len, by_seed.values()), default=0)
        return [by_rate for by_rate in by_seed.values() if len(by_rate) == most > 1]


def find_families(sweep: RunSet) -> list[Family]:
    """Return all families, in the order of the table, except that those without normalisation come last."""
    members: dict[tuple[str, str], list[RunRecord]] = {}
    for group in sweep.groups:
        for run in (*group.runs, *group.excluded):
            if run.config.get("optim", {}).get("lr") is None:
                continue  # the optimizer has no learning rate
            members.setdefault((run.root, json.dumps(_without_rate(run.config), sort_keys=True)), []).append(run)
    stripped: dict[tuple[str, str], Result] = {}
    for key, runs in members.items():
        # If learning rates are separate experiments, the family is named after the one with the fewest overrides.
        result = min((run.result for run in runs), key=lambda result: len(" ".join(result.get("overrides", []))))
        overrides = [o for o in result.get("overrides", []) if not o.startswith("optim.lr=")]
        stripped[key] = {"overrides": overrides, "config": _without_rate(result.get("config", {}))}
    labels, _ = name_groups_of_folders(stripped)
    families = []
    for key, runs in members.items():
        config = runs[0].config
        norm = config.get("model", {}).get("norm")
        norm = str(norm.get("_target_", "") if isinstance(norm, dict) else norm or "").rpartition(".")[2]
        rest = json.dumps([key[0], without(_without_rate(config), keys_with(Tag.NORM))], sort_keys=True)
        family = Family(labels[key], norm, rest, data=runs[0].data)
        for run in sorted(runs, key=lambda run: (run.config["optim"]["lr"], run.seed or 0)):
            if run.exclusion_reason:
                family.excluded.append(run.name)
            else:
                family.runs.setdefault(short(run.config["optim"]["lr"]), []).append(run)
        families.append(family)
    return sorted(families, key=lambda family: family.norm == "Identity")


def find_pairs(families: list[Family]) -> list[tuple[Family, Family]]:
    """Return every two families that differ only in their normalisation, as (reference, other).

    The reference is the family without normalisation; if all families are normalised, it is the last one.
    """
    alike: dict[str, list[Family]] = {}
    for family in families:
        if family.runs:
            alike.setdefault(family.rest, []).append(family)
    return [(members[-1], other) for members in alike.values() for other in members[:-1]]


def _without_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without seed, target, learning rate and the keys that follow from it."""
    return without(without_seed(config), keys_with(Tag.NOTE | Tag.RATE))
