"""Compose a run's config from the command line with Hydra, and check what Hydra does not."""

import copy
import difflib
import functools
import os
import pickle
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from yaml import YAMLError

from cifarbn.cli import resolvers
from cifarbn.cli.conf import CONF as CONF
from cifarbn.cli.conf import PRIMARY
from cifarbn.cli.custom import with_custom_options
from cifarbn.cli.errors import first_lines
from cifarbn.errors import UserError
from cifarbn.runs.old_names import modern_override

EXPERIMENT = "experiment"
NO_RECORDERS = dict.fromkeys(("record=null", "record=[]", "~record"), "record=none")
LARGEST_SEED = 2**32 - 1

resolvers.register()


# Start of the name of a config that a Hydra plugin provides -> the extra of this package that installs the plugin.
EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit": "slurm",
}


class Repository(ConfigRepository):
    """Reads each config file once per process, because every run of a sweep composes the same files."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return the content of a file, read again if the file has changed."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() not in ("file", "pkg"):
            return super().load_config(config_path)
        key: tuple[Any, ...] = (source.path, source.provider, config_path)
        if source.scheme() == "file":
            state = os.stat(Path(source.path, f"{config_path.removesuffix('.yaml')}.yaml"))
            key += (state.st_mtime_ns, state.st_size)
        if key not in _FILES:
            _FILES[key] = pickle.dumps(super().load_config(config_path))
        return pickle.loads(_FILES[key])


# As pickles, because a composition changes what it has read, and copying takes six times as long.
_FILES: dict[tuple[Any, ...], bytes] = {}


class Loader(ConfigLoaderImpl):
    """Hydra's config loader with two additions for this project's configs.

    First, every group can be overridden on top of an experiment: if the command line chooses another option of a
    group, the experiment's keys that this option does not have are dropped, with a message. Second, nothing on the
    command line is ignored: unknown options, unknown keys, values of another type than the default, and keys that
    nothing reads raise an error.
    """

    _overrides: list[Override]
    _overridden_groups: set[str]  # groups whose option is chosen on the command line
    _defaults: DictConfig  # the config before the values of the command line

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = Repository(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose the config and check it.

        Raises:
            UserError: if an override is wrong; the message names it and the correct form.
        """
        options = (run_mode, from_shell, validate_sweep_overrides)
        if not self._is_ours():
            return super().load_configuration(config_name, overrides, *options)
        overrides = [_modern(override) for override in overrides]
        # Hydra accepts null in a defaults list, but not on the command line.
        overrides = [NO_RECORDERS.get(override, override) for override in overrides if override != f"{EXPERIMENT}=null"]
        typed = overrides
        overrides = with_custom_options(_parsed(overrides))
        self._overrides, self._defaults = _parsed(overrides), OmegaConf.create()
        groups = self._groups(overrides)
        self._overridden_groups = {o.key_or_group for o in self._overrides} & groups - {EXPERIMENT}
        for override in self._overrides:
            if override.key_or_group in groups and not override.is_sweep_override() and not override.is_delete():
                self._check_choice(override)
            if override.key_or_group == "hydra.sweeper.params":
                raise UserError(
                    "hydra.sweeper.params is a key of config files; on the command line, sweep over KEY=VALUE,VALUE "
                    "with -m, such as -m seed=0,1"
                )
        try:
            cfg = super().load_configuration(config_name, overrides, *options)
        except MissingConfigException as error:
            self._explain_missing(error, overrides)
        except ConfigCompositionException as error:
            self._explain(error, groups)
        except (YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read a config file: {' '.join(str(error).split())}") from error
        check_values(self._overrides, self._defaults, cfg, groups)
        check_whole(cfg, {each.key_or_group for each in self._overrides if each.is_sweep_override()})
        note_unused_layers(self._overrides, cfg)
        if typed != overrides:  # the run folder is named after what the user has typed
            cfg.hydra.overrides.task = [line for line in typed if line not in cfg.hydra.overrides.hydra]
        return cfg

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        cfg = super()._compose_config_from_defaults_list(defaults, repo)
        if not self._is_ours():
            return cfg
        primary = next(default for default in defaults if default.primary)
        experiments = [d for d in defaults if _is_experiment(d)]
        paths = [d.config_path for d in experiments if not str(d.parent).startswith(f"{EXPERIMENT}/")]
        if paths and self._overridden_groups:
            others = [d for d in defaults if not _is_experiment(d)]
            overrides = [str(override.input_line) for override in self._overrides]
            # A new repository, because a composition changes the cached files of the one it reads.
            _, fresh = self._parse_overrides_and_create_caching_repo(primary.config_path, overrides)
            without_experiment = super()._compose_config_from_defaults_list(others, fresh)
            names = [str(path).removeprefix(f"{EXPERIMENT}/") for path in paths]
            name = names[0] if len(names) == 1 else f"[{','.join(names)}]"
            alone = create_defaults_list(
                repo, primary.config_path, _parsed([f"{EXPERIMENT}={name}"]), prepend_hydra=True, skip_missing=True
            )
            for group in _different_packages(others, alone.defaults):
                self._drop_extra_keys(cfg, without_experiment, group, name)
        self._defaults = copy.deepcopy(cfg)
        return cfg

    def _drop_extra_keys(self, cfg: DictConfig, without_experiment: DictConfig, group: str, experiment: str) -> None:
        """Remove the keys of a group that only the experiment has added, and print them."""
        extra = list(_extra(OmegaConf.select(cfg, group), OmegaConf.select(without_experiment, group), group))
        for key in extra:
            parent, _, last = key.rpartition(".")
            del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
        if extra:
            choices = [str(o.input_line) for o in self._overrides if o.key_or_group == group]
            _print_once(
                f"dropped {', '.join(extra)} of {EXPERIMENT}={experiment}: "
                f"{' '.join(choices) or 'the chosen ' + group} has no such key"
            )

    def _is_ours(self) -> bool:
        return any(source.provider == "main" and Path(source.path) == CONF for source in self.get_sources())

    def _groups(self, overrides: list[str]) -> set[str]:
        if any("hydra.searchpath" in override for override in overrides):
            names = self.get_group_options("", ObjectType.GROUP, "train", overrides)
        else:  # the same, without parsing the overrides and reading the primary config
            names = self.repository.get_group_options("", ObjectType.GROUP)
        return {*names} - {"hydra"}

    def _options(self, group: str, overrides: list[str]) -> list[str]:
        """Return the options of a group, including those in subfolders."""
        names = self.get_group_options(group, ObjectType.CONFIG, "train", overrides)
        for folder in self.get_group_options(group, ObjectType.GROUP, "train", overrides):
            names += [f"{folder}/{option}" for option in self._options(f"{group}/{folder}", overrides)]
        return names

    def _check_choice(self, override: Override) -> None:
        group, value = override.key_or_group, override.value()
        several = isinstance(value, list) and all(isinstance(choice, str) for choice in value)
        if not (isinstance(value, str) or several) or value == "":
            options = ", ".join(self._options(group, []))
            raise UserError(f"{override.input_line}: {group} takes the name of an option: {options}")

    def _explain_missing(self, error: MissingConfigException, overrides: list[str]) -> NoReturn:
        missing = error.missing_cfg_file or ""
        for start, extra in EXTRAS.items():
            if missing.startswith(start):
                raise UserError(f"{missing} needs a plugin: pip install 'cifarbn[{extra}]'") from error
        group = next((o.key_or_group for o in self._overrides if missing.startswith(f"{o.key_or_group}/")), "")
        group = group or missing.partition("/")[0]
        name = missing.removeprefix(f"{group}/")
        options = self._options(group, overrides) if name != missing else []
        if not options:
            raise UserError(first_lines(error)) from error
        # Ignore case, and let the name of an option in a subfolder match without the folder.
        names = {option.lower(): option for option in options}
        names |= {option.lower().rpartition("/")[2]: option for option in reversed(options)}
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {group}={names[close[0]]}? " if close else ""
        raise UserError(f"cannot find '{group}/{name}'; {hint}{group} is one of {', '.join(options)}") from error

    def _explain(self, error: ConfigCompositionException, groups: Collection[str]) -> NoReturn:
        text = first_lines(error)
        if several := re.match(r"Ambiguous value for argument '(.+?)' 1\.", text):
            key, _, value = several[1].partition("=")
            quoted = shlex.quote(f'{key}="{value}"')
            text = f"{several[1]}: add -m to sweep over several values, or quote one value that has a comma: {quoted}"
        if unknown := re.match(r"Could not override '([^']+)'", text):
            raise UserError(self._unknown_key(unknown[1], groups)) from error
        if gone := re.match(r"Could not delete from config\. '([^']+)' does not exist", text):
            raise UserError(self._unknown_key(gone[1], groups)) from error
        if text.startswith("Error merging 'hydra/launcher/ray' with schema"):
            text = (
                "hydra/launcher=ray: the plugin hydra-ray-launcher uses the same name; pip uninstall hydra-ray-launcher"
            )
        elif str(error) and isinstance(error.__cause__, OmegaConfBaseException):
            text += f": {first_lines(error.__cause__)}"
        raise UserError(text) from error

    def _unknown_key(self, key: str, groups: Collection[str]) -> str:
        """Return the message for an unknown key: which option has it, a similar key, or how to add it."""
        group, _, rest = key.partition(".")
        if key.startswith(("hydra.launcher.", "hydra.sweeper.")):
            _, group, rest = key.split(".", 2)
            group = f"hydra/{group}"
        choices = "".join(f" with {o.input_line}" for o in self._overrides if o.key_or_group == group != key)
        hint = _did_you_mean(key, self._defaults, groups)
        if rest and (group in groups or group.startswith("hydra/")):
            options = [option for option in self._options(group, []) if self._has_key(f"{group}/{option}", rest)]
            line = next((str(o.input_line) for o in self._overrides if o.key_or_group == key), "")
            if options:
                hint = f"options with this key: {', '.join(f'{group}={option}' for option in options)}; "
            elif group in groups and group != "record" and line and not line.startswith("~"):
                hint += f"+{line} passes an argument that the yaml file does not list; "
        return f"there is no key {key!r}{choices}; {hint}`--cfg job` shows every key"

    def _has_key(self, option: str, key: str) -> bool:
        """Return whether the option's own file has the key, not counting the files in its defaults list."""
        file = self.repository.load_config(option)
        return file is not None and OmegaConf.select(file.config, key, throw_on_missing=False) is not None


# Hydra has no other hook between composing the files and applying the command line's values. `hydra.main` and
# `hydra.compose` both look up this name; configs of other projects are composed without the additions.
hydra._internal.hydra.ConfigLoaderImpl = Loader  # type: ignore[misc]


def _modern(override: str) -> str:
    if (modern := modern_override(override)) != override:
        _print_once(f"{override} is deprecated and will stop working in the next release; use {modern}")
    return modern


def check_values(parsed: Iterable[Override], defaults: DictConfig, cfg: DictConfig, groups: Collection[str]) -> None:
    """Check that each override's value has the type of its default; a default of null accepts any type.

    YAML has no schema, so `epochs=abc` would otherwise fail much later inside a library.

    Raises:
        UserError: if the types differ; the message names the key, the value and the default.
    """
    for override in parsed:
        key = override.key_or_group
        if key in groups or override.is_sweep_override() or override.is_hydra_override():
            continue
        top, _, rest = key.partition(".")
        if override.is_delete():
            if top not in groups or top == "trainer":
                raise UserError(f"~{key}: a run needs {key}; use {key}=VALUE to change it")
            continue
        if "${hydra:" in str(override.input_line):  # not known until the run has a folder
            continue
        try:
            value = OmegaConf.select(cfg, key)
        except (OmegaConfBaseException, RecursionError) as error:
            raise UserError(f"{key}: {first_lines(error)}") from error
        default = _select(defaults, key)
        if default is not None and not _same_kind(key, default, value):
            raise UserError(f"{key}={_format(value)}: {key} takes {_kind(default)} (default {_format(default)})")


def _select(config: DictConfig, key: str) -> Any:
    """Return the key's value; None if there is none, or it refers to a missing key."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def check_whole(cfg: DictConfig, swept: Collection[str] = ()) -> None:
    """Check that a config has everything a run needs and nothing that no code reads.

    Args:
        cfg: the config of a run, or that of a sweep, which lacks the values of the keys in `swept`.
        swept: keys with several values on the command line.

    Raises:
        UserError: if a key is missing, unknown or out of range; the message names it.
    """
    file = _primary()
    groups = [str(key) for default in file.defaults if isinstance(default, DictConfig) for key in default]
    needed = [*groups, *(key for key in file if key not in ("defaults", "hydra"))]
    raw: dict[Any, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    mentioned = set(re.findall(r"\$\{(\w+)", str(raw)))
    for key in map(str, raw):
        if key not in (*needed, "hydra") and key not in mentioned:
            raise UserError(f"nothing reads {key!r}; {_did_you_mean(key, cfg, groups)}`--cfg job` shows every key")
    if EXPERIMENT in raw:
        raise UserError("the file of an experiment must begin with the line `# @package _global_`")
    for key in needed:
        if key == EXPERIMENT:
            continue
        if key not in raw:
            raise UserError(f"a run needs {key}; remove ~{key}, or choose an option: {key}=OPTION")
        if key in groups and key not in ("record", "trainer") and f"{key}._target_" not in swept:
            _check_target(key, raw[key])
    if not isinstance(cfg.hydra.verbose, (bool, str, ListConfig)):
        raise UserError(f"hydra.verbose={cfg.hydra.verbose}: hydra.verbose takes true, false or the names of loggers")
    if not isinstance(raw["trainer"], dict) or not isinstance(raw["record"], dict):
        raise UserError("trainer and record take the name of an option; use `trainer.KEY=VALUE` to change one value")
    for name, recorder in raw["record"].items():
        if not isinstance(recorder, dict):
            raise UserError(
                f"record.{name} is not a recorder; a file record/NAME.yaml holds the key NAME and below it _target_"
            )
        _check_target(f"record.{name}", recorder)
    for key, default in file.items():
        value = _select(cfg, key)
        if key in needed and key not in groups and default is not None and not _same_kind(key, default, value):
            raise UserError(f"{key}={_format(value)}: {key} takes {_kind(default)} (default {_format(default)})")
    seed = raw["seed"]
    if not isinstance(seed, (int, str)) or (isinstance(seed, int) and not 0 <= seed <= LARGEST_SEED):
        raise UserError(f"seed={_format(seed)}: seed takes a whole number from 0 to {LARGEST_SEED}")
    check_name(raw["name"])


def check_name(name: Any) -> None:
    """Check the key `name`.

    Raises:
        UserError: if it is not the name of a folder under multirun_outputs/.
    """
    folder = Path(str(name))
    if not isinstance(name, (str, int, float)) or folder.is_absolute() or not folder.parts or ".." in folder.parts:
        raise UserError(f"name={_format(name)}: name takes the name of a folder under multirun_outputs/")
    if folder.name.endswith(".record"):
        raise UserError(
            f"name={_format(name)}: names ending in .record are reserved for committed runs; choose another name"
        )


@functools.cache
def _primary() -> Any:
    return OmegaConf.load(PRIMARY)


def note_unused_layers(overrides: Iterable[Override], cfg: DictConfig) -> None:
    """Print a note if norm or activation is on the command line, but nothing in the config refers to it.

    Models from elsewhere have their own layers. It is no error, so that a sweep can combine models and norms.
    """
    raw = str(OmegaConf.to_container(cfg, resolve=False))
    for override in overrides:
        group = override.key_or_group.partition(".")[0]
        if group in ("norm", "activation") and not re.search(rf"\$\{{\.*{group}\b", raw):
            model = cfg.hydra.runtime.choices.model
            _print_once(f"note: {override.input_line} has no effect, because model={model} has its own layers")


def _check_target(key: str, node: Any) -> None:
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(target, str) or target == "???":
        group = key.partition(".")[0]
        raise UserError(f"{key} needs {key}._target_, the class or function to call; use {group}=OPTION to choose one")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain Python values with all interpolations resolved.

    Raises:
        UserError: if a key cannot be resolved or has no value; the message names it.
    """
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
        if missing := sorted(_missing_keys(values)):
            raise UserError(f"{', '.join(missing)}: ??? marks a value that is still missing; set it with KEY=VALUE")
        return values
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'config'}: {first_lines(error)}") from error
    except RecursionError as error:
        raise UserError("a config value refers to itself, as in epochs='${epochs}'") from error


def _missing_keys(node: Any, key: str = "") -> Iterator[str]:
    """Yield the keys with value ???; unlike OmegaConf.missing_keys, this does not resolve the config again."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in pairs:
        yield from _missing_keys(value, f"{key}.{name}" if key else str(name))
    if isinstance(node, str) and node == "???":
        yield key


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        if override.lstrip("+~").startswith("="):
            raise UserError(f"cannot read {override!r}: write KEY=VALUE")
        try:
            parsed += parser.parse_overrides([override])
        except (HydraException, ValueError, RecursionError) as error:
            raise UserError(_how_to_quote(override, error)) from error
    return parsed


def _how_to_quote(override: str, error: Exception) -> str:
    first, *more = str(error).strip().split("\n")
    first = more[0] if first.startswith("Error parsing override") and more else first
    first = first.partition(" expecting {")[0]
    reason = "" if first.startswith("LexerNoViableAltException") else f" ({first})"
    key, equals, value = override.partition("=")
    if not equals:
        return f"cannot read {override!r}{reason}: write KEY=VALUE"
    escaped = value.strip("\"'").replace("\\", "\\\\").replace('"', '\\"')
    quoted = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_overrides([quoted])
    except (HydraException, ValueError):
        return f"cannot read {override!r}{reason}: {key!r} is not a key; write KEY=VALUE"
    return (
        f"cannot read {override!r}{reason}: quote the value twice, for the shell and for Hydra: {shlex.quote(quoted)}"
    )


def _did_you_mean(key: str, config: DictConfig, groups: Collection[str]) -> str:
    container: Any = OmegaConf.to_container(config, resolve=False)
    others = [other for other in (*_keys(container), *groups) if not f"{other}.".startswith(f"{key}.")]
    others = [other for other in others if not other.endswith("_target_") or key.endswith("_target_")]
    # Ignore case.
    keys = {other.lower(): other for other in others if key.startswith("hydra") or not other.startswith("hydra")}
    ends = [other for other in keys.values() if other.rpartition(".")[2] == key]  # `lr` suggests `optim.lr`
    close = ends or [keys[other] for other in difflib.get_close_matches(key.lower(), keys, n=1)]
    return f"did you mean {' or '.join(map(repr, close[:3]))}? " if close else ""


def _keys(node: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, child in node.items():
        yield f"{prefix}{key}"
        if isinstance(child, dict):
            yield from _keys(child, f"{prefix}{key}.")


def _is_experiment(default: ResultDefault) -> bool:
    return (default.config_path or "").startswith(f"{EXPERIMENT}/")


def _different_packages(one: Iterable[ResultDefault], other: Iterable[ResultDefault]) -> list[str]:
    """Return the groups for which the two defaults lists have different files."""

    def files(defaults: Iterable[ResultDefault]) -> dict[str, list[str | None]]:
        paths: dict[str, list[str | None]] = {}
        for default in defaults:
            if default.package and not default.package.startswith("hydra") and not _is_experiment(default):
                paths.setdefault(default.package, []).append(default.config_path)
        return paths

    first, second = files(one), files(other)
    return sorted(group for group in first.keys() | second.keys() if first.get(group) != second.get(group))


def _extra(node: Any, base: Any, prefix: str) -> Iterator[str]:
    """Yield the keys of a config that `base` does not have."""
    if node is None:
        return
    if base is None:
        yield prefix
        return
    if isinstance(node, DictConfig) and isinstance(base, DictConfig):
        for key in map(str, node):
            if key not in base.keys():  # `in base` is False for a value of ???
                yield f"{prefix}.{key}"
            elif OmegaConf.is_missing(node, key) or OmegaConf.is_missing(base, key):
                continue
            elif not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_interpolation(base, key):
                yield from _extra(node[key], base[key], f"{prefix}.{key}")


_PRINTED: set[str] = set()  # because Hydra composes a run's config more than once


@rank_zero_only
def _print_once(text: str) -> None:
    if text not in _PRINTED:
        _PRINTED.add(text)
        print(text, file=sys.stderr)


def _same_kind(key: str, default: Any, value: Any) -> bool:
    if isinstance(default, ListConfig) and isinstance(value, ListConfig):
        return not default or all(any(_same_kind(key, one, each) for one in default) for each in value)
    if key in ("trainer.devices", "data.size"):  # both take a number or a list; their own checks follow
        return True
    kinds = (_kind(default), _kind(value))
    if isinstance(value, ListConfig):
        return kinds[0] == "a word"
    if kinds == ("a whole number", "a number"):
        return key.startswith("trainer.limit_")  # a number of batches or a fraction of them
    return kinds[0] == kinds[1] or kinds in _ALSO_FINE


def _kind(value: Any) -> str:
    if isinstance(value, ListConfig) and value:
        return f"a list, each {_kind(value[0])}"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    containers = {ListConfig: "a list", DictConfig: "a group of keys", type(None): "null"}
    return (kinds | containers).get(type(value), type(value).__name__)


def _format(value: Any) -> str:
    """Format a value as on the command line, strings in quotes."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value) if isinstance(value, (ListConfig, DictConfig)) else repr(value)


# (default, value). A string default such as `auto` may be replaced by a number or a boolean.
_ALSO_FINE = {
    ("a number", "a whole number"),
    ("a word", "a whole number"),
    ("a word", "a number"),
    ("a word", "true or false"),
    ("a word", "null"),
    ("a number", "null"),
    ("a whole number", "null"),
}
