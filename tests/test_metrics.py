import pytest
import torch

from cifarbn.training.metrics import MeanOverImages


@pytest.mark.parametrize("sizes", [[10], [7, 3], [1] * 10, [4, 4, 2]])
def test_the_mean_is_over_images_for_any_the_batches(sizes):
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0])
    mean = MeanOverImages()
    for batch in values.split(sizes):
        mean.update(batch.mean(), len(batch))
    assert mean.compute().item() == pytest.approx(102.3, rel=1e-6)
    assert mean.compute().dtype == torch.float32


@pytest.mark.parametrize("model", [torch.float32, torch.bfloat16, torch.float64])
def test_half_precision_is_added_up_in_full_precision(model):
    mean = torch.nn.ModuleList([MeanOverImages()]).to(model)[0]
    for _ in range(1000):
        mean.update(torch.tensor(1.0, dtype=torch.bfloat16), 1)
    mean.update(torch.tensor(2.0, dtype=torch.bfloat16), 1)
    assert mean.compute().item() == pytest.approx(1002 / 1001, rel=1e-6)
