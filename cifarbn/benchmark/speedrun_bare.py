"""The speedrun as a short loop without Lightning, with the same model, optimizer, batches and TTA."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from cifarbn.benchmark.harness import wait_for
from cifarbn.benchmark.speedrun_recipe import Outcome, Recipe
from cifarbn.data import Images
from cifarbn.data.augmentation import CropFlipParams, PaddedImages
from cifarbn.data.cifar10 import MEAN, STD
from cifarbn.data.loader import EpochSampler
from cifarbn.fast.accelerate import accelerate
from cifarbn.fast.hardware import Hardware
from cifarbn.losses import in_full_precision
from cifarbn.training.tta import tta_logits

T = TypeVar("T")


class BareSpeedrun:
    """Train and test once per call.

    All runs share one model and one optimizer, which are reset in place, so that compiled and captured code can be
    reused. The first run compiles and captures; its result is meaningless, so use it as the warm-up.

    An incomplete last batch of an epoch is dropped. Between whitening and the end, nothing waits for the device.

    Args:
        recipe: the training recipe. The learning rate decays linearly from `recipe.lr` to 0.
        train: the training images, on the device.
        test: the test images, on the device.
        hardware: defines the precision and memory format.
        compile: mode of torch.compile for the forward pass, in training including the loss; "" to not compile.
        graph: whether to replay a whole training step as one CUDA graph. If compilation or capture fails, training
            continues without it, and a message is printed.
    """

    def __init__(
        self, recipe: Recipe, train: Images, test: Images, hardware: Hardware, *, compile: str = "", graph: bool = False
    ) -> None:
        self.recipe, self.train, self.test = recipe, train, test
        self.device = device = train.pixels.device
        self.bf16 = hardware.precision == "bf16-mixed"
        self.model = recipe.make_model().to(device)
        accelerate(self.model, hardware)
        self.optimizer = recipe.make_optimizer(self.model.parameters())
        self.lr = torch.tensor(recipe.lr, device=device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
        # A step reads its batch from here, since a CUDA graph always reads from the same memory.
        self.pixels, self.labels = train.pixels[: recipe.batch_size].clone(), train.labels[: recipe.batch_size].clone()
        self.loss, self.logits = self._loss, self._logits
        if compile:
            self.loss = torch.compile(self._loss, mode=compile, dynamic=False)
            self.logits = torch.compile(self._logits, mode=compile, dynamic=False)
        self.graph = graph
        self.steps: dict[bool, Callable[[], None]] = {}  # key: whether the whitening bias is trained

    def __call__(self, seed: int) -> Outcome:
        """Return the seconds and accuracies of one run."""
        self._reset(seed)
        stop = _stopwatch(self.device)
        self.model.initialize_from(self._normalize(self.train.pixels[: self.recipe.batch_size]))
        padded = PaddedImages(self.train.pixels, self.recipe.augmentation)
        steps = self.recipe.epochs * (len(self.train) // self.recipe.batch_size)
        rates = iter(torch.linspace(self.recipe.lr, 0, steps, device=self.device))
        self.model.train()
        for epoch in range(self.recipe.epochs):
            self.model.start_epoch(epoch)
            for pixels, labels in self._batches(padded, seed, epoch):
                self.pixels.copy_(pixels)
                self.labels.copy_(labels)
                self.lr.copy_(next(rates))
                self._step()
        correct, plain_correct = self._or_uncompiled("logits", self._correct)
        seconds = stop()
        return Outcome(seconds, correct.item() / len(self.test), plain_correct.item() / len(self.test))

    def _reset(self, seed: int) -> None:
        """Reset weights and momentum in place, because a captured graph uses their memory addresses."""
        torch.manual_seed(seed)
        self.model.load_state_dict(self.recipe.make_model().state_dict())
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def _batches(self, padded: PaddedImages, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of `InMemoryLoader` before normalisation; the whole epoch is augmented at once."""
        sampler = EpochSampler(len(self.train), shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        used = len(self.train) - len(self.train) % self.recipe.batch_size
        params = self.recipe.augmentation.draw(len(self.train), seed, epoch)
        index, *drawn = (self._to_device(tensor) for tensor in (sampler.indices()[:used], *params))
        pixels, labels = padded.crop(index, CropFlipParams(*drawn)), self.train.labels[index]
        return zip(pixels.split(self.recipe.batch_size), labels.split(self.recipe.batch_size), strict=True)

    def _to_device(self, tensor: Tensor) -> Tensor:
        # A copy from pageable memory would wait until the device has finished all queued steps.
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _step(self) -> None:
        bias = self.model.whitening.bias.requires_grad
        if bias not in self.steps:
            self._or_uncompiled("loss", self._train_step)
            self.steps[bias] = self._captured() if self.graph else self._train_step
        self.steps[bias]()

    def _train_step(self) -> None:
        self.optimizer.zero_grad()
        self.loss(self.pixels, self.labels).backward()
        self.optimizer.step()

    def _captured(self) -> Callable[[], None]:
        """Return the training step as a CUDA graph, or the step itself if capturing fails."""
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # torch requires a warm-up on a side stream before a capture
                for _ in range(3):
                    self._train_step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._train_step()
        except Exception as error:
            self.graph = False
            print(f"bare loop: capturing a CUDA graph failed, running without it ({_first_line(error)})")
            return self._train_step
        return graph.replay

    def _or_uncompiled(self, name: str, run: Callable[[], T]) -> T:
        """Return `run()`, which calls the function `name`; if its compiled form fails, run again uncompiled."""
        uncompiled = getattr(self, f"_{name}")
        try:
            return run()
        except Exception as error:
            if getattr(self, name) == uncompiled:
                raise
            setattr(self, name, uncompiled)
            print(f"bare loop: torch.compile failed for the {name}, running uncompiled ({_first_line(error)})")
            return run()

    def _normalize(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self.mean) / self.std

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def _loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        with self._autocast():
            logits = self.model(self._normalize(pixels))
        return in_full_precision(self.recipe.loss, logits, labels)

    def _logits(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model(images).float()

    @torch.no_grad()
    def _correct(self) -> tuple[Tensor, Tensor]:
        """Return the numbers of correctly classified test images, with TTA and without."""
        self.model.eval()
        counts = torch.zeros(2, dtype=torch.int64, device=self.device)
        size = self.recipe.eval_batch_size
        for pixels, labels in zip(self.test.pixels.split(size), self.test.labels.split(size), strict=True):
            images = self._normalize(pixels)
            plain = logits = self.logits(images)
            if self.recipe.tta != "none":
                logits = tta_logits(self._logits_of_view, images, plain, self.recipe.tta)
            counts += torch.stack([(each.argmax(1) == labels).sum() for each in (logits, plain)])
        return counts[0], counts[1]

    def _logits_of_view(self, view: Tensor) -> Tensor:
        # The same memory format for every view, so that the model is compiled once.
        return self.logits(view.contiguous(memory_format=torch.channels_last))


def _stopwatch(device: torch.device) -> Callable[[], float]:
    """Start a stopwatch; return a function that waits for the device and returns the elapsed seconds."""
    wait_for(device)
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()

        def stop() -> float:
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000

        return stop
    began = time.perf_counter()
    return lambda: time.perf_counter() - began


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
