"""Optimizers that torch lacks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from cifarbn.hardware import multiplies_bf16


class Muon(Optimizer):
    """Orthogonalised momentum for filter banks, SGD with Nesterov momentum for everything else.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon. A filter bank, a parameter of more than two dimensions, is
    read as a matrix M with a row per filter. With its gradient G

        B <- momentum B + (1 - momentum) G
        M <- M sqrt(rows) / |M|                                                    where `normalize`
        M <- M - lr sqrt(max(1, rows / columns)) orthogonalize((1 - momentum) G + momentum B)

    so that where `normalize` is true lr is about the relative change of M in a step. A norm after the convolution
    makes its length meaningless; without one, set `normalize` to false.

    Everything else is trained as `torch.optim.SGD(nesterov=True)` does it, with learning rates of its own for matrices
    (linear layers: from parameters alone the head cannot be told from the others, and it must not be orthogonalised)
    and for vectors and scalars (biases, norms). `torch.optim.Muon` takes matrices and nothing else.

    Every group's "lr" is the filter banks': what a schedule does to it, the others follow in proportion.

    Args:
        params: the parameters, as `net.parameters()` gives them.
        lr: of filter banks.
        momentum: of filter banks.
        iterations: see `orthogonalize`.
        normalize: whether filter banks keep the length sqrt(rows).
        matrix_lr, vector_lr: learning rates of all other parameters, by dimensions.
        matrix_weight_decay, vector_weight_decay: L2, added to the gradient.
        sgd_momentum: of all other parameters.

    Raises:
        ValueError: where a learning rate is not above 0, a momentum outside [0, 1), or there are no parameters.
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
        """Take one step; parameters without a gradient stay as they are. Returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["orthogonalize"]:
                for bank in params:
                    self._step_filter_bank(bank, group)
            elif params:
                self._step_others(params, group)
        return loss

    def _step_filter_bank(self, bank: Tensor, group: dict[str, Any]) -> None:
        gradient, momentum = bank.grad, group["momentum"]
        assert gradient is not None
        state = self.state[bank]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(bank)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = orthogonalize(gradient.lerp(buffer, momentum).flatten(1), group["iterations"])
        rows, columns = update.shape
        if group["normalize"]:
            bank.mul_(rows**0.5 / torch.linalg.vector_norm(bank))
        bank.sub_(update.view(bank.shape), alpha=group["lr"] * max(1, rows / columns) ** 0.5)

    def _step_others(self, params: list[Tensor], group: dict[str, Any]) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        sgd(
            params,
            [p.grad for p in params],  # type: ignore[misc]
            buffers,
            lr=group["lr"] * group["relative_lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["momentum"] > 0,
            dampening=0,
            maximize=False,
        )
        for param, buffer in zip(params, buffers, strict=True):
            self.state[param]["momentum_buffer"] = buffer


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of the matrix U S V^T, by a Newton-Schulz iteration.

    X <- a X + (b X X^T + c (X X^T)^2) X from X = matrix / |matrix|, which moves every singular value by the polynomial
    a s + b s^3 + c s^5. The coefficients are chosen for a steep slope at 0, and with them singular values do not
    converge to 1 but end between about 0.7 and 1.2 (Jordan et al. 2024). One that begins below 0.01 takes more than 5
    iterations to come there; training does not need it to.

    Args:
        matrix: (rows, columns) float.
        iterations: how often.

    Returns:
        (rows, columns) of the matrix's dtype. Computed in bf16 where the device multiplies it natively: the iteration
        forgives its rounding.
    """
    x = matrix.bfloat16() if multiplies_bf16(matrix.is_cuda) else matrix.float()
    x = x / torch.linalg.vector_norm(x).clamp_min(1e-7)
    tall = matrix.shape[0] > matrix.shape[1]
    x = x.T if tall else x  # X X^T is then the smaller of the two products
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
