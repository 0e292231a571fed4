"""The data module of a config, constructed once for the number of its classes and for its run."""

import json
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.seed import isolate_rng

from cifarbn.cli.errors import instantiation_errors
from cifarbn.data.interface import check_data

# The latest data module that `construct_data` has kept, by its config and seed.
_kept: dict[str, pl.LightningDataModule] = {}


def construct_data(cfg: DictConfig) -> pl.LightningDataModule:
    """Construct the config's data module, and keep it for `take_data`; only the latest one is kept.

    Random numbers in its constructor depend on the config's seed only.

    Raises:
        UserError: if it cannot be constructed, or is no usable data module.
    """
    key = _key(cfg)
    if key not in _kept:
        _kept.clear()  # first, so that two data sets are never in memory
        with isolate_rng(), instantiation_errors("data"):
            pl.seed_everything(cfg.seed, verbose=False)
            _kept[key] = check_data(instantiate(cfg.data))
    return _kept[key]


def take_data(cfg: DictConfig) -> pl.LightningDataModule:
    """Return the data module that `construct_data` has kept for this config, else a new one; none is kept then.

    Raises:
        UserError: see `construct_data`.
    """
    data = construct_data(cfg)
    _kept.clear()
    return data


def _key(cfg: DictConfig) -> str:
    config: Any = OmegaConf.to_container(cfg.data, resolve=True)
    return json.dumps([cfg.seed, config], default=str)
