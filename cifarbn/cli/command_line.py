"""What stands between a user's command and a run: the command's start, its errors, and where it began."""

import gc
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifarbn.cli.composition import CONF as CONF
from cifarbn.cli.composition import resolved
from cifarbn.cli.errors import first_lines
from cifarbn.cli.resolvers import data_root as data_root
from cifarbn.errors import Interrupted, UserError, machine_fault
from cifarbn.runs.identity import EXECUTION_KEYS, completed, differences, key_of

PLAIN = "CIFARBN_PLAIN_ERRORS"  # in the environment while HYDRA_FULL_ERROR=1 is ours, also of DDP's processes
PATHS = ("resume_from", "data.root")  # keys whose value is a path


def run_cli(hydra_main: Callable[[], Any]) -> None:
    """Run a Hydra main with Hydra's own error handler off, since it prints a traceback for whatever it does not know.

    Whoever sets HYDRA_FULL_ERROR=1 sees every traceback.
    """
    finish_imports()
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
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
    """Turn on the garbage collector, which is off while a command imports, and exempt what has been imported.

    A full collection takes 0.2 s when it scans torch and Lightning too; `train` makes one before each run.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def read_arguments() -> None:
    """Turn the program's arguments into such as Hydra takes.

    Raises:
        UserError: where that cannot be done.
    """
    quote_paths()
    check_flags()
    repeat_saved_run()


def quote_paths() -> None:
    """Quote the value of a key that takes a path where it holds an `=`, as the name of a run folder does, or a `~`."""
    for i, argument in enumerate(sys.argv):
        key, _, value = argument.partition("=")
        if key in PATHS and ("=" in value or value.startswith("~")) and value[0] not in "\"'":
            sys.argv[i] = f'{key}="{value}"'


def check_flags() -> None:
    """Refuse flags of which Hydra would print a traceback.

    Raises:
        UserError: naming them.
    """
    args = get_args_parser().parse_args()
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    if len(together := [f"--{name}" for name in commands if getattr(args, name)]) > 1:
        raise UserError(f"{' and '.join(together)} exclude each other: leave out all but one")
    if args.resolve and not (args.cfg or args.help):
        raise UserError("--resolve belongs to --cfg: `--cfg job --resolve`")


def repeat_saved_run() -> None:
    """Make `--config-path RUN/.hydra --config-name config` the command that made RUN, with what else is said.

    The config that Hydra saves holds values only: neither where a run goes, nor which option of a group was chosen.
    So the run's overrides, which lie beside it, are composed again, and must give the same config.

    Raises:
        UserError: if they no longer do, or are gone.
    """
    args = get_args_parser().parse_args()
    folder = Path(args.config_path or "")
    if not args.config_path or folder.name != ".hydra" or str(args.config_name).removesuffix(".yaml") != "config":
        return
    try:
        saved: Any = OmegaConf.load(folder / "config.yaml")
        overrides: Any = OmegaConf.load(folder / "overrides.yaml")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; {folder.parent} cannot be repeated without it") from error
    before = [str(override) for override in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        then, now = resolved(saved), resolved(compose("train", overrides=before))
    given = map(key_of, args.overrides)
    decided = tuple(f"{key}{end}" for key in (*given, *EXECUTION_KEYS) for end in (":", "."))
    if changes := [change for change in differences(completed(then), now) if not change.startswith(decided)]:
        raise UserError(
            f"what made {folder.parent} makes another run today ({'; '.join(changes)}): conf/ or it has changed. "
            "Add KEY=VALUE for each of these"
        )
    others = _without_options(sys.argv[1:], ("--config-path", "-cp", "--config-name", "-cn"))
    flags = [argument for argument in others if argument not in args.overrides]
    runs = not (args.multirun or args.cfg or args.info or args.shell_completion)
    sys.argv[1:] = [*before, *args.overrides, *(["hydra.mode=RUN"] if runs else []), *flags]


def _without_options(arguments: list[str], options: Collection[str]) -> list[str]:
    """The arguments without some options and their values, `--option VALUE` or `--option=VALUE`."""
    kept, remaining = [], iter(arguments)
    for argument in remaining:
        option, equals, _ = argument.partition("=")
        if option not in options:
            kept.append(argument)
        elif not equals:
            next(remaining, None)
    return kept


@contextmanager
def friendly_errors() -> Iterator[None]:
    """End the program with one message and no traceback where the mistake is the user's or their machine's.

    Where the user has set HYDRA_FULL_ERROR=1, let the error through.

    Raises:
        SystemExit: with exit code 1 after such a mistake, 130 after Ctrl-C.
    """
    finish_imports()
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and PLAIN not in os.environ:
        yield
        return
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        sys.exit(f"error: {first_lines(error)}")
    except Exception as error:
        if said := machine_fault(error):
            sys.exit(f"error: {said}")
        raise


def settle_data_root(cfg: DictConfig) -> None:
    """Let data.root stay relative to where the command was started, also under hydra.job.chdir=true."""
    started = Path(HydraConfig.get().runtime.cwd)
    if "root" in cfg.data and isinstance(cfg.data.root, str):
        if cfg.data.root.startswith("~"):  # a shell leaves it alone behind data.root=
            cfg.data.root = str(Path(cfg.data.root).expanduser())
        if started != Path.cwd():
            cfg.data.root = str(started / cfg.data.root)
