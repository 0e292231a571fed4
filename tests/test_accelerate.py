"""Fast layers keep the results, names and hooks of torch's layers, in the package's models and in others."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from cifarbn.fast import batch_norm
from cifarbn.fast.accelerate import accelerate, use_fast_layers, use_torch_layers
from cifarbn.fast.batch_norm import FusedBatchNorm2d, normalize_and_activate
from cifarbn.fast.blocks import FusedSequential
from cifarbn.fast.convolution import GemmConv2d
from cifarbn.fast.hardware import Hardware
from cifarbn.fast.max_pool import FastMaxPool2d
from cifarbn.models import VGG, ResNet, SpeedNet
from cifarbn.models.normalization import NoisyBatchNorm2d
from cifarbn.models.resnet import BasicBlock, Bottleneck

MODELS = {
    "resnet18": lambda: ResNet(18, width=16),
    "resnet18_imagenet": lambda: ResNet(18, width=16, stem="imagenet", pool_blocks=True),
    "resnet50": lambda: ResNet(50, width=16),
    "vgg_a_bn": lambda: VGG("A", norm=nn.BatchNorm2d, width=16),
    "speednet": lambda: SpeedNet((64, 64, 64), activation=nn.ReLU),
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "torchvision vgg_bn": lambda: nn.Sequential(torchvision.models.vgg.make_layers([64, "M", 128, "M"], True)),
    "user's": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(14400, 10)
    ),
}
FAST = (FusedBatchNorm2d, GemmConv2d, FastMaxPool2d, FusedSequential)


def hardware(**options):
    return Hardware.choose(**{"accelerator": "cpu", "precision": "bf16-mixed", "threads": 1, **options})


def kinds(model):
    return [type(module).__name__ for module in model.modules()]


def count(model, kind):
    return sum(type(module) is kind for module in model.modules())


def step(model, bf16=True, dtype=torch.float32):
    """Return the logits, gradients and buffers after a forward and backward pass in train mode."""
    torch.manual_seed(1)
    images = torch.randn(8, 3, 32, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(images)
    model.zero_grad()
    logits.float().square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad), *model.buffers()]


@pytest.fixture
def make(request):
    torch.manual_seed(0)
    return MODELS[request.param]


@pytest.fixture
def fused(monkeypatch):
    """Record the calls that compute a norm fused with a ReLU and perhaps a residual."""
    calls = []
    fused = FusedBatchNorm2d._fused

    def counted(self, x, residual=None, relu=False):
        calls.append("residual" if residual is not None else "relu" if relu else "norm")
        return fused(self, x, residual, relu)

    monkeypatch.setattr(FusedBatchNorm2d, "_fused", counted)
    return calls


@pytest.mark.parametrize("make", MODELS, indirect=True)
def test_accelerate_keeps_state_and_objects_and_can_be_undone(make):
    model = make()
    before = kinds(model)
    modules, state = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
    parameters = list(model.parameters())
    assert accelerate(model, hardware(kernels=False)) is model and kinds(model) == before
    use_fast_layers(model)
    assert kinds(model) != before
    assert all(isinstance(module, plain) for module, plain in zip(modules, map(type, make().modules()), strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
    make().load_state_dict(model.state_dict())
    accelerate(model, hardware(kernels=False))
    assert kinds(model) == before


@pytest.mark.parametrize("make", MODELS, indirect=True)
def test_fp64_is_bit_identical_to_torch(make):
    model = make().double().to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    use_fast_layers(other)
    torch.manual_seed(0)
    for found, expected in zip(*(step(m, bf16=False, dtype=torch.float64) for m in (other, model)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("make", MODELS, indirect=True)
def test_fp32_is_as_accurate_as_torch(make):
    model = make().to(memory_format=torch.channels_last)
    exact, fast = copy.deepcopy(model).double(), copy.deepcopy(model)
    use_fast_layers(fast)
    expected = step(exact, bf16=False, dtype=torch.float64)
    errors = [
        sum(
            (a - b).double().norm() / (b.double().norm() + 1)
            for a, b in zip(step(each, bf16=False), expected, strict=True)
        )
        for each in (fast, model)
    ]
    assert errors[0] < 2 * errors[1] + 0.1  # a ReLU's input near 0 can have another sign


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("make", MODELS, indirect=True)
@pytest.mark.parametrize("bf16", [True, False])
def test_fused_and_separate_layers_are_bit_identical(make, bf16, fused, monkeypatch):
    model = accelerate(make(), hardware())
    other = copy.deepcopy(model)
    found = step(model, bf16)
    assert fused
    monkeypatch.setattr(batch_norm, "_is_watched", lambda module: True)
    fused.clear()
    expected = step(other, bf16)
    assert set(fused) == {"norm"}
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("make", "calls"),
    {
        "resnet18": {"relu": 9, "residual": 8, "norm": 3},
        "resnet50": {"relu": 33, "residual": 16, "norm": 4},
        "vgg_a_bn": {"relu": 8},
        "speednet": {"norm": 6},
        "torchvision resnet18": {"norm": 20},
        "torchvision vgg_bn": {"relu": 2},
        "user's": {"relu": 1},
    }.items(),
    indirect=["make"],
)
def test_which_layers_are_fused(make, calls, fused):
    step(accelerate(make(), hardware()))
    assert {kind: fused.count(kind) for kind in set(fused)} == calls


def test_torchvision_models_get_fast_layers():
    resnet, vgg = torchvision.models.resnet18(), torchvision.models.vgg11_bn()
    for model in (resnet, vgg):
        use_fast_layers(model)
    assert count(resnet, GemmConv2d) == 20 and count(resnet, FusedBatchNorm2d) == 20
    assert count(resnet, nn.MaxPool2d) == 1 and count(resnet, FastMaxPool2d) == 0  # 3x3
    assert count(vgg, GemmConv2d) == count(vgg, FusedBatchNorm2d) == 8 and count(vgg, FastMaxPool2d) == 5
    assert type(vgg.features) is FusedSequential


def test_layers_of_other_classes_are_not_changed():
    class Convolution(nn.Conv2d):
        pass

    class Layers(nn.Sequential):
        pass

    layers = Layers(Convolution(3, 4, 3), NoisyBatchNorm2d(4), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(3), nn.ReLU())
    model = nn.ModuleList([layers, nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.Conv1d(3, 4, 3), nn.LazyConv2d(4, 3)])
    before = kinds(model)
    use_fast_layers(model)
    assert kinds(model) == before


def test_fast_layers_are_only_used_for_bf16_or_fp32_channels_last_on_a_cpu():
    for options in ({"precision": "64-true"}, {"compile": True}, {"channels_last": False}, {"kernels": False}):
        model = accelerate(MODELS["vgg_a_bn"](), hardware(**options))
        assert not any(isinstance(module, FAST) for module in model.modules())


def test_without_channels_last_one_hook_makes_inputs_contiguous():
    class Scaled(nn.Module):
        def forward(self, x, factor):
            return x.is_contiguous(), factor

    model = Scaled()
    for _ in range(2):
        accelerate(model, hardware(channels_last=False))
    assert len(model._forward_pre_hooks) == 1
    assert model(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last), None) == (True, None)


# Hooks


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("make", MODELS, indirect=True)
def test_hooks_on_all_layers_fire_and_do_not_change_results(make):
    model = accelerate(make(), hardware())
    plain = copy.deepcopy(model)
    use_torch_layers(plain)
    expected, found = step(copy.deepcopy(model)), None
    seen = []
    for watched in (model, plain):
        fired = []
        for name, module in watched.named_modules():
            module.register_forward_hook(lambda *_, name=name, fired=fired: fired.append(name))
        values = step(watched)
        found = found or values
        seen.append(fired)
    assert seen[0] == seen[1]
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("place", [1, 2])
def test_every_kind_of_hook_fires(kind, place):
    model, fired = MODELS["user's"](), []
    use_fast_layers(model)
    handle = getattr(model[place], f"register_{kind}_hook")(lambda *_: fired.append(1))
    step(model)
    handle.remove()
    assert fired == [1]
    step(model)
    assert fired == [1]


@pytest.mark.usefixtures("kernels")
def test_global_hooks_fire():
    model, fired = MODELS["user's"](), []
    use_fast_layers(model)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: fired.append(module))
    try:
        step(model)
    finally:
        handle.remove()
    assert fired == [*model, model]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("place", [1, 2])
def test_an_instance_attribute_forward_is_called(place):
    model = MODELS["user's"]()
    use_fast_layers(model)
    model[place].forward = torch.zeros_like
    assert step(model)[0].eq(model[4].bias.bfloat16()).all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("make", "kind"),
    {"resnet18": BasicBlock, "resnet50": Bottleneck, "resnet18_imagenet": ResNet}.items(),
    indirect=["make"],
)
def test_a_patched_forward_of_a_block_is_used(make, kind, monkeypatch):
    model, forward = accelerate(make(), hardware()), kind.forward
    before = step(copy.deepcopy(model))
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * forward(self, x))
    assert not torch.equal(step(copy.deepcopy(model))[0], before[0])
    model.eval()
    other = copy.deepcopy(model)
    use_torch_layers(other)
    assert torch.equal(step(model, bf16=False)[0], step(other, bf16=False)[0])


def test_a_subclass_of_a_block_uses_its_own_forward():
    class Doubled(BasicBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    model = MODELS["resnet18"]()
    block = model.layer1[0]
    block.__class__ = Doubled
    use_fast_layers(model.eval())
    x = torch.randn(1, 16, 4, 4)
    assert type(block) is Doubled and torch.equal(block(x), 2 * BasicBlock.forward(block, x))


def transformed(model, transform):
    """Apply a transform of `torch.func`, or forward-mode AD, to a model whose layers could all be fast."""
    generator = torch.Generator().manual_seed(1)
    x, along = (torch.randn(2, 64, 8, 8, generator=generator).to(memory_format=torch.channels_last) for _ in range(2))
    state = dict(model.named_parameters())

    def loss(state, x=x):
        buffers = {
            name: buffer.clone() for name, buffer in model.named_buffers()
        }  # transforms forbid in-place changes of others
        with torch.autocast("cpu", torch.bfloat16):
            return torch.func.functional_call(model, state | buffers, x).float().square().sum()

    if transform == "grad":
        return torch.func.grad(loss)(state)
    if transform == "jvp":
        return torch.func.jvp(lambda x: loss(state, x), (x,), (along,))
    if transform == "forward AD":
        with torch.autograd.forward_ad.dual_level():
            y = loss(state, torch.autograd.forward_ad.make_dual(x, along))
            return torch.autograd.forward_ad.unpack_dual(y)
    return torch.func.vmap(lambda x: loss(state, x[None]), randomness="error")(x)


@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # raised by torch itself in forward-mode AD
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "forward AD"])
def test_torch_func_transforms_use_torchs_layers(transform):
    torch.manual_seed(0)
    # vmap does not support running statistics, so its norm is not one that the kernel supports.
    norm = nn.BatchNorm2d(64, track_running_stats=transform != "vmap")
    plain = nn.Sequential(nn.Conv2d(64, 64, 3, stride=2), norm, nn.ReLU(), nn.MaxPool2d(2))
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    torch.testing.assert_close(transformed(fast, transform), transformed(plain, transform), rtol=0, atol=0)


# Copies, pickles and conversions


@pytest.mark.parametrize("make", MODELS, indirect=True)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_keep_the_fast_layers_and_are_independent(make, duplicate):
    model = make()
    use_fast_layers(model)
    other = duplicate(model)
    assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    assert other.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert not torch.equal(next(other.parameters()), next(model.parameters()))
    use_torch_layers(other)
    assert kinds(other) == kinds(make())


@pytest.mark.parametrize("make", ["resnet18", "vgg_a_bn"], indirect=True)
def test_fused_batch_norms_convert_to_sync_batch_norm(make):
    model = make()
    use_fast_layers(model)
    norms = count(model, FusedBatchNorm2d)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert count(converted, nn.SyncBatchNorm) == norms and count(converted, FusedBatchNorm2d) == 0
    converted.eval()(torch.randn(2, 3, 32, 32))


def test_a_slice_of_a_fused_sequential_is_fused():
    model = MODELS["user's"]()
    use_fast_layers(model)
    assert type(model[:3]) is FusedSequential and model[:3](torch.randn(2, 3, 32, 32)).shape == (2, 16, 30, 30)


def test_a_fused_sequential_passes_tuples():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = nn.Sequential(Pair(), nn.Identity())
    use_fast_layers(model)
    assert len(model(torch.ones(1))) == 2


def test_an_empty_sequential_returns_its_input():
    model = nn.Sequential()
    use_fast_layers(model)
    x = torch.ones(1)
    assert model(x) is x


def test_normalize_and_activate_takes_any_norm_and_activation():
    x = torch.randn(2, 4, 3, 3)
    norm = nn.GroupNorm(2, 4)
    assert torch.equal(normalize_and_activate(norm, nn.Tanh(), x, x), torch.tanh(norm(x) + x))
