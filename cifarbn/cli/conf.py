"""The location of the config files."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# Next to the package in a checkout, inside it in a wheel.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
PRIMARY = CONF / "train.yaml"
