"""Theorem 4.1 of the paper (Santurkar et al. 2018): what batch normalisation does to a gradient."""

import torch
from torch import Tensor


def normalised_gradient_norm(gradient: Tensor, normalised: Tensor, gamma: float | Tensor, sigma: Tensor) -> Tensor:
    """||grad_y Lhat|| behind a batch normalisation, from the gradient g in front of it, per unit, shape (units,).

    ||grad_y Lhat||^2 = gamma^2 / sigma^2 (||g||^2 - <1, g>^2 / m - <g, yhat>^2 / m): the theorem's bound, which with
    coefficient 1/m in the last term is an equality.

    Args:
        gradient: g, with respect to the output gamma * yhat + beta, shape (m, units); m counts batch, H and W.
        normalised: yhat = (y - mean) / sigma, shape (m, units).
        gamma: the scale, a number or shape (units,).
        sigma: sqrt of the biased variance of y, shape (units,). Trap: BN's eps breaks the equality by eps / variance.
    """
    m = len(gradient)
    free = gradient.square().sum(0) - gradient.sum(0).square() / m - (gradient * normalised).sum(0).square() / m
    return torch.abs(gamma / sigma) * free.clamp(min=0).sqrt()
