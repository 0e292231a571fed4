"""`step`: a training step of one model in each precision and memory format, compared with peak FLOP/s."""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from cifarbn.benchmark.harness import Results, in_turn, wait_for
from cifarbn.fast.accelerate import use_fast_layers
from cifarbn.models import VGG, ResNet

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(18),
    "resnet18_narrow": lambda: ResNet(18, width=16),
    "vgg_a": lambda: VGG("A"),
    "vgg_a_bn": lambda: VGG("A", norm=nn.BatchNorm2d),
    "vgg_a_narrow": lambda: VGG("A", width=16),
    "vgg_a_bn_narrow": lambda: VGG("A", width=16, norm=nn.BatchNorm2d),
}
PEAK_SIZES = (512, 1024, 2048, 4096, 8192)  # sizes of the square matrix products that measure the device's peak


def measure_step(args: argparse.Namespace) -> Results:
    """Measure a forward pass, backward pass and SGD step on one batch in memory, in each mode."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    modes = {
        "fp32, contiguous": (torch.float32, torch.contiguous_format, False),
        "fp32, channels_last": (torch.float32, torch.channels_last, False),
        "bf16, channels_last": (torch.bfloat16, torch.channels_last, False),
    }
    if args.compile:
        modes["fp32, channels_last, compiled"] = (torch.float32, torch.channels_last, True)
        modes["bf16, channels_last, compiled"] = (torch.bfloat16, torch.channels_last, True)
    notes, sides = [], {}
    for name, (dtype, layout, compiled) in modes.items():
        model = MODELS[args.model]()
        if device.type == "cpu" and layout == torch.channels_last and not compiled:
            use_fast_layers(model)
        step = TrainingStep(model, args.batch_size, device, dtype, layout, compiled)
        if compiled:
            start = time.perf_counter()
            step()
            wait_for(device)
            notes.append(f"{name}: compiling took {time.perf_counter() - start:.1f} s")
        sides[name] = repeated(step, args.steps, device)
    seconds = in_turn(args.rounds, sides)
    flops = training_flops(MODELS[args.model](), args.batch_size)
    peaks = {dtype: peak(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    notes.append(f"{flops / args.batch_size / 1e9:.3f} GFLOP per image, forward and backward")
    for name, (dtype, _, _) in modes.items():
        rate = args.steps * flops / statistics.median(seconds[name])
        notes.append(
            f"{name}: {rate / 1e9:,.0f} GFLOP/s, {rate / peaks[dtype]:.0%} of the {peaks[dtype] / 1e9:,.0f} of the "
            f"best square matrix product in {str(dtype).removeprefix('torch.')}"
        )
    return step_results(args, seconds, notes) | {
        "flops_per_image": flops / args.batch_size,
        "peak_flops": {str(dtype).removeprefix("torch."): value for dtype, value in peaks.items()},
    }


def step_results(args: argparse.Namespace, seconds: dict[str, list[float]], notes: list[str]) -> Results:
    """Return the results of timed training steps, with the seconds of each side."""
    return {
        "title": f"training steps of {args.model}, batch {args.batch_size}, {torch.get_num_threads()} threads",
        "unit": "images/s",
        "amount": args.steps * args.batch_size,
        "seconds": seconds,
        "notes": notes,
    }


class TrainingStep:
    """One step of SGD with momentum on a fixed random batch."""

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
        compiled: bool = False,
    ) -> None:
        self.model = model.to(device).to(memory_format=layout)
        if compiled:
            self.model.compile()
        self.images = torch.randn(batch_size, 3, 32, 32, device=device).contiguous(memory_format=layout)
        self.labels = torch.randint(10, (batch_size,), device=device)
        self.autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> Tensor:
        """Take the step; returns the loss."""
        return training_step(self.model, self.optimizer, self.autocast, self.images, self.labels)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    autocast: contextlib.AbstractContextManager[object],
    images: Tensor,
    labels: Tensor,
) -> Tensor:
    """Take an ordinary training step: forward pass, backward pass and optimizer step; returns the loss."""
    with autocast:
        loss = functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def training_flops(model: nn.Module, batch_size: int) -> int:
    """Count the floating-point operations of a forward and backward pass; a multiply-add counts as two."""
    step = TrainingStep(model, batch_size, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measure the FLOP/s of the fastest square matrix product on this device.

    Sizes grow until one product takes about `seconds`, because a CPU without bf16 in hardware can take minutes for a
    product that takes another CPU a tenth of a second.
    """
    best = 0.0
    for size in PEAK_SIZES:
        flops = 2 * size**3
        if best and flops / best > seconds:
            break
        a = torch.randn(size, size, device=device).to(dtype)
        rates: list[float] = []
        end = time.perf_counter() + seconds
        while len(rates) < 3 or time.perf_counter() < end:
            wait_for(device)
            start = time.perf_counter()
            a @ a
            wait_for(device)
            rates.append(flops / (time.perf_counter() - start))
        best = max(best, *rates)
    return best


def repeated(step: TrainingStep, times: int, device: torch.device) -> Callable[[], None]:
    """Return a function that takes the step several times, and waits for the device."""

    def side() -> None:
        for _ in range(times):
            step()
        wait_for(device)

    return side
