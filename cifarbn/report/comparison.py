"""The experiments of a source, row by row: its number beside the measured one."""

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
    """One experiment that a source describes, and the runs that repeat it.

    Attributes:
        name: as on the command line, such as "course_report/l2".
        source: where it stands there.
        target: the test accuracy given there, a fraction; None if none is.
        base: the name of the row that this one changes, if it is one of the table's.
        changes: what the runs do otherwise than the source, as `key: its -> ours`.
        folders: of the runs, by name, made or not.
    """

    name: str
    source: str
    target: float | None
    base: str | None
    changes: Sequence[str]
    folders: Sequence[str]


def comparison(
    rows: Sequence[Row], sweep: RunSet, text: str, *, comparable: bool, refused: Mapping[str, str] = NOTHING
) -> Section:
    """The section with one line a row, in the order given.

    `refused` holds, by folder, why what is there is not the run that belongs there; none of them counts.

    Where the runs are not the source's experiments (`comparable` is false) there is no gap; what a row changes of the
    one it builds on stands beside the same difference in the source instead.
    """
    records = {run.folder.name: run for group in sweep.groups for run in group.runs + group.excluded}
    records = {name: run for name, run in records.items() if name not in refused}
    troubles = {name: f"refused: {why}" for name, why in refused.items()} | sweep.unreadable
    measured = {row.name: _estimate(row, records) for row in rows}
    targets = {row.name: row.target for row in rows}
    its = "the source's, %" if comparable else "the source's own experiment, %"
    columns: dict[str, list[str]] = {"experiment": [row.name for row in rows]}
    columns[its] = [number(row.target, scale=100) for row in rows]
    estimates = [measured[row.name] for row in rows]
    columns["measured here, %"] = [plus_minus(e.mean, e.std, scale=100) if e else "" for e in estimates]
    columns["95 % interval"] = [interval(e.mean, e.half_width, scale=100) if e else "" for e in estimates]
    if comparable:
        columns["gap"] = [points(_minus(_mean(measured[row.name]), row.target)) for row in rows]
    else:
        columns["builds on"] = [row.base or "" for row in rows]
        columns["points more: the source"] = [points(_minus(row.target, targets.get(row.base or ""))) for row in rows]
        columns["points more: here"] = [
            points(_minus(_mean(measured[row.name]), _mean(measured.get(row.base or "")))) for row in rows
        ]
    if not all(measured[row.name] for row in rows if _runs(row, records)):  # those that classify nothing
        columns["training loss here"] = ["" if measured[row.name] else _loss(row, records) for row in rows]
    columns["n"] = [str(len(_runs(row, records))) for row in rows]
    columns["data"] = [", ".join(dict.fromkeys(run.data for run in _runs(row, records))) for row in rows]
    columns["does not count"] = [_missing(row, records, troubles) for row in rows]
    columns["changed"] = ["; ".join(row.changes) or "nothing" for row in rows]
    columns["where in the source"] = [row.source for row in rows]
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    lines = [dict(zip(shown, cells, strict=True)) for cells in zip(*shown.values(), strict=True)]
    return Section("Beside the source", text, table=shown, files={"comparison.csv": as_csv(lines)})


def _runs(row: Row, records: Mapping[str, RunRecord]) -> list[RunRecord]:
    """The row's runs that count."""
    return [run for name in row.folders if (run := records.get(name)) and not run.exclusion_reason]


def _estimate(row: Row, records: Mapping[str, RunRecord]) -> Estimate | None:
    values = [run.result.get("metrics", {}).get("test/acc") for run in _runs(row, records)]
    known = [value for value in values if value is not None]
    return estimate(known) if known else None


def _loss(row: Row, records: Mapping[str, RunRecord]) -> str:
    """The mean of the last epochs' losses."""
    losses = [run.result.get("metrics", {}).get("train/loss") for run in _runs(row, records)]
    known = [loss for loss in losses if loss is not None]
    return f"{sum(known) / len(known):.4g}" if known else ""


def _missing(row: Row, records: Mapping[str, RunRecord], troubles: Mapping[str, str]) -> str:
    """How many runs do not count, and why."""
    why = Counter(
        records[name].exclusion_reason if name in records else troubles.get(name, "not begun")
        for name in row.folders
        if name not in records or records[name].exclusion_reason
    )
    return "; ".join(f"{count} {trouble}" for trouble, count in why.items())


def _mean(found: Estimate | None) -> float | None:
    return found.mean if found else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
