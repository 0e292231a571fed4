"""Every experiment with every option of every group, each alone: `python tests/slow_experiments.py`.

A few minutes; test_config.py takes several options at once.
"""

from test_config import CHOICES, instantiates, options


def main() -> None:
    """Name what does not compose or instantiate."""
    pairs = [(e, g, o) for e in options("experiment") for g, found in CHOICES.items() for o in found]
    for experiment, group, option in pairs:
        try:
            instantiates(f"experiment={experiment}", f"{group}={option}")
        except Exception as error:
            print(f"experiment={experiment} {group}={option}: {error}", flush=True)
    print(f"{len(pairs)} pairs")


if __name__ == "__main__":
    main()
