"""What a run needs from its data: a LightningDataModule that yields batches of (inputs, labels).

A user's data module may define more, as this package's do: `num_classes`, `classes` (the name of each label),
`val_names` (the name of each loader of `val_dataloader`) and `describe()` (the `data` block of result.json). The
functions here read these attributes and supply defaults where they are missing.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from cifarbn.errors import UserError

Batch = tuple[Tensor, Tensor]  # inputs, and labels or regression targets

VAL_NAMES = ("val", "test_curve")


def check_data(data: Any) -> pl.LightningDataModule:
    """Return `data` if it is a usable data module.

    Raises:
        UserError: if it is not a LightningDataModule, lacks a loader, or has invalid attributes.
    """
    kind = type(data).__name__
    if not isinstance(data, pl.LightningDataModule):
        raise UserError(f"data._target_ must return a LightningDataModule, not a {kind}")
    for loader in ("train_dataloader", "test_dataloader"):
        if not is_overridden(loader, data, pl.LightningDataModule):
            raise UserError(f"data: {kind} has no {loader}; a run needs train_dataloader and test_dataloader")
    count = getattr(data, "num_classes", None)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise UserError(f"data: num_classes of {kind} must be a whole number (0 for a regression), not {count!r}")
    names = class_names(data)
    if count and names and len(names) != count:
        raise UserError(f"data: {kind} has num_classes={count}, but {len(names)} names in classes")
    if wrong := set(val_names(data)) - set(VAL_NAMES):
        raise UserError(f"data: val_names of {kind} may contain {' and '.join(VAL_NAMES)}, not {sorted(wrong)}")
    describe(data)
    return data


def num_classes(data: Any) -> int | None:
    """Return the number of classes; 0 for a regression, None if the data does not define it."""
    count = getattr(data, "num_classes", None)
    return count if count is not None else len(class_names(data)) or None


def class_names(data: Any, count: int = 0) -> tuple[str, ...]:
    """Return the name of each label; without names, the numbers below `num_classes`, or below `count` without that."""
    names = getattr(data, "classes", None) or range(getattr(data, "num_classes", None) or count)
    return tuple(map(str, names))


def val_names(data: Any) -> tuple[str, ...]:
    """Return the name of each loader of `val_dataloader`, "val" or "test_curve"; empty without loaders."""
    names = getattr(data, "val_names", None)
    if names is not None:
        return tuple(names)
    loads = isinstance(data, pl.LightningDataModule) and is_overridden("val_dataloader", data, pl.LightningDataModule)
    return ("val",) if loads or data is None else ()


def describe(data: Any) -> dict[str, Any]:
    """Return the `data` block of result.json.

    Raises:
        UserError: if the `describe` method of a user's data module does not return a dict.
    """
    describe_data = getattr(data, "describe", None)
    if describe_data is None:
        return {"name": type(data).__name__, "classes": list(class_names(data))}
    facts = describe_data()
    if not isinstance(facts, Mapping):
        raise UserError(f"data: describe() of {type(data).__name__} must return a dict, not {type(facts).__name__}")
    return {"name": type(data).__name__, "classes": list(class_names(data)), **facts}


def first_batch(loader: Any) -> Any:
    """Return the first batch of a training loader without changing its state or torch's generators.

    The traps: a DataLoader draws random numbers when iteration starts, from torch's generator or its own. One with
    persistent workers has a single iterator, which Lightning may already use and a second `iter` would reset.
    """
    iterator, generator = getattr(loader, "_iterator", None), getattr(loader, "generator", None)
    state = generator.get_state() if generator is not None else None
    if iterator is not None:
        loader._iterator = None
    try:
        with isolate_rng():
            return next(iter(loader))
    finally:
        if iterator is not None:
            loader._iterator = iterator
        if generator is not None:
            generator.set_state(state)


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the batch as a pair of tensors.

    Raises:
        UserError: if it is not a pair of tensors.
    """
    pair = tuple(batch) if isinstance(batch, (list, tuple)) else ()
    if len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        kinds = ", ".join(type(each).__name__ for each in pair) or type(batch).__name__
        raise UserError(f"data: a batch must be a pair of tensors (inputs, labels), not {kinds}")
    return pair[0], pair[1]
