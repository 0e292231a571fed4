"""A run's metrics.csv and recordings.npz, read so that what is damaged is named and nothing else suffers."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifarbn.errors import UserError
from cifarbn.report.probe_curves import probe_bands
from cifarbn.runs.durable import check_regular_file
from cifarbn.runs.measures import (
    AXES,
    TABLES,
    ActivationDriftKeys,
    HeldOutKeys,
    Key,
    ProbeKeys,
    Recordings,
    curves,
)
from cifarbn.runs.schema import COLUMNS, LARGEST, METRICS, RECORDINGS, StepColumn
from cifarbn.runs.untrusted import clean

STEP: StepColumn = "step"
EPOCH: StepColumn = "epoch"
COUNTS = (STEP, EPOCH)

# Every array of numbers that a recorder writes. Without these axes an array has no meaning; what only names the places
# along another one may be missing.
KEYS = {str(key): key for table in TABLES for key in table.keys()}
NEEDED = "TSL"


def read_metrics(folder: Path) -> dict[str, NDArray]:
    """Return every column of metrics.csv, by its name: (T,) float64, NaN where a field is empty or a column missing.

    Other columns than this program's are passed over, and their order is no matter: a table program may have saved the
    file again. A last row without an end is one that a killed run could not finish.

    Raises:
        UserError: in one line that names the file, if it is not what a run writes.
    """
    try:
        check_regular_file(folder / METRICS)
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


def read_recordings(folder: Path) -> dict[Key, NDArray]:
    """Return the arrays of recordings.npz; none where there is no such file.

    Raises:
        UserError: in one line that names the file, if it is damaged, or an array is not of the shape that is drawn.
    """
    try:
        check_regular_file(folder / RECORDINGS)
        with (folder / RECORDINGS).open("rb") as file, np.load(file) as archive:
            found = {KEYS.get(name, Key(name)): array for name, array in archive.items()}
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive may lead to
        raise UserError(f"{RECORDINGS} cannot be read ({_reason(error)})") from error
    nothing = [key.prefix for key, array in found.items() if key.short == "step" and not array.size]
    found = {key: array for key, array in found.items() if key.prefix not in nothing}
    _check_shapes(found)
    try:
        for name, (steps, values) in curves(found).items():
            if steps.shape != values.shape:
                raise ValueError(f"{name} has not a value for each step")
        probe_bands(found)
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
        if (np.diff(column) < (name == STEP)).any():
            raise _bad(f"has its column {name} out of order")


def _check_shapes(found: Recordings) -> None:
    lengths: dict[str, int] = {}
    for key, array in found.items():
        if key.axes is None:
            continue
        measures = [
            f"{key.prefix}.{AXES.get(axis, axis)}" for axis in key.axes
        ]  # of which array an axis has the length
        for axis, measure, length in zip(key.axes, measures, array.shape, strict=False):
            if (measuring := found.get(Key(measure))) is not None:
                length = int(measuring.shape[0]) if measuring.ndim == 1 else -1
            elif axis in NEEDED:
                raise UserError(f"{RECORDINGS} has no {measure}, which {key} needs")
            elif axis.isdigit():
                length = int(axis)
            lengths.setdefault(measure, length)
        shape = tuple(lengths.get(measure, -1) for measure in measures)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise UserError(f"{RECORDINGS}: {key} is {array.dtype} {array.shape}, not numbers {shape}")
        if (np.abs(array[np.isfinite(array)].astype(float)) > LARGEST).any():
            raise UserError(f"{RECORDINGS} has a {key} beyond {LARGEST:.1g}, which no run measures")
        if key.short == "step" and (np.diff(array) <= 0).any():
            raise UserError(f"{RECORDINGS} has a {key} out of order")
    if HeldOutKeys.acc in found and str(found.get(HeldOutKeys.source)) not in HeldOutKeys.SOURCES:
        raise UserError(f"{RECORDINGS} does not say what {HeldOutKeys.acc} was measured on")
    every = found.get(ProbeKeys.every)
    if ProbeKeys.step in found and (every is None or every.ndim or every.dtype.kind not in "iu" or every < 1):
        raise UserError(f"{RECORDINGS} does not say how often it probed")
    if (histogram := found.get(ActivationDriftKeys.histogram)) is not None:
        edges = found.get(ActivationDriftKeys.edges)
        if edges is None or edges.dtype.kind not in "fiu" or edges.shape != (histogram.shape[2] + 1,):
            raise UserError(f"{RECORDINGS} does not say the edges of {ActivationDriftKeys.histogram}")


def _bad(fault: str) -> UserError:
    return UserError(f"{METRICS} {fault}")


def _reason(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return clean(f"{type(error).__name__}: {first}" if first else type(error).__name__)
