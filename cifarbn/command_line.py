"""What stands between a user's command and a run: where the configs are, and errors that name their remedy."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifarbn.errors import Interrupted, UserError, machine_fault
from cifarbn.runs import folder_name

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in a checkout, inside it in a wheel.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

OmegaConf.register_new_resolver("run_folder", lambda overrides: folder_name(list(overrides)), replace=True)


def run_plainly(hydra_main: Callable[[], Any]) -> None:
    """Run a Hydra main with Hydra's own error handler off, since it prints a traceback for whatever it does not know.

    Whoever sets HYDRA_FULL_ERROR=1 sees every traceback.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        hydra_main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with plain_errors():
            hydra_main()
    finally:
        os.environ["HYDRA_FULL_ERROR"] = "0"


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one message and no traceback where the mistake is the user's or their machine's.

    Raises:
        SystemExit: with exit code 1 after such a mistake, 130 after Ctrl-C.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_explain(error)}")
    except Exception as error:
        if said := machine_fault(error):
            sys.exit(f"error: {said}")
        raise


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turn a constructor's refusal of its arguments into the user's error, under the key that holds them.

    Raises:
        UserError: in place of a ValueError or TypeError that the constructor raised.
    """
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, (ValueError, TypeError)):
            raise UserError(f"{what}: {cause}") from error
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {error}") from error


def check_types(cfg: DictConfig) -> None:
    """Refuse an override whose type differs from its default's; a default of null takes anything.

    YAML has no schema, so `epochs=abc` would otherwise fail deep inside some library, hours later.

    Raises:
        UserError: naming the key, the value and the default.
    """
    hydra = HydraConfig.get()
    overrides = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    # A group that takes a list of choices, such as record, is not among the choices that Hydra names.
    groups = {*hydra.runtime.choices, *(folder.name for folder in CONF.iterdir() if folder.is_dir())}
    chosen = [str(o.input_line) for o in overrides if o.key_or_group in groups]
    defaults = compose("train", overrides=chosen)
    for override in overrides:
        key = override.key_or_group
        if key in groups or override.is_add() or override.is_delete():
            continue
        default, value = OmegaConf.select(defaults, key), OmegaConf.select(cfg, key)
        if not _same_kind(default, value):
            raise UserError(f"{key}={value!r}: {key} takes {_kind(default)} (default {default!r})")


def _same_kind(default: Any, value: Any) -> bool:
    return default is None or _kind(value) == _kind(default) or (_kind(default), _kind(value)) in _ALSO_FINE


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    containers = {ListConfig: "a list", DictConfig: "a group of keys", type(None): "null"}
    return (kinds | containers).get(type(value), type(value).__name__)


# (default, value). A word such as `auto` may stand for a number or a switch.
_ALSO_FINE = {
    ("a number", "a whole number"),
    ("a word", "a whole number"),
    ("a word", "a number"),
    ("a word", "true or false"),
    ("a word", "null"),
    ("a word", "a list"),
    ("a number", "null"),
    ("a whole number", "null"),
}


def _explain(error: Exception) -> str:
    """Hydra's message; for a key that does not exist, the nearest one that does."""
    text = str(error).strip()
    unknown = re.match(r"Could not override '([^']+)'\.\s+To append", text)
    if not unknown:
        return text
    key = unknown[1]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train"))
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    nearest = difflib.get_close_matches(key, [*_keys(config), *groups], n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"there is no key {key!r}; {hint}`--cfg job` after the command shows every key"


def _keys(node: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, child in node.items():
        yield f"{prefix}{key}"
        if isinstance(child, dict):
            yield from _keys(child, f"{prefix}{key}.")
