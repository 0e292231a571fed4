"""`--help` and `--info` list every group, option and key with a description, and shell completion works in bash."""

import re
import shutil
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from processes import ENVIRONMENT
from test_config import CONF, GROUPS, options

from cifarbn import train
from cifarbn.cli.conf import PRIMARY
from cifarbn.cli.help import _GROUP, _KEY, commented_lines, first_comment

FILES = sorted(file.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES)
def test_every_config_file_begins_with_a_sentence_on_one_line(file):
    comment = first_comment(CONF / file)
    assert re.search(r"[.:]$|\. ", comment), f"the first sentence must end on the first line: {comment}"


def test_every_group_and_key_has_a_comment():
    file = OmegaConf.load(PRIMARY)
    groups = [key for default in file.defaults if not isinstance(default, str) for key in default]
    assert [line.name for line in commented_lines(PRIMARY, _GROUP)] == groups
    assert [line.name for line in commented_lines(PRIMARY, _KEY)] == [
        key for key in file if key not in ("defaults", "hydra")
    ]


@pytest.fixture
def printed(monkeypatch, tmp_path, capsys):
    """What a command line prints, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        with pytest.raises(SystemExit) as ended:
            train.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def test_help_lists_groups_options_keys_and_flags(printed):
    text = printed("--help")
    for group in (*GROUPS, "experiment"):
        assert re.search(rf"^  {group} +\S", text, re.MULTILINE), group
        for option in options(group):
            assert re.search(rf"^  [ *] {re.escape(option)}$|^  [ *] {re.escape(option)} +\S", text, re.MULTILINE), (
                option
            )
    for key in ("epochs=20", "seed=0", "tta=none", "resume=true", "resume_from=null", "checkpoint_minutes=5.0"):
        assert re.search(rf"^  {re.escape(key)} +\S", text, re.MULTILINE), key
    for words in (
        "-m, --multirun",
        "--cfg job",
        "--config-dir",
        "--info",
        "cifarbn-train --shell-completion install=bash",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120 and "(no description)" not in text


def test_help_shows_the_current_choices_and_values(printed):
    text = printed("model=vgg_a", "record=[step_change]", "epochs=3", "--help")
    marked = re.findall(r"^  \* (\S+)", text, re.MULTILINE)
    assert "vgg_a" in marked and "step_change" in marked and "resnet18" not in marked
    assert "none" in marked, "vgg_a chooses norm=none"
    assert "  epochs=3 " in text


@pytest.mark.parametrize("arguments", [["--info"], ["-i", "model=vgg_a"], ["model=vgg_a", "--info"]])
def test_info_lists_groups_and_options(printed, arguments):
    text = printed(*arguments)
    assert text.startswith("Groups") and re.search(r"^    resnet34 +ResNet-34", text, re.MULTILINE)
    assert "Flags" not in text and ("* vgg_a " in text) == ("model=vgg_a" in arguments)


def test_the_user_s_own_files_are_listed(printed, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text("# My $5 model.\n_target_: torch.nn.Identity\n")
    (tmp_path / "mine" / "model" / "silent.yaml").write_text("_target_: torch.nn.Identity\n")
    text = printed("--config-dir", "mine", "--info")
    assert re.search(r"^    own +My \$5 model\.$", text, re.MULTILINE)
    assert re.search(r"^    silent +\(no description\)$", text, re.MULTILINE)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(tmp_path):
    command = tmp_path / "cifarbn-train"
    command.write_text(f"#!{sys.executable}\nfrom cifarbn.train import main\nmain()\n")
    command.chmod(0o755)
    script = tmp_path / "complete.sh"
    script.write_text(
        """eval "$(cifarbn-train --shell-completion install=bash)"
        COMP_LINE="cifarbn-train model=res" COMP_POINT=23 COMP_CWORD=1 COMP_WORDS=(cifarbn-train model=res)
        $(complete -p cifarbn-train | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${COMPREPLY[@]}"
        """
    )
    environment = ENVIRONMENT | {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    ended = subprocess.run(["bash", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stdout.split() == [f"model={option}" for option in options("model") if option.startswith("res")], (
        ended.stderr
    )
