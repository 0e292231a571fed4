"""cifarbn: what the parts of a CIFAR-10 training run do to accuracy, speed and the smoothness of the loss."""

import os
import sys
from pathlib import Path

__version__ = "0.1.0"

# A command draws into files. The MPLBACKEND that it inherits, for example from a notebook's `!python`, may name a
# module that it cannot import, and matplotlib would then refuse to be imported at all. While `python -m cifarbn.train`
# imports this package it is called `-m`; whatever else imports this package keeps its own backend.
if sys.argv[:1] == ["-m"] or Path(sys.argv[0] if sys.argv else "").name.startswith("cifarbn-"):
    os.environ["MPLBACKEND"] = "agg"
