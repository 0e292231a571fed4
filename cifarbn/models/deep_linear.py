"""The deep linear network: the smallest model whose loss landscape Santurkar et al. 2018 (arXiv 1805.11604) study."""

from torch import Tensor, nn

from cifarbn.models.init import initialize
from cifarbn.models.types import Norm, check_at_least_one


class DeepLinear(nn.Module):
    """A product of matrices, W_depth ... W_1 x, optionally with a norm after each matrix but the last.

    The defaults give the model of Santurkar et al. 2018 (arXiv 1805.11604, section 3.2): 25 layers of 10x10.

    Args:
        depth: number of linear layers (all without bias); the last one is `head`.
        features: number of inputs and outputs of every layer.
        norm: features -> normalisation layer for (N, features), such as `nn.BatchNorm1d`; `nn.Identity` for none.
        init: see `initialize`. "kaiming" only affects convolutions, so here it equals "torch".

    Raises:
        ValueError: If depth or features is less than 1, or init is unknown.
    """

    def __init__(self, depth: int = 25, features: int = 10, *, norm: Norm = nn.Identity, init: str = "xavier") -> None:
        super().__init__()
        check_at_least_one("depth", depth)
        check_at_least_one("features", features)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(features, features, bias=False), norm(features)]
        self.hidden = nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))
        self.head = nn.Linear(features, features, bias=False)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features) to (N, features)."""
        return self.head(self.hidden(x))
