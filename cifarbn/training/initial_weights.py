"""Fine-tuning: a run that starts from the weights of another run, `init_from=RUN`."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cifarbn.durable import sha256
from cifarbn.errors import UserError
from cifarbn.runs.load import read_weights
from cifarbn.runs.schema import CHECKPOINT, RESULT, Status
from cifarbn.runs.untrusted import stored_result
from cifarbn.smoothness.layers import default_head


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """The weights of a finished run, to start another run from.

    Attributes:
        folder: the run folder.
        weights: the model's `state_dict`.
        label: the folder's name and the checkpoint's hash. It identifies the weights on any machine, and is stored
            in the config of a run that starts from them.
    """

    folder: Path
    weights: dict[str, Tensor]
    label: str

    @classmethod
    def read(cls, folder: Path) -> "InitialWeights":
        """Read the weights of the run in `folder`; nothing in it is executed.

        Raises:
            UserError: if there is no finished run, or its checkpoint is missing or damaged.
        """
        result = stored_result(folder)
        if result is None:
            raise UserError(f"init_from={folder} is not a run folder: it has no {RESULT}; use another folder")
        if result["status"] != Status.DONE:
            raise UserError(f"init_from={folder} is not finished ({result['status']}); finish it, or use another run")
        weights = read_weights(folder / CHECKPOINT)
        return cls(folder, weights, f"{folder.absolute().name}@{sha256(folder / CHECKPOINT)[:12]}")

    def load_into(self, model: nn.Module, model_head: str | None = None) -> str:
        """Load the weights into a model; a last linear layer of another shape keeps its initial weights.

        Args:
            model: the model of the new run.
            model_head: name of its last linear layer; None: `head`, or else the last `nn.Linear`.

        Returns:
            A line that says what was loaded and what was not.

        Raises:
            UserError: if the models differ in any other layer.
        """
        own = model.state_dict()
        differing = [
            name
            for name in dict.fromkeys([*own, *self.weights])
            if name not in own or name not in self.weights or own[name].shape != self.weights[name].shape
        ]
        head = model_head or default_head(model)
        if others := [name for name in differing if name not in (f"{head}.weight", f"{head}.bias")]:
            shapes = self._shapes(own, others[:3])
            more = f"; {len(others) - 3} more" if len(others) > 3 else ""
            raise UserError(
                f"init_from={self.folder}: the run's model differs from this one ({shapes}{more}); only the last "
                "linear layer may differ. Use the model options of that run"
            )
        model.load_state_dict(own | {name: value for name, value in self.weights.items() if name not in differing})
        if not differing:
            return f"weights of {self.folder} loaded, all {len(own)} tensors"
        loaded, shapes = len(own) - len(differing), self._shapes(own, differing)
        return f"weights of {self.folder} loaded, {loaded} of {len(own)} tensors; not loaded: {shapes}"

    def _shapes(self, own: dict[str, Tensor], names: list[str]) -> str:
        return "; ".join(f"{name}: {_shape(self.weights, name)} -> {_shape(own, name)}" for name in names)


def _shape(weights: dict[str, Tensor], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "missing"
