"""A run's metrics.csv and recordings.npz, read so that what is damaged is named and nothing else suffers."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifarbn.errors import UserError
from cifarbn.report.definitions import curves, walk_of
from cifarbn.runs.durable import check_ordinary
from cifarbn.runs.schema import COLUMNS, LARGEST, METRICS, RECORDINGS
from cifarbn.runs.untrusted import clean

COUNTS = ("step", "epoch")

# The axes of the arrays that the report reads. An axis is as long as another array of the same recorder.
SIZES = {"T": "step", "S": "s", "M": "shares", "W": "weights"}
NEEDED = "TS"
SHAPES = {
    **{f"{prefix}.step": "T" for prefix in ("last_layer", "held_out", "probe", "scale_invariant_beta", "step_change")},
    "last_layer.first_difference": "T",
    "last_layer.second_difference": "T",
    "held_out.acc": "T",
    "probe.s": "S",
    "probe.shares": "M",
    "probe.gradient.loss": "TS",
    "probe.gradient.gradient_distance": "TS",
    "probe.gradient.distance_moved": "TS",
    "probe.gradient.gradient_norm": "T",
    "probe.gradient.loss_at_start": "T",
    "probe.matched.loss": "TM",
    "probe.matched.gradient_distance": "TM",
    "scale_invariant_beta.gradient_distance": "TMW",
    "scale_invariant_beta.distance_moved": "TMW",
    "scale_invariant_beta.weight_norm": "TW",
    "step_change.change": "T",
    "step_change.ratio": "T",
    "step_change.head_drift": "T",
    "step_change.head_noise": "T",
}


def read_metrics(folder: Path) -> dict[str, NDArray]:
    """Return every column of metrics.csv, by its name: (T,) float64, NaN where a field is empty or a column missing.

    Other columns than this program's are passed over, and their order is no matter: a table program may have saved the
    file again. A last row without an end is one that a killed run could not finish.

    Raises:
        UserError: in one line that names the file, if it is not what a run writes.
    """
    try:
        check_ordinary(folder / METRICS)
        text = (folder / METRICS).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {name: np.empty(0) for name in COLUMNS}
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"cannot be read ({getattr(error, 'strerror', None) or 'it is not text'})") from error
    header, _, body = text[: text.rfind("\n") + 1].partition("\n")
    names = next(csv.reader([header]), [])
    if missing := [name for name in COUNTS if names.count(name) != 1]:
        raise _bad(f"has not one column {' and one '.join(missing)}")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise _bad(f"has the column {twice[0]} twice")
    found = [name for name in COLUMNS if name in names]
    values = _numbers(body, [names.index(name) for name in found], len(names))
    table = dict(zip(found, values.T, strict=True))
    for name, column in table.items():
        _check_column(name, column)
    return {name: table.get(name, np.full(len(values), np.nan)) for name in COLUMNS}


def read_recordings(folder: Path) -> dict[str, NDArray]:
    """Return the arrays of recordings.npz by name; none where there is no such file.

    Raises:
        UserError: in one line that names the file, if it is damaged, or an array is not of the shape that is drawn.
    """
    try:
        check_ordinary(folder / RECORDINGS)
        with (folder / RECORDINGS).open("rb") as file, np.load(file) as archive:
            found = dict(archive)
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive may lead to
        raise UserError(f"{RECORDINGS} cannot be read ({_reason(error)})") from error
    nothing = [name.partition(".")[0] for name, array in found.items() if name.endswith(".step") and not array.size]
    found = {name: array for name, array in found.items() if name.partition(".")[0] not in nothing}
    _check_shapes(found)
    try:
        for name, (steps, values) in curves(found).items():
            if steps.shape != values.shape:
                raise ValueError(f"{name} has not a value for each step")
        walk_of(found)
    except Exception as error:  # an array that is needed is missing, or holds something else
        raise UserError(f"{RECORDINGS} does not hold what a recorder writes ({_reason(error)})") from error
    return found


def _numbers(body: str, columns: Sequence[int], width: int) -> NDArray:
    """(T, columns) of the rows; numpy reads them twenty times as fast as Python's own csv and float do."""
    if not body.strip():
        return np.empty((0, len(columns)))
    filled = re.sub(r"(?<=,)(?=[,\n])|^(?=,)", "nan", body.replace('""', ""), flags=re.MULTILINE)
    try:
        if any(line.count(",") != width - 1 for line in body.splitlines() if line and '"' not in line):
            raise ValueError
        return np.loadtxt(io.StringIO(filled), delimiter=",", comments=None, quotechar='"', usecols=columns, ndmin=2)
    except ValueError as error:
        raise _bad(_first_fault(body, columns, width)) from error


def _first_fault(body: str, columns: Sequence[int], width: int) -> str:
    rows = csv.reader(io.StringIO(body))
    for row in rows:
        line = rows.line_num + 1  # the header is line 1
        if row and len(row) != width:
            return f"has {len(row)} fields in line {line}, and {width} in its header"
        for i in columns if row else ():
            try:
                float(row[i] or "nan")
            except ValueError:
                return f"has no number in line {line}: {clean(row[i])[:40]!r}"
    return "is not a table of numbers"


def _check_column(name: str, column: NDArray) -> None:
    if np.any(np.abs(column[np.isfinite(column)]) > LARGEST):
        raise _bad(f"has a value of {name} beyond {LARGEST:.1g}, which no run measures")
    if name in COUNTS:
        if not (np.isfinite(column).all() and (column >= 0).all() and (column == np.floor(column)).all()):
            raise _bad(f"has a value of {name} that is not a whole number")
        if (np.diff(column) < (name == "step")).any():
            raise _bad(f"has its column {name} out of order")


def _check_shapes(found: Mapping[str, NDArray]) -> None:
    lengths: dict[str, int] = {}
    for name, axes in SHAPES.items():
        if name not in found:
            continue
        array, prefix = found[name], name.partition(".")[0]
        for axis, length in zip(axes, array.shape, strict=False):
            measure = f"{prefix}.{SIZES[axis]}"
            if measure in found:
                length = int(found[measure].shape[0]) if found[measure].ndim == 1 else -1
            elif axis in NEEDED:
                raise UserError(f"{RECORDINGS} has no {measure}, which {name} needs")
            lengths.setdefault(measure, length)  # what only names the places along an axis may be missing
        shape = tuple(lengths.get(f"{prefix}.{SIZES[axis]}", -1) for axis in axes)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise UserError(f"{RECORDINGS}: {name} is {array.dtype} {array.shape}, not numbers {shape}")
        if (np.abs(found[name][np.isfinite(found[name])].astype(float)) > LARGEST).any():
            raise UserError(f"{RECORDINGS} has a {name} beyond {LARGEST:.1g}, which no run measures")
        if name.endswith(".step") and (np.diff(found[name]) <= 0).any():
            raise UserError(f"{RECORDINGS} has a {name} out of order")
    if "held_out.acc" in found and str(found.get("held_out.source")) not in ("val", "test_curve"):
        raise UserError(f"{RECORDINGS} does not say what held_out.acc was measured on")
    every = found.get("probe.every")
    if "probe.step" in found and (every is None or every.ndim or every.dtype.kind not in "iu" or every < 1):
        raise UserError(f"{RECORDINGS} does not say how often it probed")


def _bad(fault: str) -> UserError:
    return UserError(f"{METRICS} {fault}")


def _reason(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return clean(f"{type(error).__name__}: {first}" if first else type(error).__name__)
