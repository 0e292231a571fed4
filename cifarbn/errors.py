"""The exceptions that entry points understand: a user's mistake, and the ways a run ends early without a fault."""


class UserError(Exception):
    """A mistake of the user or of their machine; the message says what is wrong and names the remedy.

    Entry points print the message alone, without a traceback, and exit non-zero.
    """


class Refused(UserError):
    """The run's folder holds something else; it is left as it is."""


class MadeElsewhere(Refused):
    """Another process is making this very run."""


class Diverged(Exception):
    """The loss is no longer a finite number: a result of the run, not a fault of the program.

    Attributes:
        step: the first step whose loss is not finite, from 0.
        lr: that step's learning rate.
        grad_norm: the last finite norm of the whole gradient before it; None if there was none.
    """

    def __init__(self, step: int, lr: float, grad_norm: float | None) -> None:
        self.step, self.lr, self.grad_norm = step, lr, grad_norm
        norm = "none" if grad_norm is None else f"{grad_norm:.4g}"
        super().__init__(f"the loss of step {step} is not finite (lr {lr:g}, last finite gradient norm {norm})")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the run was saved and can be continued."""
