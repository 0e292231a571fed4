import pytest
import torch

from cifarbn.losses import OneHotMSELoss


def test_one_hot_mse_by_hand():
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    labels = torch.tensor([0, 2])
    # (0 + 0 + 4) + (0 + 9 + 1), over 2 * 3 numbers.
    assert OneHotMSELoss()(logits, labels).item() == pytest.approx(14 / 6)
