import pytest
import torch

from cifarbn.losses import OneHotMSELoss, SumOfSquares, in_full_precision


def test_one_hot_mse_by_hand():
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    labels = torch.tensor([0, 2])
    # (0 + 0 + 4) + (0 + 9 + 1), over 2 * 3 numbers.
    assert OneHotMSELoss()(logits, labels).item() == pytest.approx(14 / 6)


@pytest.mark.parametrize("loss", [OneHotMSELoss(), torch.nn.CrossEntropyLoss(), lambda logits, labels: logits.mean()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_computed_in_full_precision_under_autocast(loss, dtype):
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    labels = torch.arange(64) % 10
    exact = loss(logits.detach().double(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = in_full_precision(loss, logits, labels)
    assert value.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    value.backward()
    assert logits.grad.dtype == dtype


def test_autocast_is_off_inside_the_loss():
    seen = []

    def loss(logits, labels):
        seen.append((logits @ logits.T).dtype)
        return logits.sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_full_precision(loss, torch.ones(2, 3), torch.zeros(2))
    assert seen == [torch.float32]


def test_the_sum_of_squares_does_not_broadcast():
    with pytest.raises(ValueError, match=r"same shape, not \(10, 10\) and \(10,\)"):
        SumOfSquares()(torch.zeros(10, 10), torch.zeros(10))
