"""What the first run of a process does once; the server of tests/processes.py imports this before it forks."""

import gc

from hydra import compose, initialize_config_dir

from cifarbn.cli.command_line import CONF
from cifarbn.fast.kernels import library
from cifarbn.runs.code_hash import read_imported

with initialize_config_dir(str(CONF), version_base="1.3"):
    compose("train", return_hydra_config=True)
for dtype in library.TYPES:
    library.why_unavailable(dtype)
read_imported()
gc.collect()
gc.freeze()
