"""Which recorders a command line asks for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cifarbn.errors import UserError

_NOTHING = ("record=[]", "record=null", "record=", "~record")


def spell_out(arguments: Iterable[str]) -> list[str]:
    """Return command-line arguments with each way of saying that nothing is recorded written as `record=none`.

    Hydra takes neither null nor a deletion where the default is a list, and all ways should name one run folder.
    """
    return ["record=none" if argument in _NOTHING else argument for argument in arguments]


def chosen_recorders(record: Mapping[str, Any] | None, overrides: Sequence[str]) -> list[Any]:
    """Return the configs of the recorders to make.

    An experiment may set an option of a recorder that the command line has left out; that one is passed over.

    Args:
        record: the config group `record`; None where it is empty.
        overrides: of the command line.

    Raises:
        UserError: if the command line itself sets an option of a recorder that is not chosen.
    """
    record = record or {}
    left_out = [name for name, recorder in record.items() if "_target_" not in recorder]
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if ignored := [name for name in left_out if key.startswith(f"record.{name}.")]:
            raise UserError(f"{key} does nothing, for {ignored[0]} is not recorded; add it to record=[...]")
    return [recorder for name, recorder in record.items() if name not in left_out]
