"""Theorem 4.1 of Santurkar et al. 2018 (arXiv 1805.11604): the effect of batch norm on the norm of a gradient."""

import torch
from torch import Tensor


def normalised_gradient_norm(gradient: Tensor, normalised: Tensor, gamma: float | Tensor, sigma: Tensor) -> Tensor:
    """Return ||grad_y Lhat|| for the input y of a batch norm, from the gradient g of its output; shape (units,).

    ||grad_y Lhat||^2 = gamma^2 / sigma^2 (||g||^2 - <1, g>^2 / m - <g, yhat>^2 / m). The theorem states this as a
    bound; with coefficient 1/m in the last term it is an equality.

    Trap: the eps of batch norm breaks the equality, by a relative error of eps / variance.

    Args:
        gradient: g, with respect to the output gamma * yhat + beta, shape (m, units); m counts batch, H and W.
        normalised: yhat = (y - mean) / sigma, shape (m, units).
        gamma: the scale, a number or shape (units,).
        sigma: sqrt of the biased variance of y, shape (units,).
    """
    m = len(gradient)
    free = gradient.square().sum(0) - gradient.sum(0).square() / m - (gradient * normalised).sum(0).square() / m
    return torch.abs(gamma / sigma) * free.clamp(min=0).sqrt()
