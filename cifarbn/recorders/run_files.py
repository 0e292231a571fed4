"""The run folder of a training loop outside `cifarbn.train`: metrics.csv, recordings.npz and result.json."""

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarbn.errors import UserError, without_folders
from cifarbn.recorders.recorder import Recorder
from cifarbn.recorders.recordings_file import write_recordings
from cifarbn.recorders.training import Training
from cifarbn.runs.provenance import environment
from cifarbn.runs.result_file import digests, write_result
from cifarbn.runs.schema import COLUMNS, EPOCH_COLUMNS, METRICS, RESULT, Result, Status, check_result
from cifarbn.smoothness.dead_runs import constant_prediction_loss
from cifarbn.smoothness.minibatch_loss import Batch

TRANSFER_EVERY = 1000  # steps; between transfers, rows stay on the device
ORDER = ("before_step", "after_backward", "after_step")


class RunFiles:
    """Drives the recorders of one run and writes its folder, so that `python -m cifarbn.report` can read it.

    Args:
        folder: the run folder; it must not contain a run.
        recorders: what to record.
        config: what identifies the run: `{"model": {...}, "optim": {"lr": ...}, "seed": ...}`, with any further keys.

    Raises:
        UserError: if the folder contains a run, or the config is not plain data.
    """

    def __init__(self, folder: str | Path, recorders: Sequence[Recorder], config: Mapping[str, Any]) -> None:
        self.folder, self.recorders = Path(folder), list(recorders)
        for recorder in self.recorders:
            if not isinstance(recorder, Recorder):
                raise UserError(f"recorders must be objects such as LastLayerGradients(), not {recorder!r}")
        kinds = [type(recorder).__name__ for recorder in self.recorders]
        if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
            raise UserError(f"{twice[0]} is given twice, and both would write the same arrays; give it once")
        for key, value in _leaves(config):
            if not isinstance(value, (str, int, float, bool, list, tuple, type(None))):
                raise UserError(f"config: {key} must be a number, a string or a list, not {type(value).__name__}")
        if (self.folder / RESULT).exists():
            raise UserError(f"{self.folder} already contains a run; choose another folder, or delete it")
        for recorder in self.recorders:
            recorder.folder = self.folder if recorder.folder is None else recorder.folder
        named = {"name": "own data"} | dict(config.get("data") or {})
        self.result: Result = {
            "status": Status.RUNNING,
            "overrides": [f"{key}={value}" for key, value in _leaves(config)],
            "config": dict(config),
            "metrics": {},
            "data": {"name": str(named["name"])},
            **environment(),
        }
        try:
            check_result(dict(self.result))
        except ValueError as error:
            raise UserError(f"config: {error}") from error
        self.step, self.epoch = 0, 0
        self._next = ORDER[0]
        self._norm = torch.tensor(torch.nan)  # of this step's gradient, on its device
        self._rows: list[Tensor] = []  # (loss, accuracy, gradient norm) of steps on the device
        self._values = np.empty((0, 3), np.float32)  # the same of earlier steps of this epoch
        self._lrs: list[float] = []
        self._sizes: list[int] = []
        self._seconds = time.monotonic()

    def before_step(self, training: Training, batch: Batch, lr: float) -> None:
        """Call the recorders before a step, and start them before the first one."""
        self._expect("before_step")
        if self.step == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for recorder in self.recorders:
                recorder.start(training)
            parameters = sum(p.numel() for p in training.model.parameters())
            config = self.result["config"]
            config["data"] = {"batch_size": _size(batch)} | dict(config.get("data") or {})
            classes = config.get("model", {}).get("num_classes", 0)
            level = constant_prediction_loss(training.loss, classes)
            self.result |= {"parameters": parameters, "constant_prediction_loss": level}
            self._write_result()
        training.step = self.step
        self._lrs.append(lr)
        for recorder in self.recorders:
            recorder.before_step(training, batch)

    def after_backward(self, training: Training) -> None:
        """Keep the norm of the gradient, and call the recorders."""
        self._expect("after_backward")
        gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
        if not gradients:
            raise UserError(
                "after_backward() found no gradient in the model; call it between backward() and zero_grad()"
            )
        norms = torch._foreach_norm(gradients)
        self._norm = torch.linalg.vector_norm(torch.stack(norms)).float()
        training.step = self.step
        for recorder in self.recorders:
            recorder.after_backward(training)

    def after_step(self, training: Training, batch: Batch, loss: Tensor | float, acc: Tensor | float | None) -> None:
        """Keep the step's loss and accuracy, and call the recorders."""
        self._expect("after_step")
        norm = self._norm
        values = [torch.as_tensor(loss).detach(), torch.as_tensor(torch.nan if acc is None else acc), norm]
        self._rows.append(torch.stack([value.to(norm.device, torch.float32).reshape(()) for value in values]))
        self._sizes.append(_size(batch))
        training.step = self.step
        for recorder in self.recorders:
            recorder.after_step(training, batch)
        self.step += 1
        if len(self._rows) >= TRANSFER_EVERY:
            self._transfer()

    def after_epoch(self, training: Training, metrics: Mapping[str, float]) -> None:
        """Write the epoch's rows, with the epoch's columns in its last row, the recordings and the result.

        Raises:
            UserError: if a metric is not a column of metrics.csv, or the epoch has no step to which it belongs.
        """
        if unknown := [name for name in metrics if name not in EPOCH_COLUMNS]:
            raise UserError(f"metrics.csv has no column {unknown[0]}; there are {', '.join(EPOCH_COLUMNS)}")
        values = self._transfer()
        if not len(values):
            if metrics:
                raise UserError(
                    f"after_epoch({dict(metrics)}) was called without a step since its last call; call it once for "
                    "each epoch, after the epoch's steps and validation"
                )
            return
        loss, acc, _ = np.average(values, axis=0, weights=self._sizes)
        means = {"train/loss": float(loss)} | ({"train/acc": float(acc)} if np.isfinite(acc) else {})
        of_epoch = {name: float(value) for name, value in metrics.items()} | means
        logged = {name: value for name, value in self.result["metrics"].items() if name not in EPOCH_COLUMNS}
        self.result["metrics"] = logged | of_epoch
        self._append(values, of_epoch)
        for recorder in self.recorders:
            recorder.after_epoch(training)
        self._save_recordings()
        self._write_result()
        self.epoch += 1

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add final metrics such as "test/acc" to the result."""
        self.result["metrics"] |= {name: float(value) for name, value in metrics.items()}
        self._write_result()

    def close(self, training: Training, status: Status, error: BaseException | None = None) -> None:
        """Write what is left and the final status; a run that ends well with a non-finite loss has diverged."""
        if error is None:
            self.after_epoch(training, {})
        elif len(values := self._transfer()):
            self._append(values, {})
        if error is not None:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            self.result["error"] = without_folders(reason, self.folder)
        self.result["status"] = Status.DIVERGED if status is Status.DONE and "divergence" in self.result else status
        self._save_recordings()
        self.result["files"] = digests(self.folder)
        self._write_result()

    def _expect(self, call: str) -> None:
        if call != self._next:
            raise UserError(
                f"{call} was called instead of {self._next}; every step calls before_step(batch) before the forward "
                "pass, after_backward() after the backward pass, and after_step(loss) after the optimizer's step"
            )
        self._next = ORDER[(ORDER.index(call) + 1) % len(ORDER)]

    def _transfer(self) -> NDArray[np.float32]:
        """Return this epoch's rows so far, (T, 3), on the CPU."""
        if self._rows:
            new = torch.stack(self._rows).cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(new[:, 0]))
            if len(bad) and "divergence" not in self.result:
                row = len(self._values) + int(bad[0])
                first = self.step - len(self._values) - len(new)
                self.result["divergence"] = {"step": first + row, "lr": self._lrs[row], "grad_norm": None}
            self._values = np.concatenate([self._values, new])
            self._rows.clear()
        return self._values

    def _append(self, values: NDArray[np.float32], epoch_metrics: Mapping[str, float]) -> None:
        first = self.step - len(values)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        if first == 0:
            writer.writeheader()
        for i, (loss, acc, norm) in enumerate(values.tolist()):
            row = {"step": first + i, "epoch": self.epoch, "lr": self._lrs[i]}
            row |= {"step/loss": loss, "step/acc": acc, "step/grad_norm": norm}
            writer.writerow({**row, **epoch_metrics} if i == len(values) - 1 else row)
        with (self.folder / METRICS).open("ab" if first else "wb") as file:
            file.write(text.getvalue().encode())
        self._values, self._lrs, self._sizes = np.empty((0, 3), np.float32), [], []

    def _save_recordings(self) -> None:
        if self.step:
            write_recordings(self.folder, self.recorders)

    def _write_result(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds = {"train": time.monotonic() - self._seconds}
        write_result(self.folder / RESULT, self.result | {"steps": self.step, "seconds": seconds})


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a nested config with its value: `model` for `model._target_`, by its last part."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield prefix.rstrip("."), str(value).rpartition(".")[2]
        else:
            yield f"{prefix}{key}", value


def _size(batch: Batch) -> int:
    return len(batch[1]) if hasattr(batch[1], "__len__") else 1
