"""Optimizers that torch does not provide."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifarbn.fast.hardware import multiplies_bf16

PAD_UP_TO = 2**23
"""Largest total number of entries for which a GPU pads all matrices to one shape; see `batches_of`."""


class Muon(Optimizer):
    """Orthogonalised momentum for convolution weights, SGD with Nesterov momentum for all other parameters.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon. A filter bank is a parameter with more than two dimensions.
    It is reshaped to a matrix M with one row per filter. With its gradient G, a step is::

        B <- momentum B + (1 - momentum) G
        M <- M sqrt(rows) / |M|                                                    if `normalize`
        M <- M - lr sqrt(max(1, rows / columns)) orthogonalize((1 - momentum) G + momentum B)

    If `normalize` is true, lr is about the relative change of M in a step. This is for convolutions followed by a norm,
    which makes the length of M irrelevant; set `normalize` to false for models without norms.

    All other parameters are trained as by `torch.optim.SGD(nesterov=True)`, with one learning rate for matrices (linear
    layers) and one for vectors and scalars (biases, norms). Linear layers are not orthogonalised because the head must
    not be, and it cannot be recognised from its parameter alone. `torch.optim.Muon` accepts matrices only.

    The "lr" of every parameter group is that of filter banks; when a schedule changes it, the other learning rates
    change in proportion. It may be a 0-dim tensor on the parameters' device instead of a float. A step never waits for
    the device, so it can be captured in a CUDA graph, in which only a tensor lr can still be changed (in place).

    On a GPU, filter banks are orthogonalised in batches; see `orthogonalize_all`.

    Args:
        params: the parameters, such as `model.parameters()`.
        lr: learning rate of filter banks.
        momentum: momentum of filter banks.
        iterations: see `orthogonalize`.
        normalize: whether each filter bank is rescaled to the length sqrt(rows).
        matrix_lr: learning rate of parameters with two dimensions.
        matrix_weight_decay: L2 penalty of parameters with two dimensions, added to the gradient.
        vector_lr: learning rate of parameters with fewer than two dimensions.
        vector_weight_decay: L2 penalty of parameters with fewer than two dimensions, added to the gradient.
        sgd_momentum: momentum of all parameters but filter banks.

    Raises:
        ValueError: If a learning rate is not positive, a momentum is not in [0, 1), or there are no parameters.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.9,
        *,
        iterations: int = 5,
        normalize: bool = True,
        matrix_lr: float = 0.02,
        matrix_weight_decay: float = 0.0,
        vector_lr: float = 0.02,
        vector_weight_decay: float = 0.0,
        sgd_momentum: float = 0.9,
    ) -> None:
        for name, rate in {"lr": lr, "matrix_lr": matrix_lr, "vector_lr": vector_lr}.items():
            if not rate > 0:
                raise ValueError(f"{name} must be above 0, not {rate}")
        for name, value in {"momentum": momentum, "sgd_momentum": sgd_momentum}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), not {value}")
        params = list(params)
        filter_banks = {"momentum": momentum, "iterations": iterations, "normalize": normalize}
        matrices = {"relative_lr": matrix_lr / lr, "weight_decay": matrix_weight_decay, "momentum": sgd_momentum}
        vectors = {"relative_lr": vector_lr / lr, "weight_decay": vector_weight_decay, "momentum": sgd_momentum}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in params if p.ndim > 2], "orthogonalize": True, **filter_banks},
            {"params": [p for p in params if p.ndim == 2], "orthogonalize": False, **matrices},
            {"params": [p for p in params if p.ndim < 2], "orthogonalize": False, **vectors},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient are not changed.

        Args:
            closure: recomputes the loss; optional.

        Returns:
            The result of `closure`, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                (self._step_filter_banks if group["orthogonalize"] else self._step_others)(params, group)
        return loss

    def _step_filter_banks(self, banks: list[Tensor], group: dict[str, Any]) -> None:
        momentum, gradients, buffers = group["momentum"], _gradients(banks), self._momentum_buffers(banks)
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, buffers, momentum)
        matrices = [as_matrix(direction, bank) for direction, bank in zip(directions, banks, strict=True)]
        updates = orthogonalize_all(matrices, group["iterations"])
        if group["normalize"]:
            lengths = torch._foreach_norm(banks)
            torch._foreach_mul_(lengths, [len(bank) ** -0.5 for bank in banks])
            torch._foreach_div_(banks, lengths)
        factors = [max(1.0, rows / columns) ** 0.5 for rows, columns in (matrix.shape for matrix in matrices)]
        if max(factors) > 1:
            torch._foreach_mul_(updates, factors)
        _descend(banks, [as_bank(update, bank) for update, bank in zip(updates, banks, strict=True)], group["lr"])

    def _step_others(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        directions = list(torch._foreach_add(_gradients(params), params, alpha=group["weight_decay"]))
        if momentum:
            buffers = self._momentum_buffers(params)
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, directions)
            torch._foreach_add_(directions, buffers, alpha=momentum)
        _descend(params, directions, group["lr"] * group["relative_lr"])

    def _momentum_buffers(self, params: list[Tensor]) -> list[Tensor]:
        for param in params:
            if self.state[param].get("momentum_buffer") is None:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        return [self.state[param]["momentum_buffer"] for param in params]


def _gradients(params: Sequence[Tensor]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def _descend(params: list[Tensor], directions: list[Tensor], lr: float | Tensor) -> None:
    """Subtract lr times each direction in place.

    Overwrites the directions if lr is a tensor, because `alpha` must be a number on the host.
    """
    if isinstance(lr, Tensor):
        torch._foreach_mul_(directions, lr)
        torch._foreach_sub_(params, directions)
    else:
        torch._foreach_add_(params, directions, alpha=-lr)


def as_matrix(tensor: Tensor, bank: Tensor) -> Tensor:
    """Reshape a tensor of a filter bank's shape to a matrix with one row per filter, without a copy if possible.

    Columns have the order of `bank` in memory, so channels_last weights are not copied. Orthogonalisation does not
    depend on the order of the columns.

    Args:
        tensor: a gradient or momentum of the bank. If it has the bank's strides, the result is a view.
        bank: (filters, ...), with at least three dimensions.
    """
    return tensor.permute(_memory_order(bank)).flatten(1)


def as_bank(matrix: Tensor, bank: Tensor) -> Tensor:
    """Return a view of a matrix from `as_matrix` in the shape of the bank."""
    order = _memory_order(bank)
    back = sorted(range(len(order)), key=order.__getitem__)
    return matrix.unflatten(1, [bank.shape[d] for d in order[1:]]).permute(back)


def _memory_order(bank: Tensor) -> list[int]:
    """Return the dimension of the filters, then the other dimensions by decreasing stride."""
    return [0, *sorted(range(1, bank.ndim), key=bank.stride, reverse=True)]


def orthogonalize_all(matrices: Sequence[Tensor], iterations: int = 5, *, batched: bool | None = None) -> list[Tensor]:
    """Orthogonalise several matrices; on a GPU with batched products, which need fewer kernel launches.

    Args:
        matrices: float matrices (rows, columns) of any shapes, on one device.
        iterations: see `orthogonalize`.
        batched: whether to use batched products; None for batches on a GPU only. On a CPU, one matrix after the other
            is faster because it stays in the cache.

    Returns:
        The result of `orthogonalize` for each matrix, up to rounding; views of one tensor per batch.
    """
    batched = matrices[0].is_cuda if batched is None else batched
    results: dict[int, Tensor] = {}
    for indices, (rows, columns) in batches_of(matrices) if batched else _one_by_one(matrices):
        dtype = matrices[indices[0]].dtype
        batch = _padded([_wide(matrices[i].to(_fast_dtype(matrices[i]))) for i in indices], rows, columns)
        for i, update in zip(indices, orthogonalize(batch, iterations).to(dtype), strict=True):
            short, long = _wide(matrices[i]).shape
            update = update[:short, :long]
            results[i] = update if matrices[i].shape == update.shape else update.T
    return [results[i] for i in range(len(matrices))]


Batch = tuple[list[int], tuple[int, int]]
"""Indices of the matrices in a batch, and the (rows, columns) to pad them to after transposing tall ones."""


def batches_of(matrices: Sequence[Tensor]) -> Iterator[Batch]:
    """Divide matrices into batches of equal dtype and shape.

    Small products take a GPU less time than their launch. All matrices are therefore padded with zeros to the largest
    one if that takes at most `PAD_UP_TO` entries. Zero rows and columns stay zero and do not change other entries.
    """
    shapes = [_wide(matrix).shape for matrix in matrices]
    rows, columns = (max(sizes) for sizes in zip(*shapes, strict=True))
    pad = len(matrices) * rows * columns <= PAD_UP_TO
    batches: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, (matrix, shape) in enumerate(zip(matrices, shapes, strict=True)):
        batches[matrix.dtype, None if pad else shape].append(i)
    for indices in batches.values():
        yield indices, (rows, columns) if pad else (shapes[indices[0]][0], shapes[indices[0]][1])


def _one_by_one(matrices: Sequence[Tensor]) -> Iterator[Batch]:
    for i, matrix in enumerate(matrices):
        rows, columns = _wide(matrix).shape
        yield [i], (rows, columns)


def _padded(matrices: list[Tensor], rows: int, columns: int) -> Tensor:
    if all(matrix.shape == (rows, columns) for matrix in matrices):
        return torch.stack(matrices)
    batch = matrices[0].new_zeros(len(matrices), rows, columns)
    for padded, matrix in zip(batch, matrices, strict=True):
        padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return batch


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Approximate U V^T for each matrix U S V^T by Newton-Schulz iterations.

    Starting from X = matrix / |matrix|, each iteration computes X <- a X + (b X X^T + c (X X^T)^2) X, which maps every
    singular value s to a s + b s^3 + c s^5. The coefficients are chosen for a steep slope at 0. With them, singular
    values do not converge to 1 but to between about 0.7 and 1.2 (Jordan et al. 2024). A singular value that starts
    below 0.01 needs more than 5 iterations; training works without.

    Computed in bf16 if the device multiplies it natively, because the iterations tolerate its rounding errors.

    Args:
        matrices: (rows, columns) or (batch, rows, columns), float.
        iterations: number of iterations.

    Returns:
        A tensor of the same shape and dtype.
    """
    x = matrices.to(_fast_dtype(matrices))
    x = x.view(-1, *matrices.shape[-2:])
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # so that X X^T is the smaller of X X^T and X^T X
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).view(matrices.shape).to(matrices.dtype)


def _fast_dtype(matrix: Tensor) -> torch.dtype:
    return torch.bfloat16 if multiplies_bf16(matrix.is_cuda) else torch.float32
