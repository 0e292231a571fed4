"""The resolvers of conf/: functions that are called as `${name:arguments}`."""

import os
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cifarbn.cli import help
from cifarbn.cli.conf import PRIMARY
from cifarbn.data import interface
from cifarbn.data.class_folders import content_key
from cifarbn.runs.identity import folder_name


def register() -> None:
    """Register the resolvers with OmegaConf."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("data_root", data_root, replace=True)
    OmegaConf.register_new_resolver("folder_content", content_key, replace=True)
    OmegaConf.register_new_resolver("num_classes", num_classes, replace=True)
    OmegaConf.register_new_resolver("help", help_template, replace=True)
    OmegaConf.register_new_resolver("info", info_template, replace=True)


def run_folder(overrides: Sequence[str]) -> str:
    """Return the name of the run folder for these overrides.

    Values are written as in the runs of a sweep, so a run has the same folder with and without `-m`, and 1e-3 is 0.001.
    For a key that is given twice, the last value counts, as in the config; `+` and `++` make no difference.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    last = {each.get_key_element().lstrip("+"): spelled(each).lstrip("+") for each in parsed}
    return folder_name(list(last.values()))


def spelled(override: Override) -> str:
    """Return an override as the runs of a sweep have it: Hydra writes 1e-3 as 0.001."""
    if override.is_delete():
        return str(override.input_line)
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def data_root() -> str:
    """Return the folder with the data sets: the value of CIFARBN_DATA if it is set, else ./data."""
    return os.environ.get("CIFARBN_DATA") or "./data"


def num_classes(otherwise: int, _root_: DictConfig) -> int:
    """Return the number of classes of the config's data module.

    The data module is constructed for this. `FromDataset` then reads a dataset that has no `classes`; others read no
    data yet.

    Args:
        otherwise: returned if the data module has no number of classes (a regression), or cannot be constructed. In
            the latter case, the run constructs it again and records the error in its folder.
    """
    try:
        data = interface.check_data(instantiate(_root_.data))
    except Exception:
        return otherwise
    return interface.num_classes(data) or otherwise


def help_template(_root_: DictConfig) -> str:
    """Return the text of `--help`."""
    return help.help_text(_root_, PRIMARY)


def info_template(_root_: DictConfig) -> str:
    """Return the text of `--info`."""
    return help.info_text(_root_, PRIMARY)
