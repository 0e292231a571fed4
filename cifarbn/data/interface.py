"""What a run asks of its data: any LightningDataModule that yields batches of (inputs, labels).

A data module of the user's own may say more, as this package's do: `num_classes`, `classes` (the name of each label),
`val_names` (what each loader of `val_dataloader` measures) and `describe()` (what result.json says of the data). The
functions here ask it, and fall back on what is certain.
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
    """Return the data module.

    Raises:
        UserError: if it is no LightningDataModule, or what it says of itself cannot be used.
    """
    kind = type(data).__name__
    if not isinstance(data, pl.LightningDataModule):
        raise UserError(f"data._target_ must make a LightningDataModule, and this is a {kind}")
    for loader in ("train_dataloader", "test_dataloader"):
        if not is_overridden(loader, data, pl.LightningDataModule):
            raise UserError(f"data: {kind} has no {loader}; a run trains on the one and ends with a test on the other")
    count = getattr(data, "num_classes", None)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise UserError(f"data: num_classes of {kind} must be a whole number (0 for a regression), not {count!r}")
    names = class_names(data)
    if count and names and len(names) != count:
        raise UserError(f"data: {kind} has num_classes={count}, but names {len(names)} classes")
    if wrong := set(val_names(data)) - set(VAL_NAMES):
        raise UserError(f"data: val_names of {kind} may hold {' and '.join(VAL_NAMES)}, not {sorted(wrong)}")
    describe(data)
    return data


def num_classes(data: Any) -> int | None:
    """Return the number of labels; 0 for a regression, None where the data does not say."""
    count = getattr(data, "num_classes", None)
    return count if count is not None else len(class_names(data)) or None


def class_names(data: Any, count: int = 0) -> tuple[str, ...]:
    """Return the name of each label; where the data has none, the numbers below `num_classes`, or else `count`."""
    names = getattr(data, "classes", None) or range(getattr(data, "num_classes", None) or count)
    return tuple(map(str, names))


def val_names(data: Any) -> tuple[str, ...]:
    """Return what each loader of `val_dataloader` measures: "val", "test_curve"; nothing where there is no loader."""
    names = getattr(data, "val_names", None)
    if names is not None:
        return tuple(names)
    loads = isinstance(data, pl.LightningDataModule) and is_overridden("val_dataloader", data, pl.LightningDataModule)
    return ("val",) if loads or data is None else ()


def describe(data: Any) -> dict[str, Any]:
    """Return what result.json says of the data.

    Raises:
        UserError: if a `describe` of the user's own returns anything but a dict.
    """
    own = getattr(data, "describe", None)
    if own is None:
        return {"name": type(data).__name__, "classes": list(class_names(data))}
    facts = own()
    if not isinstance(facts, Mapping):
        raise UserError(f"data: describe() of {type(data).__name__} must return a dict, not {type(facts).__name__}")
    return {"name": type(data).__name__, "classes": list(class_names(data)), **facts}


def first_batch(loader: Any) -> Any:
    """Return the first batch of a training loader, and leave no trace on it or on torch's generators.

    A DataLoader draws as it begins, from torch's generator or its own; one with persistent workers has a single
    iterator, which Lightning may hold already and a second one would reset.
    """
    held, generator = getattr(loader, "_iterator", None), getattr(loader, "generator", None)
    state = generator.get_state() if generator is not None else None
    if held is not None:
        loader._iterator = None
    try:
        with isolate_rng():
            return next(iter(loader))
    finally:
        if held is not None:
            loader._iterator = held
        if generator is not None:
            generator.set_state(state)


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the batch as a pair of tensors.

    Raises:
        UserError: if it is anything else.
    """
    pair = tuple(batch) if isinstance(batch, (list, tuple)) else ()
    if len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        kinds = ", ".join(type(each).__name__ for each in pair) or type(batch).__name__
        raise UserError(f"data: a batch must be a pair of tensors (inputs, labels), and this one is {kinds}")
    return pair[0], pair[1]
