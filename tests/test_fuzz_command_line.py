"""Random command lines, most of them invalid: each composes and instantiates, or prints one message."""

import os
import random
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_config import CONF, GROUPS, options

from cifarbn import train
from cifarbn.cli.composition import resolved
from cifarbn.cli.errors import instantiation_errors
from cifarbn.runs.result_file import write_result
from cifarbn.runs.schema import RESULT

OPTIONS = {group: options(group) for group in (*GROUPS, "experiment")}
WORDS = ["auto", "none", "abc", "True", "no", "../x", "x/y", "a b", "", "é", "torch.nn.ReLU", "${epochs}", "${nothing}"]
NUMBERS = ["0", "1", "-1", "2", "3", "0.5", "-0.1", "1e-3", "1e30", "-1e400", "nan", "inf", "999999999999999999999"]
OTHERS = ["null", "true", "false", "[]", "[1,2]", "[a,b]", "[[1],[2]]", "{}", "{a:1}", "[null]", "???", "(", "'", "a=b"]
OTHERS += ["a,b", "range(3)", "choice(1,2)", '"x', "glob(*)", "{a", "$x", "\\", "a:b", "@x", "#x", "!x", "1_0", "0x10"]
HYDRA = [
    "hydra.verbose=VALUE",
    "hydra.job.chdir=VALUE",
    "hydra.run.dir=VALUE",
    "hydra.nothing=VALUE",
    "hydra.mode=VALUE",
]


# Arguments of Lightning and torch that no yaml file lists.
UNLISTED = ["trainer.accumulate_grad_batches", "trainer.fast_dev_run", "trainer.max_time", "trainer.logger"]
UNLISTED += ["trainer.gradient_clip_algorithm", "trainer.val_check_interval", "trainer.overfit_batches"]
UNLISTED += ["trainer.check_val_every_n_epoch", "trainer.detect_anomaly", "trainer.callbacks", "trainer.min_epochs"]
UNLISTED += ["optim.eps", "optim.maximize", "schedule.last_epoch", "model.foo", "data.foo", "loss.reduction"]


def keys() -> dict[str, Any]:
    """Return every key of every option with its default."""
    defaults: dict[str, Any] = {}

    def add(node, prefix):
        for key, child in node.items():
            defaults[f"{prefix}{key}"] = child
            if isinstance(child, dict):
                add(child, f"{prefix}{key}.")

    with initialize_config_dir(str(CONF), version_base="1.3"):
        add(OmegaConf.to_container(compose("train", overrides=["record=all"])), "")
    for group in GROUPS:
        for option in OPTIONS[group]:
            node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
            add(node, "" if group == "record" else f"{group}.")
    return {key: defaults[key] for key in sorted(defaults) if "defaults" not in key}


def command_line(chance: random.Random, known: dict[str, Any]) -> list[str]:
    """Return random overrides of all groups and keys: choices, values, deletions, additions and typos."""

    def value() -> str:
        return chance.choice(chance.choice((WORDS, NUMBERS, NUMBERS, OTHERS)))

    def typo(text: str) -> str:
        place = chance.randrange(len(text))
        return chance.choice((text[:place] + text[place + 1 :], text[:place] + "x" + text[place:], text.upper()))

    def like(default: Any) -> str:
        if isinstance(default, bool) or default is None:
            return chance.choice(("true", "false", "null"))
        if isinstance(default, (int, float)):
            return str(chance.choice((0, 1, 2, 3, 0.5, -1, default, default * 2, default / 2, -default)))
        if isinstance(default, list):
            return f"[{','.join(map(like, default[: chance.randrange(len(default) + 1)] or default))}]"
        return chance.choice(WORDS) if isinstance(default, dict) else str(default)

    def override() -> str:
        group, key = chance.choice(list(OPTIONS)), chance.choice(list(known))
        valid_choice = f"{group}={chance.choice(OPTIONS[group])}"
        kinds = {
            valid_choice: 6,
            f"{key}={like(known[key])}": 8,
            f"{key}={value()}": 4,
            f"{group}={value()}": 1,
            f"{typo(group)}={chance.choice(OPTIONS[group])}": 1,
            f"{group}={typo(chance.choice(OPTIONS[group]))}": 1,
            f"{typo(key)}={value()}": 1,
            f"~{key}": 1,
            f"~{group}": 0.5,
            f"{key.rpartition('.')[2]}={value()}": 0.5,
            f"+{chance.choice(UNLISTED)}={chance.choice((value(), '0', '1', '2', 'false'))}": 2,
            f"{chance.choice(('+', '++'))}{key}={value()}": 1,
            f"+foo={value()}": 0.5,
            chance.choice(HYDRA).replace("VALUE", value()): 0.5,
            chance.choice(("", "=", "x", "=3", "model", "+", "~", "model@optim=dln", "a.b.c=1", ".x=1", "x.=1")): 0.5,
        }
        return chance.choices(list(kinds), list(kinds.values()))[0]

    return [override() for _ in range(chance.choice((1, 1, 2, 2, 3, 4)))]


def instantiate_all(cfg, folder) -> None:
    """Construct everything that a run constructs before it reads data."""
    resolved(cfg)
    for group in ("data", "model", "loss", "optim", "schedule"):
        with instantiation_errors(group):
            instantiate(cfg[group])
    for recorder in cfg.record.values():
        with instantiation_errors("record"):
            instantiate(recorder, folder=folder)


def small(overrides: list[str]) -> bool:
    """Return whether no value is so large that a model or data set would fill the machine's memory."""
    return not any("99999" in override or "1e30" in override for override in overrides)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(int(os.environ.get("CIFARBN_FUZZ", "60"))))
def test_a_random_command_line_runs_or_gives_one_message(known, seed, tmp_path, monkeypatch, capsys):
    overrides = command_line(random.Random(seed), known)
    calls = []

    def construct(cfg, folder, _):
        if small(overrides):
            instantiate_all(cfg, tmp_path)
        calls.append(overrides)
        write_result(folder / RESULT, {"status": "done", "overrides": [], "config": {}})  # a sweep reads it
        return {}

    monkeypatch.setattr(train, "train", construct)
    monkeypatch.setattr("sys.argv", ["train", *overrides])
    monkeypatch.chdir(tmp_path)
    try:
        train.main()
    except SystemExit as ended:
        printed = capsys.readouterr().err
        # A sweep prints one message per failed run and exits with 1.
        messages = printed.splitlines() if ended.code == 1 else str(ended.code).strip().splitlines()
        messages = [message for message in messages if message.startswith("error: ")]
        assert messages and "Traceback" not in printed, overrides
        assert ended.code == 1 or messages == [str(ended.code).strip()], overrides
        assert min(map(len, messages)) > len("error: ") + 5, overrides
        assert ended.code == 1 or not list(tmp_path.rglob(RESULT)), overrides
    else:
        assert calls, overrides


@pytest.fixture(scope="module")
def known():
    return keys()
