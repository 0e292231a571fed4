"""The content of a run folder: its files, the fields of `result.json` and the columns of `metrics.csv`.

The arrays of `recordings.npz` are described in `cifarbn.runs.measures`, with the measures computed from them.
"""

import math
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

RESULT = "result.json"
METRICS = "metrics.csv"
RECORDINGS = "recordings.npz"
RAW_GRADIENTS = "last_layer_gradients.npy"
CHECKPOINT = "last.ckpt"

# Columns of metrics.csv: each row has the columns of a step; the last row of an epoch has those of the epoch, too.
StepColumn = Literal["step", "epoch", "lr", "step/loss", "step/acc", "step/grad_norm"]
STEP_COLUMNS: tuple[StepColumn, ...] = get_args(StepColumn)
EpochColumn = Literal["train/loss", "train/acc", "val/loss", "val/acc", "test_curve/loss", "test_curve/acc"]
EPOCH_COLUMNS: tuple[EpochColumn, ...] = get_args(EpochColumn)
COLUMNS: tuple[str, ...] = (*STEP_COLUMNS, *EPOCH_COLUMNS)

# The keys of `Result.metrics` shown in tables; a run may have more, such as "test/acc_flip".
FinalMetric = Literal["test/acc", "val/acc", "test/loss", "val/loss", "train/acc", "train/loss"]
FINAL_METRICS: tuple[FinalMetric, ...] = get_args(FinalMetric)

DEEPEST = 64  # the most levels of nesting in a file
LARGEST_IMAGE = 4096  # pixels of a side
LARGEST = 3.4e38  # the largest float32: no measured number exceeds it
# A number measured by a run, which may be NaN or infinite; every other number is finite.
Measured = Annotated[float, "measured"]


class Status(str, Enum):
    """The status of a run in `result.json`. JSON and f-strings show the value."""

    NEW = "new"
    RUNNING = "running"  # or killed while running
    DONE = "done"
    INTERRUPTED = "interrupted"
    DIVERGED = "diverged"  # a finished run whose loss became infinite or NaN
    FAILED = "failed"  # `error` holds the reason

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


class Start(TypedDict, total=False):
    """The device and settings of one start of a run, valid from its first step to the next start's; see `Result`."""

    step: int
    device: str
    devices: int
    precision: str | int  # a number in older results of trainer.precision=32
    channels_last: bool
    compile: bool | str  # torch.compile's mode, "" if not compiled; a boolean in older results
    cuda_graphs: bool
    step_notes: list[str]  # why the training step was not compiled or captured
    kernels: bool
    threads: int
    threads_reason: str
    versions: dict[str, str]
    git_commit: str | None


class ThreadChange(TypedDict, total=False):
    """One change of the number of threads during training; see `cifarbn.training.callbacks.thread_watch`."""

    step: int
    threads: int
    reason: str


class Divergence(TypedDict, total=False):
    """The step at which a run diverged; see `cifarbn.errors.Diverged`."""

    step: int
    lr: Measured
    grad_norm: Measured | None


class LoggerRun(TypedDict, total=False):
    """The run of a tracking service, such as Weights & Biases, in which a run is logged."""

    kind: str  # the class of the logger
    id: str


class Data(TypedDict, total=False):
    """The description of a run's data; the user's own data may have more fields, or none."""

    name: str
    classes: list[str]
    fingerprint: str
    train_size: int
    val_size: int
    test_size: int
    image_size: list[int]  # [height, width]
    mean: list[float]
    std: list[float]
    augmentation: dict[str, Any]


class DataConfig(TypedDict, total=False):
    """The keys of `config.data` that this package reads."""

    _target_: str


class ModelConfig(TypedDict, total=False):
    """The keys of `config.model` that this package reads."""

    _target_: str
    num_classes: int


class OptimizerConfig(TypedDict, total=False):
    """The keys of `config.optim` that this package reads."""

    lr: float | None


class Config(TypedDict, total=False):
    """The keys of `config` that this package reads."""

    data: DataConfig
    model: ModelConfig
    optim: OptimizerConfig
    seed: int | None
    epochs: int | None
    target: float | None
    source: str | None


class Result(TypedDict, total=False):
    """The content of `result.json`; nothing in it depends on the host's name or paths.

    `device` to `git_commit` describe the latest start. `starts` has one entry for each start that computed some of the
    run's steps, since a continued run may use another device.
    """

    status: Status
    error: str | None
    overrides: list[str]
    config: dict[str, Any]  # in the shape of `Config`
    code: dict[str, str]  # module -> hash of its code, see `cifarbn.runs.code_hash`
    metrics: dict[str, Measured]  # by `FinalMetric`, and more
    steps: int
    parameters: int
    seconds: dict[str, float]
    images_per_second: float | None
    accelerator: str
    device: str
    devices: int
    precision: str | int  # a number in older results of trainer.precision=32
    channels_last: bool
    compile: bool | str
    cuda_graphs: bool
    step_notes: list[str]
    kernels: bool
    threads: int  # at the start
    threads_reason: str
    thread_changes: list[ThreadChange]
    data: Data
    versions: dict[str, str]
    git_commit: str | None
    starts: list[Start]
    resumed_from: str  # name of the run folder that this run continued
    confusion: list[list[int]]
    constant_prediction_loss: float | None  # see `cifarbn.smoothness.dead_runs`
    divergence: Divergence
    logger: LoggerRun  # the run of a tracking service that a resumed run continues
    recovery: list[str]  # damaged checkpoints, and how the run proceeded
    files: dict[str, str]  # SHA-256 of metrics.csv and recordings.npz at the end of the run
    checksum: str  # SHA-256 of all other fields; see `cifarbn.runs.result_file`


def check_result(value: Any) -> Result:
    """Return the value as a `Result`, with its `status` as a `Status`.

    Raises:
        ValueError: naming the first field whose type differs from `Result` or `Config`.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind(value)}, not a group of fields")
    _check_plain(value, "")
    for field in ("status", "config"):
        if field not in value:
            raise ValueError(f"it has no field {field!r}")
    _check(value, Result, "")
    check_config(value["config"], "config.")
    data = value.get("data", {})
    for field in ("mean", "std"):
        if len(data.get(field, [0])) not in (1, 3):
            raise ValueError(f"'data.{field}' is not one number, or one for each of three channels")
    size = data.get("image_size", [1, 1])
    if len(size) != 2 or not all(1 <= side <= LARGEST_IMAGE for side in size):
        raise ValueError(f"'data.image_size' is not a height and a width from 1 to {LARGEST_IMAGE}")
    if "confusion" in value:
        rows = value["confusion"]
        classes = data.get("classes") or rows
        if not rows or {len(rows), len(classes)} != {*map(len, rows)}:
            raise ValueError("'confusion' is not a square with a row and a column for each class")
    return value | {"status": Status(value["status"])}  # type: ignore[return-value]


def check_config(config: Any, name: str = "") -> None:
    """Check the keys of a run's config that this package reads.

    Raises:
        ValueError: naming the first key whose type differs from `Config`.
    """
    _check(config, Config, name)
    if config.get("model", {}).get("num_classes") == 0:
        raise ValueError(f"'{name}model.num_classes' is 0")


def _check(value: Any, hint: Any, name: str) -> None:
    """Check one value, including nested ones, against a type hint of this module."""
    if hint is Any:
        return
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        _expect(value, dict, "a group of fields", name)
        for key, inner in get_type_hints(hint, include_extras=True).items():
            if key in value:
                _check(value[key], inner, f"{name}{key}.")
    elif origin is dict:
        _expect(value, dict, "a group of fields", name)
        for key, inner in value.items():
            _check(inner, arguments[1], f"{name}{key}.")
    elif origin is list:
        _expect(value, list, "a list", name)
        for number, inner in enumerate(value):
            _check(inner, arguments[0], f"{name}{number}.")
    elif origin in (Union, UnionType):
        if not any(_fits(value, inner) for inner in arguments):
            _mismatch(value, " or ".join(_WORDS[_plain(inner)] for inner in arguments), name)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        values = [member.value for member in hint]
        if value not in values:
            _mismatch(value, f"one of {', '.join(values)}", name)
    elif not _fits(value, hint):
        _mismatch(value, _WORDS[_plain(hint)], name)


def _fits(value: Any, hint: Any) -> bool:
    kind = _plain(hint)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (abs(value) <= LARGEST or (get_origin(hint) is Annotated and not math.isfinite(value)))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, kind)


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


_WORDS = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}


def _expect(value: Any, kind: type, word: str, name: str) -> None:
    if not isinstance(value, kind):
        _mismatch(value, word, name)


def _mismatch(value: Any, word: str, name: str) -> None:
    raise ValueError(f"{name.rstrip('.')[:80]!r} takes {word}, not {_kind(value)}")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return "a group of fields" if isinstance(value, Mapping) else "a list"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _check_plain(value: Any, name: str, depth: int = 0) -> None:
    """Raise an error for valid JSON that no reader can use: invalid Unicode, integers beyond 64 bits, deep nesting."""
    if depth > DEEPEST:
        raise ValueError(f"{name.split('.')[0]!r} is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(key, name + "(a key).")
            _check_plain(inner, f"{name}{key}.", depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_plain(inner, f"{name}{number}.", depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name.rstrip('.')[:80]!r} has more than 64 bits")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name.rstrip('.')[:80]!r} holds invalid Unicode") from None


def throughout(result: Result, fact: str) -> str | None:
    """Return a fact such as "device" of all starts that computed a run's steps, joined by " and "; None if unknown."""
    starts: list[Any] = result.get("starts") or [result]
    known = [str(start[fact]) or "off" for start in starts if start.get(fact) is not None]
    return " and ".join(dict.fromkeys(known)) or None
