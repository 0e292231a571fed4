"""Normalisation layers that torch does not provide. All map (N, C, H, W) to (N, C, H, W)."""

import math

import torch
from torch import Tensor, nn

from cifarbn.models.types import check_choice


class NoisyBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose output is shifted and scaled by noise, drawn again at every step.

    Algorithm 1 of Santurkar et al. 2018 (arXiv 1805.11604), with their constants as defaults. In training, for every
    channel j and every value i of that channel (each sample and position)::

        mu_j ~ U(-n_mu, n_mu)                  sigma_j ~ U(1, n_sigma)
        m_ij ~ U(mu_j - r_mu, mu_j + r_mu)     s_ij ~ N(sigma_j, r_sigma)
        a_ij <- s_ij a_ij + m_ij

    In evaluation it equals `nn.BatchNorm2d`. The running statistics are those before the noise.

    Trap: the noise comes from the global random generator of the input's device, so a second forward pass on the same
    batch gives a different loss unless the generator's state is restored first.

    Args:
        channels: C.
        n_mu: half-width of the distribution of channel shifts mu.
        n_sigma: upper end of the distribution of channel scales sigma; at least 1.
        r_mu: half-width of the distribution of a value's shift m around mu.
        r_sigma: standard deviation of the distribution of a value's scale s around sigma.
    """

    requires_single_process = True  # torch would replace it by SyncBatchNorm, which adds no noise

    def __init__(
        self,
        channels: int,
        n_mu: float = 0.5,
        n_sigma: float = 1.25,
        r_mu: float = 0.1,
        r_sigma: float = 0.1,
    ) -> None:
        super().__init__(channels)
        self.n_mu, self.n_sigma, self.r_mu, self.r_sigma = n_mu, n_sigma, r_mu, r_sigma

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); add noise in training."""
        a = super().forward(x)
        if not self.training:
            return a
        channel = a[:1, :, :1, :1]
        mu = torch.rand_like(channel) * 2 * self.n_mu - self.n_mu
        sigma = 1 + torch.rand_like(channel) * (self.n_sigma - 1)
        m = mu + torch.rand_like(a) * 2 * self.r_mu - self.r_mu
        s = sigma + torch.randn_like(a) * self.r_sigma
        return s * a + m


class LpNorm2d(nn.Module):
    """Batch normalisation that divides by the average l_p norm instead of the standard deviation.

    Section 3.3 of Santurkar et al. 2018 (arXiv 1805.11604). Per channel, over the batch and all positions::

        out = gamma (y - mean y) / norm + beta,   norm = (mean |y|^p + eps)^(1/p),   max |y| + eps for p = inf

    Trap: the norm is that of y before centring, so p = 2 equals `nn.BatchNorm2d` only if y has mean zero.
    Evaluation uses the running mean and the running norm.

    Args:
        channels: C.
        p: 1, 2 or inf.
        eps: avoids a division by zero.
        momentum: weight of the current batch in the running mean and the running norm.

    Raises:
        ValueError: If p is not 1, 2 or inf.
    """

    requires_single_process = True  # each process would compute statistics of its own part of the batch

    running_mean: Tensor
    running_norm: Tensor

    def __init__(self, channels: int, p: float, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        check_choice("p", p, (1, 2, math.inf))
        self.p, self.eps, self.momentum = p, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_norm", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W). As in batch norm, half-precision inputs have statistics in the parameters' dtype."""
        y = x.to(self.weight.dtype)
        mean, norm = self._batch_statistics(y) if self.training else (self.running_mean, self.running_norm)
        scale = self.weight / norm
        out = (y - _per_channel(mean)) * _per_channel(scale) + _per_channel(self.bias)
        return out.to(x.dtype)

    def _batch_statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        mean = y.mean((0, 2, 3))
        if self.p == math.inf:
            norm = y.abs().amax((0, 2, 3)) + self.eps
        else:
            norm = (y.abs().pow(self.p).mean((0, 2, 3)) + self.eps).pow(1 / self.p)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_norm.lerp_(norm, self.momentum)
        return mean, norm

    def extra_repr(self) -> str:
        """Return the arguments that `print(model)` shows."""
        return f"{self.weight.numel()}, p={self.p}, eps={self.eps}, momentum={self.momentum}"


class GroupNorm2d(nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494) with the number of channels as its first argument.

    Args:
        channels: C.
        groups: number of groups; if it does not divide C, gcd(groups, C) groups are used. Wu and He use 32.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(math.gcd(groups, channels), channels)


class LayerNorm2d(GroupNorm2d):
    """Layer normalisation over the channels and positions of each sample, with a scale and shift per channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, groups=1)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
