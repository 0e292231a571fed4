"""Combine every experiment with every single option of every group: `python tests/slow_experiments.py`.

Takes a few minutes; test_config.py combines several options at once.
"""

import os
import tempfile
from pathlib import Path

from data_files import write_folder
from test_config import CHOICES, instantiates, options


def main() -> None:
    """Print the combinations that do not compose or instantiate."""
    pairs = [(e, g, o) for e in options("experiment") for g, choices in CHOICES.items() for o in choices]
    for experiment, group, option in pairs:
        try:
            instantiates(f"experiment={experiment}", f"{group}={option}")
        except Exception as error:
            print(f"experiment={experiment} {group}={option}: {error}", flush=True)
    print(f"{len(pairs)} pairs")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TEST_IMAGES"] = str(write_folder(Path(folder) / "images"))  # for data=folder
        main()
