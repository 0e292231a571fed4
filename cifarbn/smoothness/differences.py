"""Norms of the last layer's gradient G_t and of its differences from step to step (course report, course handout)."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cifarbn.smoothness.vectors import accumulation_dtype

Array = NDArray[np.float64]


class GradientDifferences:
    """Streaming norms of gradient differences: takes one gradient per step and returns three norms.

    The row of step t is (||G_t||, ||G_t - G_{t-1}||, ||2 G_{t-1} - G_t - G_{t-2}||), with NaN for differences that
    reach back before the first step. The definitions of the course report use other indices, see
    `course_report_lipschitz` and `course_report_beta`. Holds two tensors of the shape of G, on the gradient's device,
    and never waits for the device.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all gradients, as before the first step."""
        self._previous: Tensor | None = None
        self._difference: Tensor | None = None

    def push(self, gradient: Tensor) -> Tensor:
        """Add the next gradient G_t, of any shape, and return its row, shape (3,), on its device.

        The gradient is copied, in float32 or better, since an optimizer may reuse its memory. A NaN in it makes this
        row and the next two NaN.

        Raises:
            ValueError: if the shape differs from that of the earlier gradients.
        """
        current = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        if self._previous is None or self._difference is None:
            # NaN marks "before the first step" and propagates through the differences.
            self._previous = self._difference = torch.full_like(current, torch.nan)
        if current.shape != self._previous.shape:
            raise ValueError(
                f"the gradient has shape {tuple(current.shape)}, the one before it {tuple(self._previous.shape)}"
            )
        difference = current - self._previous.to(current.device)
        # As a difference of differences: computing 2 G_{t-1} - G_t first would lose precision.
        second = self._difference.to(current.device) - difference
        self._previous, self._difference = current, difference
        dtype = accumulation_dtype(current.device)
        return torch.stack([torch.linalg.vector_norm(v, dtype=dtype) for v in (current, difference, second)])

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of G_t and G_t - G_{t-1}, enough to continue bit for bit; empty before the first push."""
        if self._previous is None or self._difference is None:
            return {}
        return {"previous": self._previous.clone(), "difference": self._difference.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned; the tensors may be on any device."""
        self.reset()
        if state:
            self._previous, self._difference = state["previous"].clone(), state["difference"].clone()


def difference_norms(gradients: ArrayLike) -> Array:
    """Return the rows of `GradientDifferences`, shape (T, 3), for a stack of gradients (T, ...), such as a raw file.

    Computes in float64 and reads one step at a time, so a memory-mapped stack may be larger than memory.
    """
    gradients = np.asanyarray(gradients)  # asanyarray keeps a memory map
    rows = np.full((len(gradients), 3), np.nan)
    previous = difference = np.full(gradients.shape[1:], np.nan)
    for t, gradient in enumerate(gradients):
        current = gradient.astype(np.float64)
        second, difference = difference - (current - previous), current - previous
        rows[t] = [np.linalg.norm(v.ravel()) for v in (current, difference, second)]
        previous = current
    return rows


def course_report_lipschitz(first_difference: ArrayLike) -> Array:
    """Return the course report's Lipschitz_t = ||G_{t+1} - G_t||, shape (T,), from the first differences, shape (T,).

    Trap: entry t of `first_difference` is ||G_t - G_{t-1}||, so the values move one step to the left and the last one
    is NaN. Consecutive steps use different minibatches: if they are independent, the square is about
    ||drift||^2 + 2 tr(Sigma) / |B|. Figures should state this.
    """
    return _shift_left(first_difference)


def course_report_beta(second_difference: ArrayLike) -> Array:
    """Return the course report's beta_t = ||2 G_t - G_{t+1} - G_{t-1}||, shape (T,), from the second differences, (T,).

    Trap: it is centred on t but known only at t + 1, so the values move one step to the left; the first and the last
    one are NaN.
    """
    return _shift_left(second_difference)


def course_handout_distance(first_difference: ArrayLike) -> Array:
    """Return the course handout's ||G_t - G_{t-1}||, shape (T,), from the first differences; the first one is NaN.

    The "beta" of the course handout is the maximum of this over learning rates. It is not divided by a distance.
    """
    return np.array(first_difference, dtype=np.float64)


def _shift_left(values: ArrayLike) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected one value per step, shape (T,), not {values.shape}")
    return np.append(values[1:], np.nan)[: len(values)]
