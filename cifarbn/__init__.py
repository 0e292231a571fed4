"""cifarbn: how the parts of a training run affect accuracy, speed and the smoothness of the loss."""

import gc
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifarbn.runs.load import load as load

__version__ = "0.1.0"

# While `python -m cifarbn.train` imports this package, the program is called `-m`.
_MODULE = sys.argv[:1] == ["-m"] and any(argument.startswith(f"{__name__}.") for argument in sys.orig_argv)
_CHILD = multiprocessing.parent_process() is not None  # for example a data loader's worker, which has the same name
if not _CHILD and (_MODULE or Path(sys.argv[0] if sys.argv else "").name.startswith(f"{__name__}-")):
    # Commands draw into files only. An inherited MPLBACKEND, for example from a notebook's `!python`, may name a module
    # that does not exist here, and importing matplotlib would then fail.
    os.environ["MPLBACKEND"] = "agg"
    # Importing torch and Lightning creates 430,000 permanent objects. Scanning them repeatedly would take the garbage
    # collector 1.6 s of a command's 4.5 s; `command_line.finish_imports` turns it on again.
    gc.disable()


def __getattr__(name: str) -> Any:
    """Import `load` on first use, so that importing the package stays cheap."""
    if name == "load":
        from cifarbn.runs.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
