"""The table of groups, for reading (HTML, Markdown, LaTeX) and for computing (CSV)."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from cifarbn.formatting import interval, number, plus_minus, points
from cifarbn.report import escape
from cifarbn.report.gather import Group, RunRecord, RunSet
from cifarbn.report.interval import estimate
from cifarbn.runs.schema import FINAL_METRICS, FinalMetric, throughout

TEST_ACC: FinalMetric = "test/acc"
VAL_ACC: FinalMetric = "val/acc"
TRAIN_LOSS: FinalMetric = "train/loss"
# Columns of text, and those of them that hold sentences.
PROSE = ("excluded or missing", "changes", "source")
WORDS = ("runs", "data", "device", "experiment", "modifies", *PROSE)
# Omitted from the LaTeX table to fit a page; table.csv has all columns.
NOT_ON_PAPER = ("steps", "parameters", "training, s", "images/s", "device")
LONG_LABEL, LABEL_WIDTH, FEW_COLUMNS = 22, "2.6cm", 6


def rows(sweep: RunSet) -> list[dict[str, Any]]:
    """Return one row per group with included runs, best first, with all columns; accuracies are fractions."""
    return [_row(group) for group in sweep.counted]


def run_rows(sweep: RunSet) -> list[dict[str, Any]]:
    """Return one row per run, including excluded runs, whose column `excluded` gives the reason."""
    runs = [(group, run) for group in sweep.groups for run in group.runs + group.excluded]
    table = [_run_row(group, run) for group, run in runs]
    return table + [{"run": name, "excluded": reason} for name, reason in sweep.unreadable.items()]


def columns(sweep: RunSet) -> dict[str, list[str]]:
    """Return the table for reading: heading -> one cell per group; empty columns are omitted."""
    table = rows(sweep)
    columns: dict[str, list[str]] = {"runs": [row["group"] for row in table], "n": [str(row["n"]) for row in table]}
    for metric, heading in ((TEST_ACC, "test accuracy, %"), (VAL_ACC, "validation accuracy, %")):
        columns[heading] = _means(table, metric, scale=100)
        if metric == TEST_ACC:
            columns["95 % interval"] = _intervals(table, metric, scale=100)
            columns["target, %"] = [number(row["target"], scale=100) for row in table]
            columns["gap"] = [points(row["gap"]) for row in table]
    if not any(_has(columns[heading]) for heading in ("test accuracy, %", "validation accuracy, %")):
        columns["training loss"] = _means(table, TRAIN_LOSS, digits=4)
        columns["95 % interval"] = _intervals(table, TRAIN_LOSS, digits=4)
    columns["data"] = [row["data"] for row in table]
    columns["steps"] = [number(row["steps"] or None, 0) for row in table]
    columns["parameters"] = [number(row["parameters"] or None, 0) for row in table]
    columns["training, s"] = [number(row["seconds"], 0) for row in table]
    columns["images/s"] = [number(row["images_per_second"] or None, 0) for row in table]
    if len(devices(sweep)) > 1:
        columns["device"] = [row["device"] for row in table]
    return {heading: cells for heading, cells in columns.items() if _has(cells)}


def devices(sweep: RunSet) -> list[str]:
    """Return the devices of all included runs; the table has a column for the device if there are several."""
    return list(dict.fromkeys(_device(run) for group in sweep.counted for run in group.runs))


def as_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as CSV; a missing key or a value of None gives an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in table for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(table: Mapping[str, Sequence[str]]) -> str:
    """Format columns as a GitHub table."""
    head, *body = [list(table), *zip(*table.values(), strict=True)]
    lines = [map(escape.markdown, head), ["---"] * len(table), *(map(escape.markdown, line) for line in body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(sweep: RunSet) -> str:
    r"""Format the columns that fit a printed page as a LaTeX tabular, which needs \usepackage{array, booktabs}."""
    every = columns(sweep)
    alike = ["data"] if len(set(every.get("data", []))) <= 1 else []
    judged = ["validation accuracy, %"] if "test accuracy, %" in every else []
    table = {heading: cells for heading, cells in every.items() if heading not in (*NOT_ON_PAPER, *alike, *judged)}
    head, *body = [list(map(escape.latex, line)) for line in [list(table), *zip(*table.values(), strict=True)]]
    alignment = "".join("l" if heading in WORDS else "r" for heading in table)
    if max(map(len, table.get("runs", [])), default=0) > LONG_LABEL:
        alignment = rf">{{\raggedright\arraybackslash}}p{{{LABEL_WIDTH}}}{alignment[1:]}"
        for line in body:
            line[0] = re.sub(r"(\\_|[/=,.])", r"\1\\allowbreak{}", line[0])
    size = r"\small" if len(table) <= FEW_COLUMNS else r"\footnotesize"
    lines = [
        r"% \usepackage{array, booktabs}",
        rf"\begingroup{size}\setlength{{\tabcolsep}}{{3pt}}%",
        rf"\begin{{tabular}}{{{alignment}}}",
        *(r"\toprule", f"{' & '.join(head)} {chr(92) * 2}", r"\midrule"),
        *(f"{' & '.join(line)} {chr(92) * 2}" for line in body),
        *(r"\bottomrule", r"\end{tabular}%", r"\endgroup"),
    ]
    return "\n".join(lines) + "\n"


def _row(group: Group) -> dict[str, Any]:
    row: dict[str, Any] = {"group": group.label, "data": group.data, "n": len(group.runs)}
    row |= {"folder": group.runs[0].root} if group.runs[0].root else {}
    for metric in FINAL_METRICS:
        values = group.metric(metric)
        numbers = estimate(values) if values else None
        row[metric] = numbers.mean if numbers else None
        row[f"{metric} std"] = numbers.std if numbers else None
        row[f"{metric} 95% half width"] = numbers.half_width if numbers else None
    measured, target = row[TEST_ACC], group.target
    row |= {"target": target, "gap": None if None in (measured, target) else measured - target}
    results = [run.result for run in group.runs]
    # Steps actually taken: `max_steps` may end a run before the configured number of epochs.
    row["steps"] = _mean(result.get("steps") for result in results)
    row["parameters"] = results[0].get("parameters")
    row["seconds"] = _mean(result.get("seconds", {}).get("train") for result in results)
    row["images_per_second"] = _mean(result.get("images_per_second") for result in results)
    row["device"] = "; ".join(dict.fromkeys(_device(run) for run in group.runs))
    return row


def _run_row(group: Group, run: RunRecord) -> dict[str, Any]:
    result = run.result
    row: dict[str, Any] = {"run": run.name, "group": group.label, "status": result.get("status")}
    row |= {"excluded": run.exclusion_reason, "seed": run.seed, "data": run.data}
    row |= {name: result.get("metrics", {}).get(name) for name in FINAL_METRICS}
    row |= {"target": group.target, "steps": result.get("steps"), "parameters": result.get("parameters")}
    row |= {f"seconds {part}": seconds for part, seconds in result.get("seconds", {}).items()}
    row["images_per_second"] = result.get("images_per_second")
    row |= {key: throughout(result, key) for key in ("device", "precision", "compile", "git_commit")}
    return row | {"overrides": " ".join(result.get("overrides", []))}


def _device(run: RunRecord) -> str:
    facts = (throughout(run.result, "device"), throughout(run.result, "precision"))
    return ", ".join(fact for fact in facts if fact).replace(" 1 threads", " 1 thread")


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _has(cells: Sequence[str]) -> bool:
    return any(cell not in ("", "None") for cell in cells)


def _means(table: Sequence[Mapping[str, Any]], metric: FinalMetric, digits: int = 2, scale: float = 1) -> list[str]:
    return [plus_minus(row[metric], row[f"{metric} std"], digits, scale) for row in table]


def _intervals(table: Sequence[Mapping[str, Any]], metric: FinalMetric, digits: int = 2, scale: float = 1) -> list[str]:
    return [interval(row[metric], row[f"{metric} 95% half width"], digits, scale) for row in table]
