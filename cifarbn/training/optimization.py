"""Optimizers and schedules from the factories of the config; every possible error is raised before the first step."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cifarbn.errors import UserError, out_of_memory

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[..., LRScheduler]

MOST_REHEARSED = 1000  # steps of a schedule; each takes about 10 microseconds


def make_optimizer(factory: OptimizerFactory, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Create the optimizer of these parameters.

    Raises:
        UserError: if the factory raises an error, or the optimizer has no learning rate or computes the loss several
            times in a step.
    """
    with _named("optim", factory):
        optimizer = factory(parameters)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optim: {_name(factory)} returns a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if not all("lr" in group for group in optimizer.param_groups):
        raise UserError(
            f"optim: the parameter groups of {type(optimizer).__name__} have no 'lr', which the schedule changes and "
            "metrics.csv records; add 'lr' to the defaults that its constructor passes to torch.optim.Optimizer"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"optim: {type(optimizer).__name__} needs a closure that computes the loss several times per step, but the "
            "curves and recordings of a run have one loss and one gradient per step; use another optimizer, such as "
            "optim=sgd"
        )
    return optimizer


def moves_every_step(factory: ScheduleFactory) -> bool:
    """Return whether a schedule steps after every batch, as those with `total_steps` do, and not after every epoch."""
    with _named("schedule", factory):
        return "total_steps" in inspect.signature(factory).parameters


def make_schedule(factory: ScheduleFactory, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Create the schedule of an optimizer.

    Args:
        factory: `optimizer -> LRScheduler`; also receives `total_steps` if it has this argument.
        optimizer: the optimizer whose learning rates it changes.
        total_steps: number of steps in the whole run.

    Raises:
        UserError: if the factory raises an error or returns anything but an LRScheduler.
    """
    arguments = {}
    if moves_every_step(factory):
        given = getattr(factory, "keywords", {})
        if own := [key for key in ("total_steps", "epochs", "steps_per_epoch") if given.get(key) is not None]:
            raise UserError(f"schedule.{own[0]}: remove it; the schedule gets total_steps={total_steps} from the run")
        arguments["total_steps"] = total_steps
    with _named("schedule", factory):
        schedule = factory(optimizer, **arguments)
    if not isinstance(schedule, LRScheduler):
        raise UserError(f"schedule: {_name(factory)} returns a {type(schedule).__name__}, not a torch LRScheduler")
    return schedule


def rehearse(
    optimizer_factory: OptimizerFactory,
    schedule_factory: ScheduleFactory | None,
    parameters: Iterable[nn.Parameter],
    total_steps: int,
    epochs: int,
) -> None:
    """Take one optimizer step with zero gradients on copies of the parameters, then step the schedule as the run will.

    Some arguments fail only when they are used, possibly hours into a run: SparseAdam raises an error for dense
    gradients, StepLR divides by its `step_size`, OneCycleLR by the length of a phase. At most `MOST_REHEARSED` steps of
    the schedule are taken. The random generators are restored.

    Raises:
        UserError: if any of this fails.
    """
    copies = [nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in parameters]
    for copy in copies:
        copy.grad = torch.zeros_like(copy) if copy.requires_grad else None
    with isolate_rng():
        optimizer = make_optimizer(optimizer_factory, copies)
        schedule = make_schedule(schedule_factory, optimizer, total_steps) if schedule_factory else None
        with _named("optim", optimizer_factory):
            optimizer.step()
        if schedule is None or schedule_factory is None:
            return
        steps = total_steps if moves_every_step(schedule_factory) else epochs
        with _named("schedule", schedule_factory):
            for _ in range(min(steps, MOST_REHEARSED)):
                schedule.step(*((1.0,) if isinstance(schedule, ReduceLROnPlateau) else ()))


@contextmanager
def _named(group: str, factory: Callable[..., Any]) -> Iterator[None]:
    """Turn any error inside into a UserError that names the config group."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if shortage := out_of_memory(error):
            raise UserError(shortage) from error
        kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
        raise UserError(
            f"{group}: {_name(factory)} does not work with these arguments ({kind}{str(error) or 'no reason given'})"
        ) from error


def _name(factory: Callable[..., Any]) -> str:
    factory = getattr(factory, "func", factory)  # of a partial
    return getattr(factory, "__name__", type(factory).__name__)
