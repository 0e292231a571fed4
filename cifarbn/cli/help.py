"""The text of `cifarbn-train --help` and `--info`, generated from the comments in the config files."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

HEADER = """\
Train a model and write a run folder; with -m, sweep over several values.
GROUP=OPTION chooses the config file GROUP/OPTION.yaml, KEY=VALUE sets one value, and +KEY=VALUE adds
an argument that the config file does not list.

  python -m cifarbn.train model=resnet18_pool optim=adam optim.lr=1e-3
  python -m cifarbn.train -m model=vgg_a,vgg_a_bn 'seed=range(3)'     (a sweep of six runs)
  python -m cifarbn.train experiment=bn_landscape --cfg job           (print the config and exit)
  python -m cifarbn.train model=vgg_a --help                          (this text for another choice)
"""
GROUPS = "Groups (* marks the current choice)"
KEYS = "Keys (with the current value; --cfg job also prints the keys of the groups, such as optim.lr)"
FLAGS = """\
Flags
  -m, --multirun     sweep: run every combination of comma-separated values
  --cfg job          print the config and exit; --resolve also resolves its interpolations
  --info             list the groups and their options; `--info all` prints Hydra's own information
  --config-dir DIR   also read config files of your own; model=mine is then DIR/model/mine.yaml
  --hydra-help       list all flags of Hydra

Shell completion of groups, options and keys in bash (also zsh and fish), for the command cifarbn-train:
  eval "$(cifarbn-train --shell-completion install=bash)"
"""


class Line(NamedTuple):
    """A commented line of the primary config file."""

    name: str
    value: str
    comment: str


def help_text(cfg: DictConfig, primary: Path) -> str:
    """Return the template of `--help`: usage, groups with options, keys, flags.

    Args:
        cfg: the composed config, with Hydra's part.
        primary: the file train.yaml.
    """
    groups = {line.name for line in commented_lines(primary, _GROUP)}
    keys = "".join(
        _entry(f"  {line.name}={_value(cfg, line)}", line.comment, 30)
        for line in commented_lines(primary, _KEY)
        if line.name not in groups
    )
    return _as_template(f"{HEADER}\n{GROUPS}\n{groups_text(cfg, primary)}\n{KEYS}\n{keys}\n{FLAGS}")


def info_text(cfg: DictConfig, primary: Path) -> str:
    """Return the template of `--info`: the groups and their options."""
    return _as_template(f"{GROUPS}\n{groups_text(cfg, primary)}")


def groups_text(cfg: DictConfig, primary: Path) -> str:
    """Format every group with its description, and one line per option."""
    sources = cfg.hydra.runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    text = ""
    for group in commented_lines(primary, _GROUP):
        text += "\n" + _entry(f"  {group.name}", group.comment, 16)
        choice = cfg.hydra.runtime.choices.get(group.name)
        # Hydra does not store a list of choices; the recorders are keys of their group.
        choices = [choice] if isinstance(choice, str) else list(cfg.get(group.name) or ())
        for option, comment in options(folders, group.name).items():
            text += _entry(f"  {'*' if option in choices else ' '} {option}", comment, 36)
    return text


def options(folders: Iterable[Path], group: str) -> Mapping[str, str]:
    """Return the options of a group, sorted, each with the first comment of its file."""
    files = {
        file.relative_to(folder / group).with_suffix("").as_posix(): file
        for folder in folders
        for file in (folder / group).rglob("*.yaml")
    }
    return {option: first_comment(files[option]) for option in sorted(files)}


def first_comment(file: Path) -> str:
    """Return the first comment line of a config file, not counting `# @package`; empty if there is none."""
    for line in file.read_text().splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").rstrip()
        if line.strip() and not line.startswith("#"):
            break
    return ""


def commented_lines(file: Path, pattern: re.Pattern[str]) -> Iterator[Line]:
    """Yield the lines of a config file that match a pattern of name, value and comment."""
    for line in file.read_text().splitlines():
        if match := pattern.fullmatch(line):
            yield Line(*match.groups())


_GROUP = re.compile(r"  - (\w+): (\S.*?)  # (.*)")
_KEY = re.compile(r"(\w+): (\S.*?)  # (.*)")


def _value(cfg: DictConfig, line: Line) -> str:
    """Return the current value of a key as written in yaml."""
    value = cfg.get(line.name)
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _entry(name: str, text: str, indent: int) -> str:
    """Format a name with its description, wrapped at the width of the terminal and indented."""
    first, rest = name.ljust(indent), " " * indent
    if len(name) >= indent:
        first = rest
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    wrapped = textwrap.fill(
        text or "(no description)", width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    return (f"{name}\n" if len(name) >= indent else "") + wrapped + "\n"


def _as_template(text: str) -> str:
    """Escape the text for `string.Template`, with which Hydra formats its help."""
    return text.replace("$", "$$")
