"""cifarbn: what the parts of a CIFAR-10 training run do to accuracy, speed and the smoothness of the loss."""

import gc
import multiprocessing
import os
import sys
from pathlib import Path

__version__ = "0.1.0"

# While `python -m cifarbn.train` imports this package, the program is called `-m`.
_MODULE = sys.argv[:1] == ["-m"] and any(argument.startswith(f"{__name__}.") for argument in sys.orig_argv)
_CHILD = multiprocessing.parent_process() is not None  # such as a data loader's worker, which has the same name
if not _CHILD and (_MODULE or Path(sys.argv[0] if sys.argv else "").name.startswith(f"{__name__}-")):
    # A command draws into files. The MPLBACKEND that it inherits, for example from a notebook's `!python`, may name a
    # module that it cannot import, and matplotlib would then refuse to be imported at all.
    os.environ["MPLBACKEND"] = "agg"
    # Importing torch and Lightning makes 430,000 objects that all stay. The garbage collector would scan them again and
    # again, 1.6 s of a command's 4.5; `command_line.finish_imports` turns it on.
    gc.disable()
