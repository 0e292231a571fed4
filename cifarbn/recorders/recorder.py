"""What all recorders share: arrays that grow on the device, and the one file that holds them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifarbn.data.interface import Batch
from cifarbn.losses import HALF, Loss, at_least_float32
from cifarbn.runs.durable import replace_file
from cifarbn.runs.measures import Key, Table
from cifarbn.runs.schema import RECORDINGS
from cifarbn.smoothness.evaluation import LossFunction
from cifarbn.smoothness.preserve_state import preserve_state
from cifarbn.smoothness.randomness import with_fixed_rng


class Recorder(pl.Callback):
    """A callback that watches and never touches, and keeps named arrays.

    Trap: on a GPU the next step overwrites `.grad` in place, so clone a gradient that you keep.

    `note` appends one entry to each array and leaves it on its device: reading it would make the host wait. `arrays`
    brings them over. The keys are those of the recorder's `table`, and every recorder notes `table.step`, counted from
    0 as in metrics.csv: entry t belongs to theta_t, the parameters before step t.
    """

    table: type[Table]

    def __init__(self) -> None:
        self._pending: dict[Key, list[Tensor]] = defaultdict(list)
        self._kept: dict[Key, NDArray] = {}

    def note(self, entries: Mapping[Key, Tensor | float | Sequence[float] | NDArray]) -> None:
        """Append an entry, of the same shape every time, to each array; half precision as float32."""
        for key, entry in entries.items():
            self._pending[key].append(at_least_float32(torch.as_tensor(entry).detach()))

    def arrays(self) -> dict[Key, NDArray]:
        """Return everything noted so far; first axis = entries. Waits for the device."""
        for key, entries in self._pending.items():
            new = torch.stack([e.to(entries[-1].device) for e in entries]).cpu().numpy()
            self._kept[key] = np.concatenate([self._kept[key], new]) if key in self._kept else new
        self._pending.clear()
        return self._kept

    def constants(self) -> dict[Key, NDArray]:
        """Return what a reader needs to know beside the arrays: settings and names."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays as tensors, so that a checkpoint can be loaded with `weights_only`."""
        return {"arrays": by_name({key: torch.from_numpy(array) for key, array in self.arrays().items()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the checkpoint."""
        self._pending.clear()
        self._kept = {key: tensor.numpy() for key, tensor in self.by_key(state_dict["arrays"]).items()}

    def by_key(self, entries: Mapping[str, Any]) -> dict[Key, Any]:
        """Return what `by_name` was given."""
        return {Key(f"{self.table.step.prefix}.{name}"): entry for name, entry in entries.items()}


def by_name(entries: Mapping[Key, Any]) -> dict[str, Any]:
    """Return the same under plain names, for a checkpoint: "norm" for the key "last_layer.norm"."""
    return {key.short: entry for key, entry in entries.items()}


class RecordingsFile(pl.Callback):
    """Writes every recorder's arrays into `recordings.npz` at the end of each epoch and of the run.

    Its keys are in `cifarbn.runs.measures`. The file is replaced whole and forced to the disk, so that no
    reader meets half of one, and a power cut after the run's last checkpoint loses none of it.
    """

    def __init__(self, folder: Path, recorders: Sequence[Recorder]) -> None:
        self.file = Path(folder) / RECORDINGS
        self.recorders = recorders
        self._training = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on the recorders know what they need to write."""
        self._training = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what there is."""
        self.write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A diverged or interrupted run's recordings are wanted too."""
        # A run that was cut off in its test twice has no training in between. A full disk has no room.
        if self._training and not isinstance(exception, OSError):
            self.write(trainer)

    def write(self, trainer: pl.Trainer) -> None:
        """Write what there is, from the first process."""
        found = {
            str(key): array
            for recorder in self.recorders
            for key, array in {**recorder.constants(), **recorder.arrays()}.items()
        }
        if not found or not trainer.is_global_zero:
            return
        replace_file(self.file, lambda file: np.savez(file, **found))  # type: ignore[arg-type]


@contextmanager
def measuring(pl_module: pl.LightningModule, batch: Batch) -> Iterator[LossFunction]:
    """The train-mode loss L_t on one minibatch, for any number of passes that leave no trace on the run.

    In fp32 at least whatever the run's precision, without TF32, since differences of gradients drown in their rounding,
    and with the same convolution algorithm at every pass; uncompiled, since a probe is no reason to compile the net
    again; with the random numbers that the coming training step will draw, the same at every pass. Batch normalisation
    uses the batch. Under DDP it is the rank's own slice of the batch.
    """
    net, loss, (pictures, labels) = net_of(pl_module), loss_of(pl_module), batch
    pictures = at_least_float32(pictures)
    autocast_off = torch.autocast(pictures.device.type, enabled=False)
    one_algorithm = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with preserve_state(net, train=True), _in_full_precision(net), autocast_off, one_algorithm, torch.enable_grad():
            with torch.compiler.set_stance("force_eager"):
                yield with_fixed_rng(lambda: loss(net(pictures), labels), net)
    finally:
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def _in_full_precision(net: nn.Module) -> Iterator[None]:
    """Let a net of half-precision weights (trainer.precision=bf16-true) compute in float32, and put the weights back.

    Only the weights: `preserve_state`, around it, puts back the buffers.
    """
    halves = [(p, p.data) for p in net.parameters() if p.dtype in HALF]
    if halves:
        net.float()
    try:
        yield
    finally:
        for parameter, data in halves:
            parameter.data = data


class Watched(Protocol):
    """What recorders read from the LightningModule of a run, which is a `cifarbn.training.classifier.Classifier`.

    Attributes:
        net: the model that is trained.
    """

    net: nn.Module

    @property
    def last_layer(self) -> str:
        """The name of the model's last linear layer."""
        ...

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss that the model is trained with, computed in full precision."""
        ...


def net_of(pl_module: pl.LightningModule) -> nn.Module:
    """Return the model that is trained."""
    return cast(Watched, pl_module).net


def loss_of(pl_module: pl.LightningModule) -> Loss:
    """Return the loss that the model is trained with, computed in full precision."""
    return cast(Watched, pl_module).loss_of


def last_layer_of(pl_module: pl.LightningModule) -> str:
    """Return the name of the model's last linear layer; see `Classifier.last_layer`."""
    return cast(Watched, pl_module).last_layer


def trained(pl_module: pl.LightningModule) -> dict[str, nn.Parameter]:
    """The net's parameters that are trained, by name."""
    return {name: p for name, p in net_of(pl_module).named_parameters() if p.requires_grad}


def due(trainer: pl.Trainer, every: int) -> bool:
    """Whether the step that starts is one of every `every` steps, the first included."""
    return trainer.global_step % every == 0
