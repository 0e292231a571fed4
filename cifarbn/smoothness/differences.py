"""Norms of G_t and of its differences from step to step: the report's and the course's smoothness."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cifarbn.smoothness.vectors import accumulation_dtype

Array = NDArray[np.float64]


class GradientDifferences:
    """A stream of gradients in, three norms per step out; holds two tensors of G's shape whatever the number of steps.

    The row of step t is (||G_t||, ||G_t - G_{t-1}||, ||2 G_{t-1} - G_t - G_{t-2}||): everything known when G_t
    arrives, NaN where it reaches back before the first step. The report's definitions carry other indices, see
    `report_lipschitz` and `report_beta`. Everything stays on the gradient's device; nothing waits for it.
    """

    COLUMNS = ("norm", "first_difference", "second_difference")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets every gradient, as before the first step."""
        self._previous: Tensor | None = None
        self._difference: Tensor | None = None

    def push(self, gradient: Tensor) -> Tensor:
        """The next G_t, any shape, as the optimizer receives it; returns its row, shape (3,), on its device.

        The gradient is taken to float32 (float64 stays) and copied: an optimizer may reuse its memory. One with a
        NaN makes its own row and the next two undefined, and no more.

        Raises:
            ValueError: the shape is not that of the gradients before.
        """
        current = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        if self._previous is None or self._difference is None:
            # NaN stands for "before the first step" and spreads by itself: no counter, no branch later.
            self._previous = self._difference = torch.full_like(current, torch.nan)
        if current.shape != self._previous.shape:
            raise ValueError(
                f"a gradient of shape {tuple(current.shape)} follows one of shape {tuple(self._previous.shape)}"
            )
        difference = current - self._previous.to(current.device)
        # The difference of two differences: 2 G_{t-1} - G_t would round at the size of G, not of its change.
        second = self._difference.to(current.device) - difference
        self._previous, self._difference = current, difference
        dtype = accumulation_dtype(current.device)
        return torch.stack([torch.linalg.vector_norm(v, dtype=dtype) for v in (current, difference, second)])

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of G_t and G_t - G_{t-1}: enough to go on bit for bit; empty before the first push."""
        if self._previous is None or self._difference is None:
            return {}
        return {"previous": self._previous.clone(), "difference": self._difference.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up where `state_dict` was called; the tensors may lie on any device."""
        self.reset()
        if state:
            self._previous, self._difference = state["previous"].clone(), state["difference"].clone()


def difference_norms(gradients: ArrayLike) -> Array:
    """The stream's rows, shape (T, 3), from a stack of gradients (T, ...), such as the raw file of a run.

    In float64, one step in memory at a time, so a memory-mapped stack may be larger than memory.
    """
    gradients = np.asanyarray(gradients)  # asanyarray, for a memory map must stay one
    rows = np.full((len(gradients), 3), np.nan)
    previous = difference = np.full(gradients.shape[1:], np.nan)
    for t, gradient in enumerate(gradients):
        current = gradient.astype(np.float64)
        second, difference = difference - (current - previous), current - previous
        rows[t] = [np.linalg.norm(v.ravel()) for v in (current, difference, second)]
        previous = current
    return rows


def report_lipschitz(first_difference: ArrayLike) -> Array:
    """The report's Lipschitz_t = ||G_{t+1} - G_t||, shape (T,), from the stream's first differences, shape (T,).

    Trap: the stream's entry t is ||G_t - G_{t-1}||, so the report's curve lies one step to the left; its last is NaN.
    Consecutive steps use different minibatches: for independent ones the square is about
    ||drift||^2 + 2 tr(Sigma) / |B|. Say so beside the figure.
    """
    return _shift_left(first_difference)


def report_beta(second_difference: ArrayLike) -> Array:
    """The report's beta_t = ||2 G_t - G_{t+1} - G_{t-1}||, shape (T,), from the stream's second differences, (T,).

    Trap: centred on t, while the stream can give it only at t + 1; the first and the last entry are NaN.
    """
    return _shift_left(second_difference)


def course_distance(first_difference: ArrayLike) -> Array:
    """The course's ||G_t - G_{t-1}||, shape (T,): the stream's own index; the first is NaN.

    The course's "beta" is the maximum of this over learning rates; it is never divided by a distance.
    """
    return np.array(first_difference, dtype=np.float64)


def _shift_left(values: ArrayLike) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected one value per step, shape (T,), not {values.shape}")
    return np.append(values[1:], np.nan)[: len(values)]
