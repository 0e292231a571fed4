"""Errors of Hydra, OmegaConf and constructors in the user's words."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException

from cifarbn.errors import UserError


@contextmanager
def instantiation_errors(what: str) -> Iterator[None]:
    """Turn a constructor's refusal of its arguments into the user's error, under the key that holds them.

    Raises:
        UserError: in place of what the constructor raised.
    """
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{what}: {_reason(cause) if cause else first_lines(error)}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The message of an exception, under its name where it would not be understood without."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, (ValueError, TypeError)) and text:
        return text
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 before the command shows where)"


def first_lines(error: BaseException) -> str:
    """An error of Hydra's or OmegaConf's on one line, without what follows for its developers."""
    lines = []
    for line in str(error).strip().split("\n"):
        if not line.strip() or line.strip().startswith(
            ("full_key:", "object_type=", "See https", "Set the environment")
        ):
            break
        lines.append(line.strip())
    return " ".join(lines) or (first_lines(error.__cause__) if error.__cause__ else type(error).__name__)
