"""The experiments of a publication, one per row: the published accuracy next to the measured one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cifarbn.formatting import interval, number, plus_minus, points
from cifarbn.report.gather import RunRecord, RunSet
from cifarbn.report.interval import Estimate, estimate
from cifarbn.report.section import Section
from cifarbn.report.table import as_csv

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Row:
    """One experiment of a publication, and the runs that repeat it.

    Attributes:
        name: as on the command line, such as "course_report/l2".
        source: its place in the publication.
        target: published test accuracy, a fraction; None if none is published.
        base: name of the row that this experiment modifies, if that row is in the table.
        changes: differences between the runs and the publication, as `key: published -> ours`.
        folders: names of the run folders, whether they exist or not.
    """

    name: str
    source: str
    target: float | None
    base: str | None
    changes: Sequence[str]
    folders: Sequence[str]


def comparison(
    rows: Sequence[Row], sweep: RunSet, text: str, *, comparable: bool, conflicts: Mapping[str, str] = NOTHING
) -> Section:
    """Return the section that compares published and measured accuracies.

    Args:
        rows: one line each, in this order.
        sweep: the runs.
        text: a paragraph under the heading.
        comparable: whether the runs repeat the published experiments. If so, the table has a column with the gap; if
            not, it compares each row's gain over its base row with the published gain.
        conflicts: name of a run folder -> why the run in it is not the expected one; these runs are excluded.
    """
    records = {run.folder.name: run for group in sweep.groups for run in group.runs + group.excluded}
    records = {name: run for name, run in records.items() if name not in conflicts}
    problems = {name: f"conflict: {why}" for name, why in conflicts.items()} | sweep.unreadable
    measured = {row.name: _estimate(row, records) for row in rows}
    targets = {row.name: row.target for row in rows}
    published = "published, %" if comparable else "published (full-size experiment), %"
    columns: dict[str, list[str]] = {"experiment": [row.name for row in rows]}
    columns[published] = [number(row.target, scale=100) for row in rows]
    estimates = [measured[row.name] for row in rows]
    columns["measured, %"] = [plus_minus(e.mean, e.std, scale=100) if e else "" for e in estimates]
    columns["95 % interval"] = [interval(e.mean, e.half_width, scale=100) if e else "" for e in estimates]
    if comparable:
        columns["gap"] = [points(_minus(_mean(measured[row.name]), row.target)) for row in rows]
    else:
        columns["modifies"] = [row.base or "" for row in rows]
        columns["gain, published"] = [points(_minus(row.target, targets.get(row.base or ""))) for row in rows]
        columns["gain, measured"] = [
            points(_minus(_mean(measured[row.name]), _mean(measured.get(row.base or "")))) for row in rows
        ]
    if not all(measured[row.name] for row in rows if _runs(row, records)):  # regressions have no accuracy
        columns["training loss"] = ["" if measured[row.name] else _loss(row, records) for row in rows]
    columns["n"] = [str(len(_runs(row, records))) for row in rows]
    columns["data"] = [", ".join(dict.fromkeys(run.data for run in _runs(row, records))) for row in rows]
    columns["excluded or missing"] = [_missing(row, records, problems) for row in rows]
    columns["changes"] = ["; ".join(row.changes) or "none" for row in rows]
    columns["source"] = [row.source for row in rows]
    table = {heading: cells for heading, cells in columns.items() if any(cells)}
    lines = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    return Section("Published and measured accuracy", text, table=table, files={"comparison.csv": as_csv(lines)})


def _runs(row: Row, records: Mapping[str, RunRecord]) -> list[RunRecord]:
    """Return the row's included runs."""
    return [run for name in row.folders if (run := records.get(name)) and not run.exclusion_reason]


def _estimate(row: Row, records: Mapping[str, RunRecord]) -> Estimate | None:
    values = [run.result.get("metrics", {}).get("test/acc") for run in _runs(row, records)]
    known = [value for value in values if value is not None]
    return estimate(known) if known else None


def _loss(row: Row, records: Mapping[str, RunRecord]) -> str:
    """Return the mean over runs of the last epoch's training loss."""
    losses = [run.result.get("metrics", {}).get("train/loss") for run in _runs(row, records)]
    known = [loss for loss in losses if loss is not None]
    return f"{sum(known) / len(known):.4g}" if known else ""


def _missing(row: Row, records: Mapping[str, RunRecord], problems: Mapping[str, str]) -> str:
    """Return how many runs are excluded or missing, and why."""
    reasons = Counter(
        records[name].exclusion_reason if name in records else problems.get(name, "not started")
        for name in row.folders
        if name not in records or records[name].exclusion_reason
    )
    return "; ".join(f"{count} {reason}" for reason, count in reasons.items())


def _mean(measured: Estimate | None) -> float | None:
    return measured.mean if measured else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
