"""`kernels`: a training step on a CPU with this package's faster layers, and with torch's own."""

import argparse

import torch

from cifarbn.benchmark.harness import Results, in_turn, median_ratio
from cifarbn.benchmark.step import MODELS, TrainingStep, repeated, step_results
from cifarbn.errors import UserError
from cifarbn.fast.accelerate import use_fast_layers
from cifarbn.fast.hardware import Hardware, multiplies_bf16
from cifarbn.fast.kernels.library import why_unavailable

TORCH, FAST = "torch's layers", "faster layers"


def measure_kernels(args: argparse.Namespace) -> Results:
    """Measure a step on one batch in memory in fp32, and in bf16 if this CPU multiplies it natively.

    Both sides have the memory format channels_last and the memory allocation of a run.

    Raises:
        UserError: if the C kernels cannot be compiled.
    """
    dtypes = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if multiplies_bf16(cuda=False) else {})
    if reason := next(filter(None, map(why_unavailable, dtypes.values())), None):
        raise UserError(f"benchmark kernels needs the C kernels: {reason}")
    hardware, cpu = Hardware.choose(accelerator="cpu"), torch.device("cpu")
    hardware.set_up_process()
    sides = {}
    for name, dtype in dtypes.items():
        for layers in (TORCH, FAST):
            model = MODELS[args.model]()
            if layers == FAST:
                use_fast_layers(model)
            step = TrainingStep(model, args.batch_size, cpu, dtype, torch.channels_last)
            sides[f"{name}, {layers}"] = repeated(step, args.steps, cpu)
    seconds = in_turn(args.rounds, sides)
    notes = []
    for name in dtypes:
        before, after = seconds[f"{name}, {TORCH}"], seconds[f"{name}, {FAST}"]
        ratios = [a / b for a, b in zip(before, after, strict=True)]
        notes.append(
            f"{name}: {median_ratio(before, after):.2f} times as fast with the faster layers, median of the rounds' "
            f"ratios ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return step_results(args, seconds, notes)
