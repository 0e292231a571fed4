"""Start a command: check and rewrite its arguments, and turn user errors into one-line messages."""

import gc
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cifarbn.cli.composition import resolved
from cifarbn.cli.conf import CONF as CONF
from cifarbn.cli.errors import first_lines
from cifarbn.cli.resolvers import data_root as data_root
from cifarbn.errors import Interrupted, UserError, machine_fault
from cifarbn.runs.identity import EXECUTION_KEYS, differences, key_of
from cifarbn.runs.old_names import modern_config
from cifarbn.terminal import leave_closed_output, leave_failed_output

# Set in the environment while this module, not the user, has set HYDRA_FULL_ERROR=1. Processes of DDP and of a sweep
# inherit it.
PLAIN = "CIFARBN_PLAIN_ERRORS"
PATHS = ("resume_from", "init_from", "data.root")  # keys whose value is a path


def run_cli(hydra_main: Callable[[], Any]) -> None:
    """Run a Hydra main function without Hydra's error handler, which prints tracebacks for user errors.

    If the user has set HYDRA_FULL_ERROR=1, every traceback is printed.
    """
    finish_imports()
    import_from_working_folder()
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and PLAIN not in os.environ:
        read_arguments()
        hydra_main()
        return
    os.environ |= {"HYDRA_FULL_ERROR": "1", PLAIN: "1"}
    try:
        with friendly_errors():
            read_arguments()
            hydra_main()
    finally:
        os.environ.pop(PLAIN)
        os.environ["HYDRA_FULL_ERROR"] = "0"


def finish_imports() -> None:
    """Enable the garbage collector, which is off during a command's imports, and exempt all imported objects.

    A full collection takes 0.2 s if it scans torch and Lightning as well; `train` runs one before each run.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def import_from_working_folder() -> None:
    """Let a script such as `cifarbn-train` import modules of the working folder, as `python -m cifarbn.train` does."""
    is_script = Path(sys.argv[0]).name.startswith("cifarbn-")
    if is_script and not getattr(sys.flags, "safe_path", False) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def read_arguments() -> None:
    """Check `sys.argv` and rewrite it into arguments that Hydra accepts.

    Raises:
        UserError: if flags exclude each other, or a saved run cannot be repeated.
    """
    quote_paths()
    list_groups()
    gather_overrides()
    check_flags()
    repeat_saved_run()


def quote_paths() -> None:
    """Quote values of path keys that contain `=` (as run folder names do) or start with `~`."""
    for i, argument in enumerate(sys.argv):
        key, _, value = argument.partition("=")
        if key in PATHS and ("=" in value or value.startswith("~")) and value[0] not in "\"'":
            sys.argv[i] = f'{key}="{value}"'


def gather_overrides() -> None:
    """Let flags stand between overrides, as in `model=vgg_a -m seed=0,1`; Hydra accepts overrides in one place only."""
    overrides = get_args_parser().parse_intermixed_args().overrides
    flags = [argument for argument in sys.argv[1:] if argument not in overrides]
    sys.argv[1:] = [*overrides, *flags]


def check_flags() -> None:
    """Check for flag combinations for which Hydra would print a traceback.

    Raises:
        UserError: if flags exclude each other, or one lacks the flag it belongs to.
    """
    args = get_args_parser().parse_args()
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    if len(together := [f"--{name}" for name in commands if getattr(args, name)]) > 1:
        raise UserError(f"{' and '.join(together)} exclude each other; use only one of them")
    if args.resolve and not (args.cfg or args.help):
        raise UserError("--resolve needs --cfg; write `--cfg job --resolve`")


def list_groups() -> None:
    """Let `--info` without a value print the groups and their options; with a value, it prints what Hydra prints."""
    for i, argument in enumerate(sys.argv):
        following = sys.argv[i + 1] if i + 1 < len(sys.argv) else "-"
        if argument in ("--info", "-i") and ("=" in following or following.startswith("-")):
            others = sys.argv[1:i] + sys.argv[i + 1 :]
            overrides = get_args_parser().parse_args(others).overrides
            flags = [argument for argument in others if argument not in overrides]
            sys.argv[1:] = [*flags, "--help", *overrides, "hydra.help.template='${info:}'"]
            return


def repeat_saved_run() -> None:
    """Expand `--config-path RUN/.hydra --config-name config` to the command that created RUN, plus further arguments.

    The config that Hydra saves has the values only, not the run's folder or the chosen option of each group.
    Therefore the overrides saved next to it are composed again, and must give the same config.

    Raises:
        UserError: if they give another config now, or are missing.
    """
    args = get_args_parser().parse_args()
    folder = Path(args.config_path or "")
    if not args.config_path or folder.name != ".hydra" or str(args.config_name).removesuffix(".yaml") != "config":
        return
    saved, overrides, of_hydra = (_saved(folder / f"{name}.yaml") for name in ("config", "overrides", "hydra"))
    if not OmegaConf.is_dict(saved) or not OmegaConf.is_list(overrides):
        raise UserError(f"cannot repeat {folder.parent}: config.yaml or overrides.yaml in {folder} is damaged")
    saved_overrides = [str(override) for override in overrides]
    try:
        sources = of_hydra.hydra.runtime.config_sources
        saved_dirs = [str(source.path) for source in sources if source.provider == "command-line"]
    except (AttributeError, TypeError, OmegaConfBaseException) as error:
        raise UserError(f"cannot repeat {folder.parent}: {folder / 'hydra.yaml'} is damaged") from error
    config_dirs = [args.config_dir] if args.config_dir else saved_dirs
    search_path = [f"hydra.searchpath=[{','.join(repr(os.path.abspath(each)) for each in config_dirs)}]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        then, now = resolved(saved), resolved(compose("train", overrides=saved_overrides + search_path))
    overridden = map(key_of, args.overrides)
    ignored = tuple(f"{key}{end}" for key in (*overridden, *EXECUTION_KEYS) for end in (":", "."))
    if changes := [change for change in differences(modern_config(then), now) if not change.startswith(ignored)]:
        raise UserError(
            f"the overrides of {folder.parent} give a different config now ({'; '.join(changes)}): conf/ or the saved "
            "config has changed. Add KEY=VALUE for each of these keys"
        )
    others = _without_options(sys.argv[1:], ("--config-path", "-cp", "--config-name", "-cn"))
    flags = [argument for argument in others if argument not in args.overrides]
    runs = not (args.multirun or args.cfg or args.info or args.shell_completion)
    if not args.config_dir:
        flags += [f"--config-dir={each}" for each in config_dirs]
    sys.argv[1:] = [*saved_overrides, *args.overrides, *(["hydra.mode=RUN"] if runs else []), *flags]


def _saved(file: Path) -> Any:
    """Return the content of a YAML file that Hydra saved.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        return OmegaConf.load(file)
    except FileNotFoundError as error:
        raise UserError(f"cannot repeat {file.parent.parent}: {file} is missing") from error
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"cannot repeat {file.parent.parent}: {file} is damaged ({type(error).__name__})") from error


def _without_options(arguments: list[str], options: Collection[str]) -> list[str]:
    """Return the arguments without the given options and their values (`--option VALUE` or `--option=VALUE`)."""
    kept, remaining = [], iter(arguments)
    for argument in remaining:
        option, equals, _ = argument.partition("=")
        if option not in options:
            kept.append(argument)
        elif not equals:
            next(remaining, None)
    return kept


@contextmanager
def friendly_errors(*, resumable: bool = True) -> Iterator[None]:
    """Exit with a one-line message instead of a traceback on errors of the user's input or machine.

    If the user has set HYDRA_FULL_ERROR=1, errors pass through.

    Args:
        resumable: whether the same command continues an interrupted one.

    Raises:
        SystemExit: with exit code 1 after such an error, 130 after Ctrl-C, 143 after SIGTERM.
    """
    finish_imports()
    import_from_working_folder()
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and PLAIN not in os.environ:
        yield
        return
    try:
        yield
        sys.stdout.flush()  # raises an error, such as that of a full disk, here instead of at the exit
    except KeyboardInterrupt:
        exit_after(Interrupted(), resumable=resumable)
    except Interrupted as stop:
        exit_after(stop, resumable=resumable)
    except UserError as error:
        leave_failed_output()
        sys.exit(f"error: {error}")
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        sys.exit(f"error: {first_lines(error)}")
    except Exception as error:
        if leave_closed_output() and isinstance(error, BrokenPipeError):
            sys.exit("error: the program that reads this command's output has ended")
        if message := machine_fault(error):
            leave_failed_output()
            sys.exit(f"error: {message}")
        raise


def exit_after(stop: Interrupted, *, resumable: bool = True) -> NoReturn:
    """Exit after a signal, with a message and the exit code of the signal."""
    remedy = "; run the same command again to continue from the last checkpoint" if resumable else ""
    rank_zero_only(print)(f"interrupted{remedy}", file=sys.stderr)
    sys.exit(stop.exit_code)


def settle_data_root(cfg: DictConfig) -> None:
    """Expand `~` in data.root, and keep it relative to the start directory also with hydra.job.chdir=true."""
    started = Path(HydraConfig.get().runtime.cwd)
    if "root" in cfg.data and isinstance(cfg.data.root, str):
        if cfg.data.root.startswith("~"):  # the shell does not expand it after data.root=
            cfg.data.root = str(Path(cfg.data.root).expanduser())
        if started != Path.cwd():
            cfg.data.root = str(started / cfg.data.root)
