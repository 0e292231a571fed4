"""Normalisation layers that torch lacks: channels -> layer, each of the shape (N, C, H, W) -> (N, C, H, W)."""

import math

import torch
from torch import Tensor, nn

from cifarbn.models.types import check_choice


class NoisyBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose output is shifted and scaled by noise that changes at every step.

    Santurkar et al. 2018 (arXiv 1805.11604), algorithm 1, with their constants as defaults. In training, for every
    channel j of this step and every value i of the batch (sample and position)::

        mu_j ~ U(-n_mu, n_mu)                  sigma_j ~ U(1, n_sigma)
        m_ij ~ U(mu_j - r_mu, mu_j + r_mu)     s_ij ~ N(sigma_j, r_sigma)
        a_ij <- s_ij a_ij + m_ij

    In evaluation it is `nn.BatchNorm2d`, whose state it shares: the running statistics never see the noise.

    The noise comes from torch's global RNG of the input's device: a second forward pass of the same batch gives
    another loss, unless the generator is put back first.

    Args:
        channels: C.
        n_mu: half the width of the law of the channels' shifts.
        n_sigma: upper end of the law of the channels' scales, at least 1.
        r_mu: half the width of the law of a value's shift around its channel's.
        r_sigma: standard deviation of the law of a value's scale around its channel's.
    """

    requires_single_process = True  # torch would put its own SyncBatchNorm, which makes no noise, in its place

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
        """Normalise (N, C, H, W), in training with noise."""
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
    """Batch normalisation by the average l_p norm in place of the standard deviation.

    Santurkar et al. 2018 (arXiv 1805.11604), section 3.3. Per channel, over the batch and all positions::

        out = gamma (y - mean y) / norm + beta,   norm = (mean |y|^p + eps)^(1/p),   max |y| + eps for p = inf

    The norm is that of y before it is centred, so that p = 2 is `nn.BatchNorm2d` only where y has mean zero.
    Evaluation takes the running mean and the running norm.

    Args:
        channels: C.
        p: 1, 2 or inf.
        eps: keeps a channel of zeros from dividing by zero.
        momentum: weight of the newest batch in the running mean and the running norm.

    Raises:
        ValueError: where p is none of these.
    """

    requires_single_process = True  # its statistics are of one process's share of the batch

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
        """Normalise (N, C, H, W); in half precision, with statistics in that of the parameters, as batch norm."""
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
        """What distinguishes this layer when the net is printed."""
        return f"{self.weight.numel()}, p={self.p}, eps={self.eps}, momentum={self.momentum}"


class GroupNorm2d(nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494) as channels -> layer.

    Args:
        channels: C.
        groups: 32 is the paper's choice; where it does not divide C, as in a narrow net, the greatest common
            divisor of both takes its place.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(math.gcd(groups, channels), channels)


class LayerNorm2d(GroupNorm2d):
    """Layer normalisation: over channels and positions of one sample, then a scale and shift per channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, groups=1)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
