"""Turn errors of Hydra, OmegaConf and constructors into short messages."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException

from cifarbn.errors import UserError, out_of_memory


@contextmanager
def instantiation_errors(key: str) -> Iterator[None]:
    """Convert a constructor's exception into a UserError that names the config key of its arguments.

    Args:
        key: the key, such as "optim".

    Raises:
        UserError: if the constructor raised an exception.
    """
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if shortage := out_of_memory(cause):
            raise UserError(shortage) from error
        raise UserError(f"{key}: {_reason(cause) if cause else first_lines(error)}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the first line of an exception's message, with the exception's name if the message needs it."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, (ValueError, TypeError)) and text:
        if "string formatting" in text:  # Hydra's own failure to format an error of the constructor
            return "its arguments do not fit the constructor, or the constructor raised an exception with them"
        return text
    if isinstance(error, ImportError):  # Hydra's has the reason on its next lines
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {text} (set HYDRA_FULL_ERROR=1 to see the traceback)"


def first_lines(error: BaseException) -> str:
    """Return the message of a Hydra or OmegaConf error on one line, without its debugging details."""
    lines = []
    for line in str(error).strip().split("\n"):
        if not line.strip() or line.strip().startswith(
            ("full_key:", "object_type=", "See https", "Set the environment")
        ):
            break
        lines.append(line.strip())
    return " ".join(lines) or (first_lines(error.__cause__) if error.__cause__ else type(error).__name__)
