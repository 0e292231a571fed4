import copy

import pytest
import torch
from torch import nn

from cifarbn import optimizers
from cifarbn.optimizers import Muon, batches_of, orthogonalize, orthogonalize_all


@pytest.fixture(params=[False, True], ids=["fp32", "bf16"])
def in_bf16(request, monkeypatch):
    """Run the iterations in both precisions, independent of the machine."""
    monkeypatch.setattr(optimizers, "multiplies_bf16", lambda cuda: request.param)
    return request.param


def steps(optimizer, params, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_singular_values_become_about_one_and_singular_vectors_are_kept(shape, in_bf16):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.2, 3.0, len(v))) @ v
    update = orthogonalize(matrix, iterations=5)
    assert update.dtype == torch.float32
    values = torch.linalg.svdvals(update)
    assert 0.65 < values.min() and values.max() < 1.25
    rotated = u.T @ update @ v.T
    off_diagonal = rotated - torch.diag(rotated.diagonal())
    assert off_diagonal.abs().max() < (0.03 if in_bf16 else 1e-4)


def test_one_iteration_applies_the_polynomial():
    update = orthogonalize(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), iterations=1)  # divided by its length 5: 0.6 and 0.8
    expected = [3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5 for s in (0.6, 0.8)]
    torch.testing.assert_close(update, torch.diag(torch.tensor(expected)), atol=0.02, rtol=0)


def test_a_matrix_of_zeros_is_kept():
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("pad_up_to", [0, 2**23], ids=["equal shapes", "padded"])
def test_batched_and_single_matrices_have_the_same_result(pad_up_to, in_bf16, monkeypatch):
    monkeypatch.setattr(optimizers, "PAD_UP_TO", pad_up_to)
    matrices = drawn((8, 30), (30, 8), (8, 30), (5, 12), (12, 5), (6, 6))
    batched = orthogonalize_all(matrices, iterations=3, batched=True)
    for matrix, update in zip(matrices, batched, strict=True):
        assert update.shape == matrix.shape and update.dtype == torch.float32
        alone = orthogonalize(matrix, iterations=3)
        torch.testing.assert_close(update, alone, atol=0.02 if in_bf16 else 1e-5, rtol=0)


def test_small_matrices_share_a_batch_and_large_ones_are_batched_by_shape(monkeypatch):
    matrices = drawn((8, 30), (30, 8), (5, 12))
    monkeypatch.setattr(optimizers, "PAD_UP_TO", 3 * 8 * 30)
    assert list(batches_of(matrices)) == [([0, 1, 2], (8, 30))]
    monkeypatch.setattr(optimizers, "PAD_UP_TO", 3 * 8 * 30 - 1)
    assert list(batches_of(matrices)) == [([0, 1], (8, 30)), ([2], (5, 12))]


def test_a_step_follows_the_formula():
    banks = [nn.Parameter(bank) for bank in drawn((8, 4, 3, 3), (40, 3, 3, 3), (8, 4, 3, 3))]
    expected, buffers = [bank.detach().clone() for bank in banks], [torch.zeros_like(bank) for bank in banks]
    optimizer = Muon(banks, lr=0.1, momentum=0.6, iterations=3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for i, bank in enumerate(banks):
            bank.grad = torch.randn(bank.shape, generator=generator)
            buffers[i] = 0.6 * buffers[i] + 0.4 * bank.grad
            update = orthogonalize((0.4 * bank.grad + 0.6 * buffers[i]).flatten(1), 3).view(bank.shape)
            rows, columns = len(bank), bank[0].numel()
            expected[i] *= rows**0.5 / expected[i].norm()
            expected[i] -= 0.1 * max(1, rows / columns) ** 0.5 * update
        optimizer.step()
    for bank, value in zip(banks, expected, strict=True):
        # In bf16 rounding may differ; three steps move a weight by about 0.05.
        torch.testing.assert_close(bank.detach(), value, atol=2e-3, rtol=0)


def test_lr_may_be_a_tensor_that_changes_in_place():
    by_number, by_tensor = ([nn.Parameter(p) for p in drawn((4, 2, 3, 3), (4, 2), (4,))] for _ in range(2))
    first, second = Muon(by_number, lr=0.1), Muon(by_tensor, lr=0.1)
    lr = torch.tensor(0.1)
    for group in second.param_groups:
        group["lr"] = lr
    for step, rate in enumerate([0.1, 0.05]):
        for group in first.param_groups:
            group["lr"] = rate
        lr.fill_(rate)
        steps(first, by_number, 1, seed=step)
        steps(second, by_tensor, 1, seed=step)
    for ours, theirs in zip(by_tensor, by_number, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_can_be_captured_in_a_cuda_graph():
    params = [nn.Parameter(p.cuda()) for p in drawn((8, 4, 3, 3), (40, 3, 3, 3), (4, 2), (4,))]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer, twin = Muon(params, lr=0.1), Muon(twins, lr=0.1)
    lr = torch.tensor(0.1, device="cuda")
    for group in optimizer.param_groups:
        group["lr"] = lr
    for param, other in zip(params, twins, strict=True):
        param.grad = torch.randn_like(param)
        other.grad = param.grad.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        optimizer.step()  # creates the buffers
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    lr.fill_(0.05)
    graph.replay()
    twin.step()
    for group in twin.param_groups:
        group["lr"] = 0.05
    twin.step()
    for param, other in zip(params, twins, strict=True):
        torch.testing.assert_close(param, other, atol=1e-3, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_a_1x1_convolution_is_trained_like_a_matrix_by_torchs_muon(shape, monkeypatch):
    monkeypatch.setattr(optimizers, "multiplies_bf16", lambda cuda: True)  # torch.optim.Muon always computes in bf16
    matrix = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    bank = nn.Parameter(matrix.detach().clone()[:, :, None, None])
    theirs = torch.optim.Muon([matrix], lr=0.1, momentum=0.8, weight_decay=0.0, ns_steps=3)
    ours = Muon([bank], lr=0.1, momentum=0.8, iterations=3, normalize=False)
    steps(theirs, [matrix], 3)
    steps(ours, [bank], 3)
    # The two round to bf16 at different places. Each step moves a weight by about 0.03.
    torch.testing.assert_close(bank[:, :, 0, 0], matrix, atol=0.01, rtol=0)


def test_filter_banks_keep_their_length():
    bank = nn.Parameter(torch.randn(16, 3, 3, 3))
    optimizer = Muon([bank], lr=1e-6)
    steps(optimizer, [bank], 1)
    assert bank.norm().item() == pytest.approx(16**0.5, rel=1e-4)


def test_the_relative_change_of_a_filter_bank_is_about_lr():
    for shape in [(64, 3, 3, 3), (16, 16, 3, 3)]:
        bank = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        optimizer = Muon([bank], lr=0.01)
        steps(optimizer, [bank], 1)
        before = bank.detach().clone()
        before *= shape[0] ** 0.5 / before.norm()
        steps(optimizer, [bank], 1, seed=1)
        assert 0.007 < (bank - before).norm() / before.norm() < 0.012


def test_other_parameters_are_trained_as_by_sgd():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(10, 4), (4,), ()]]
    theirs = copy.deepcopy(ours)
    muon = Muon(
        ours,
        lr=0.3,
        matrix_lr=0.6,
        matrix_weight_decay=0.1,
        vector_lr=0.15,
        vector_weight_decay=0.01,
        sgd_momentum=0.85,
    )
    sgd = torch.optim.SGD(
        [
            {"params": theirs[:1], "lr": 0.6, "weight_decay": 0.1},
            {"params": theirs[1:], "lr": 0.15, "weight_decay": 0.01},
        ],
        momentum=0.85,
        nesterov=True,
    )
    steps(muon, ours, 5)
    steps(sgd, theirs, 5)
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)


def test_a_schedule_moves_all_learning_rates_in_proportion():
    params = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    optimizer = Muon(params, lr=0.2, matrix_lr=0.4, vector_lr=1.0, sgd_momentum=0.0)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.2
        group["lr"] = 0.1  # as OneCycleLR(max_lr=0.1) does
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    torch.testing.assert_close(params[0], nn.Parameter(torch.full((2, 2), -0.2)))
    torch.testing.assert_close(params[1], nn.Parameter(torch.full((2,), -0.5)))


def test_parameters_without_a_gradient_are_kept():
    params = [nn.Parameter(torch.ones(shape)) for shape in [(2, 2, 3, 3), (2, 2), (2,)]]
    optimizer = Muon(params)
    optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in params)
    params[2].grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(params[1], torch.ones(2, 2)) and not torch.equal(params[2], torch.ones(2))


def test_results_do_not_depend_on_the_memory_format():
    contiguous = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    channels_last = nn.Parameter(contiguous.detach().clone().to(memory_format=torch.channels_last))
    for param in (contiguous, channels_last):
        steps(Muon([param]), [param], 3)
    # The order of the matrix's columns differs, and so do sums that some machines round to bf16.
    torch.testing.assert_close(channels_last, contiguous, atol=2e-3, rtol=0)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


def test_it_resumes_from_its_state_dict():
    def fresh():
        return [nn.Parameter(torch.ones(shape)) for shape in [(4, 2, 3, 3), (4, 2), (4,)]]

    through, first, second = fresh(), fresh(), fresh()
    whole = Muon(through)
    steps(whole, through, 2)
    steps(whole, through, 2, seed=1)
    before, after = Muon(first), Muon(second)
    steps(before, first, 2)
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        for old, new in zip(first, second, strict=True):
            new.copy_(old)
    steps(after, second, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(through, second, strict=True))


def test_the_closure_is_called_with_gradients_and_its_loss_returned():
    param = nn.Parameter(torch.tensor([2.0]))
    optimizer = Muon([param], vector_lr=0.5, sgd_momentum=0.0)

    def closure():
        loss = (param**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4.0
    assert param.item() == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"vector_lr": -1.0}, "vector_lr must be above 0, not -1.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), not 1.0"),
    ],
)
def test_invalid_arguments_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.ones(1))], **arguments)
