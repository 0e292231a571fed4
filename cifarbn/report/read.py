"""Read metrics.csv and recordings.npz of a run; a damaged file raises one clear error."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifarbn.durable import check_regular_file
from cifarbn.errors import UserError
from cifarbn.report.probe_curves import probe_bands
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

# Every array that a recorder writes. Axes in NEEDED must have their array of coordinates; other axes need not.
KEYS = {str(key): key for table in TABLES for key in table.keys()}
NEEDED = "TSL"


def read_metrics(folder: Path) -> dict[str, NDArray]:
    """Return every column of metrics.csv by name: (T,) float64, NaN if a field is empty or a column is missing.

    Unknown columns are ignored, and columns may be in any order, since a spreadsheet may have saved the file again. An
    incomplete last row, left by a killed run, is ignored.

    Raises:
        UserError: one line that names the file, if a run cannot have written it.
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
        raise _bad(f"must have exactly one column {' and one '.join(missing)}")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise _bad(f"has the column {twice[0]} twice")
    known = [name for name in COLUMNS if name in names]
    values = _numbers(body, [names.index(name) for name in known], len(names))
    table = dict(zip(known, values.T, strict=True))
    for name, column in table.items():
        _check_column(name, column)
    return {name: table.get(name, np.full(len(values), np.nan)) for name in COLUMNS}


def read_recordings(folder: Path) -> dict[Key, NDArray]:
    """Return the arrays of recordings.npz; empty if there is no such file.

    Raises:
        UserError: one line that names the file, if it is damaged or an array has an unexpected shape.
    """
    try:
        check_regular_file(folder / RECORDINGS)
        with (folder / RECORDINGS).open("rb") as file, np.load(file) as archive:
            arrays = {KEYS.get(name, Key(name)): array for name, array in archive.items()}
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise UserError(f"{RECORDINGS} cannot be read ({_reason(error)})") from error
    empty = [key.prefix for key, array in arrays.items() if key.short == "step" and not array.size]
    arrays = {key: array for key, array in arrays.items() if key.prefix not in empty}
    _check_shapes(arrays)
    try:
        for name, (steps, values) in curves(arrays).items():
            if steps.shape != values.shape:
                raise ValueError(f"{name} must have one value per step")
        probe_bands(arrays)
    except Exception as error:  # a required array is missing or malformed
        raise UserError(f"{RECORDINGS} has missing or malformed arrays ({_reason(error)})") from error
    return arrays


def _numbers(body: str, columns: Sequence[int], width: int) -> NDArray:
    """Return the rows as (T, columns); numpy is twenty times faster than csv and float of Python."""
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
            return f"has {len(row)} fields in line {line}, but {width} in its header"
        for i in columns if row else ():
            try:
                float(row[i] or "nan")
            except ValueError:
                return f"has no number in line {line}: {clean(row[i])[:40]!r}"
    return "is not a table of numbers"


def _check_column(name: str, column: NDArray) -> None:
    if np.any(np.abs(column[np.isfinite(column)]) > LARGEST):
        raise _bad(f"has a value of {name} whose magnitude exceeds {LARGEST:.1g}")
    if name in COUNTS:
        if not (np.isfinite(column).all() and (column >= 0).all() and (column == np.floor(column)).all()):
            raise _bad(f"has a value of {name} that is not a whole number")
        if (np.diff(column) < (name == STEP)).any():
            raise _bad(f"has a column {name} that is not in increasing order")


def _check_shapes(arrays: Recordings) -> None:
    lengths: dict[str, int] = {}
    for key, array in arrays.items():
        if key.axes is None:
            continue
        # An axis is as long as the array of its coordinates.
        coordinates = [f"{key.prefix}.{AXES.get(axis, axis)}" for axis in key.axes]
        for axis, name, length in zip(key.axes, coordinates, array.shape, strict=False):
            if (along := arrays.get(Key(name))) is not None:
                length = int(along.shape[0]) if along.ndim == 1 else -1
            elif axis in NEEDED:
                raise UserError(f"{RECORDINGS} has no {name}, which {key} needs")
            elif axis.isdigit():
                length = int(axis)
            lengths.setdefault(name, length)
        shape = tuple(lengths.get(name, -1) for name in coordinates)
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise UserError(f"{RECORDINGS}: {key} is {array.dtype} {array.shape}, not numbers {shape}")
        if (np.abs(array[np.isfinite(array)].astype(float)) > LARGEST).any():
            raise UserError(f"{RECORDINGS}: {key} has a value whose magnitude exceeds {LARGEST:.1g}")
        if key.short == "step" and (np.diff(array) <= 0).any():
            raise UserError(f"{RECORDINGS}: {key} is not in increasing order")
    if HeldOutKeys.acc in arrays and str(arrays.get(HeldOutKeys.source)) not in HeldOutKeys.SOURCES:
        raise UserError(
            f"{RECORDINGS}: {HeldOutKeys.acc} needs {HeldOutKeys.source}, one of {', '.join(HeldOutKeys.SOURCES)}"
        )
    every = arrays.get(ProbeKeys.every)
    if ProbeKeys.step in arrays and (every is None or every.ndim or every.dtype.kind not in "iu" or every < 1):
        raise UserError(f"{RECORDINGS}: {ProbeKeys.every} must be a whole number of at least 1")
    if (histogram := arrays.get(ActivationDriftKeys.histogram)) is not None:
        edges = arrays.get(ActivationDriftKeys.edges)
        if edges is None or edges.dtype.kind not in "fiu" or edges.shape != (histogram.shape[2] + 1,):
            raise UserError(f"{RECORDINGS}: {ActivationDriftKeys.edges} must have one edge more than there are bins")


def _bad(fault: str) -> UserError:
    return UserError(f"{METRICS} {fault}")


def _reason(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return clean(f"{type(error).__name__}: {first}" if first else type(error).__name__)
