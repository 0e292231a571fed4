"""The documentation is true: its commands run, its patches apply, its links and images exist, its site builds."""

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from cifarbn.cli.command_line import CONF
from cifarbn.cli.composition import resolved
from cifarbn.runs.schema import COLUMNS, Result, Status

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("multirun_outputs/*.md"), *ROOT.glob("examples/*.md")]
)
BLOCK = re.compile(
    r"(?:^ *<!-- test: (?P<marker>.*?) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
MARKERS = ("compose", "parse", "skip")

# Appended to each `python -m cifarbn.train`, by what its config has: two steps on a few images.
TINY = [
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "trainer.threads=1"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.enable_progress_bar=false"),
    "logger=none",
]
FEW_IMAGES = [  # an epoch of two steps
    *("data=shapes", "data.train_size=64", "data.val_size=16", "data.test_size=16", "data.batch_size=24"),
    "data.eval_batch_size=16",
]
# Appended to each `python -m cifarbn.report`: without its slowest parts, which tests/test_report.py covers.
QUICK = ["--models", "0", "--format", "png"]

# The run that the documentation calls RUN.
FIRST_RUN = ["data=shapes", "model=vgg_a_bn", "epochs=3"]


@dataclass(frozen=True)
class Block:
    page: Path
    kind: str
    marker: str  # "", or one of MARKERS
    body: str


@dataclass(frozen=True)
class Command:
    page: Path
    marker: str
    words: tuple[str, ...]

    @property
    def module(self):
        """The module that the command runs; "" for any other program."""
        if re.fullmatch(r"cifarbn-\w+", self.words[0]):
            return self.words[0].replace("-", ".")
        return self.words[self.words.index("-m") + 1] if self.words[0] in ("python", "torchrun") else ""

    @property
    def arguments(self):
        """What the module is given."""
        return list(self.words[self.words.index(self.module) + 1 :] if self.module in self.words else self.words[1:])

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.words)}"


def blocks(*kinds):
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text()):
            if match["kind"] in kinds:
                marker = (match["marker"] or "").split(" ")[0]
                body = re.sub(f"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
                found.append(Block(page, match["kind"], marker, body))
    return found


def read_commands():
    found = []
    for block in blocks("bash"):
        for line in block.body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                found.append(Command(block.page, block.marker, tuple(words)))
    return found


COMMANDS = read_commands()
TRAIN = [command for command in COMMANDS if command.module == "cifarbn.train"]
EXTEND = DOCS / "extend"


def test_there_is_something_to_test():
    assert len(PAGES) > 20 and len(COMMANDS) > 30 and len(TRAIN) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_marker_is_known_and_every_shell_block_is_bash(page):
    text = page.read_text()
    assert set(re.findall(r"<!-- test: (\w+)", text)) <= set(MARKERS)
    assert not re.findall(r"^ *```(?:sh|shell|console)$", text, re.MULTILINE), "use bash: it is tested"


def overrides(command):
    """The command's overrides, without flags."""
    return [word for word in command.arguments if not word.startswith("-") and word != "job"]


def is_repetition(command):
    return "--config-path" in command.arguments


def combinations(words):
    """The runs of a sweep; of an interval, its first value."""
    parsed = OverridesParser.create().parse_overrides([first_value(word) for word in words])
    return [combination for batch in BasicSweeper.split_arguments(parsed, None) for combination in batch]


def first_value(word):
    override = OverridesParser.create().parse_override(word)
    is_interval = override.is_sweep_override() and not override.is_discrete_sweep()
    return f"{override.get_key_element()}={override.value().start}" if is_interval else word


def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "train", overrides=[word for word in words if not word.startswith("hydra")], return_hydra_config=True
        )


@pytest.mark.parametrize(
    "command", [each for each in TRAIN if not is_repetition(each) and each.page.parent != EXTEND], ids=str
)
def test_every_training_command_composes(command, here):
    if command.marker != "skip":
        every = combinations([word for word in overrides(command) if not word.startswith("hydra")])
        for combination in (every[0], every[-1])[: len(every)]:
            cfg = composed(*combination)
            del cfg.hydra
            resolved(cfg)


@pytest.fixture
def only_parse(monkeypatch):
    """Commands end once their arguments are parsed."""

    class Parsed(Exception):
        pass

    def stopping(original):
        def parse(self, *arguments, **options):
            parsed = original(self, *arguments, **options)
            if sys._getframe(1).f_code.co_filename == argparse.__file__:  # one of these methods calls another
                return parsed
            raise Parsed

        return parse

    for name in ("parse_args", "parse_intermixed_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
    return Parsed


def main_of(module):
    for name in (f"{module}.__main__", module):
        try:
            return importlib.import_module(name).main
        except ModuleNotFoundError as error:
            if error.name != f"{module}.__main__":
                raise


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in TRAIN], ids=str)
def test_every_other_command_exists_and_its_arguments_parse(command, only_parse):
    program, arguments = command.words[0], list(command.words[1:])
    if command.module.startswith("cifarbn."):
        with pytest.raises(only_parse):
            main_of(command.module)(command.arguments)
    elif command.module == "pytest":
        assert all((ROOT / argument).exists() for argument in command.arguments if not argument.startswith("-"))
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "jupyter":
        assert (ROOT / arguments[1]).exists()
    elif program == "pip":
        (extras,) = re.findall(
            r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL
        )
        wanted = re.search(r"\.\[([\w,]+)\]", " ".join(arguments))
        for extra in wanted[1].split(",") if wanted else ():
            assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), f"pyproject.toml has no extra {extra}"
    else:
        assert command.marker == "skip", "this test does not know the program"


def tiny(words):
    """Overrides that make a training command small, by what its config has."""
    cfg = composed(*combinations(words)[0])
    small = list(TINY)
    if cfg.data._target_ in ("cifarbn.data.CIFAR10", "cifarbn.data.Shapes"):
        small += FEW_IMAGES
    if cfg.data._target_ == "cifarbn.data.ImageFolder":
        small += ["data.cache=false"]
    if "steps_per_epoch" in cfg.data:
        small.append("data.steps_per_epoch=2")
    if "width" in cfg.model:
        small.append("model.width=4")
    # Of a sweep, its first values but for the model.
    for key, values in (OmegaConf.to_container(cfg.hydra.sweeper.params or OmegaConf.create()) or {}).items():
        if key != "model" and not any(word.startswith(f"{key}=") for word in words):
            small.append(f"{key}={str(values).split(',')[0]}")
    return small


def shortened(words):
    """Overrides with the first value of each sweep, but for two of the first one."""
    kept, swept = [], False
    for override in OverridesParser.create().parse_overrides(words):
        text = str(override.input_line)
        if override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())[: 1 if swept else 2]
            text, swept = f"{override.key_or_group}={','.join(values)}", True
        kept.append(text)
    return [*kept, "hydra.sweeper.n_trials=1"] if "hydra/sweeper=optuna" in words else kept


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with the tutorial's run and an image, in which commands are run one after another."""
    folder = tmp_path_factory.mktemp("docs")
    Image.new("RGB", (40, 30), "red").save(folder / "photo.png")
    for name, color in (("cat", "red"), ("dog", "blue")):
        (folder / "my_images" / name).mkdir(parents=True)
        for number in range(10):
            image = Image.effect_noise((40, 30 + number), 64).convert("RGB")
            image.paste(color, (10, 10, 20, 20))
            image.save(folder / "my_images" / name / f"{number}.png")
    return folder


@pytest.fixture
def here(workspace, monkeypatch):
    """Run `python -m module` in the workspace, in this process."""
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("CIFARBN_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(module, arguments):
        monkeypatch.setattr("sys.argv", [module, *arguments])
        try:
            main_of(module)()
        except SystemExit as ended:
            assert not ended.code, f"{module} {shlex.join(arguments)}: {ended.code}"

    def first_run():
        """The folder of the tutorial's run, relative to the workspace."""
        for file in sorted(workspace.glob("multirun_outputs/train/*/result.json")):
            result = json.loads(file.read_text())
            if {*FIRST_RUN} <= {*result["overrides"]} and result["status"] == "done":
                return str(file.parent.relative_to(workspace))
        run("cifarbn.train", [*FIRST_RUN, *tiny(FIRST_RUN)])
        return first_run()

    run.first_run = first_run
    return run


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: str(block.page.relative_to(ROOT)))
def test_python_blocks_run(block, here):
    if block.marker != "skip":
        exec(
            compile(
                block.body.replace("RUN", here.first_run() if "RUN" in block.body else ""), str(block.page), "exec"
            ),
            {"__name__": "docs"},
        )


def executable(command):
    if command.marker or command.page.parent == EXTEND:
        return False
    shown = any(word.endswith(".record") for word in command.words)
    return command.module in ("cifarbn.train", "cifarbn.report", "cifarbn.predict") and not shown


# The report in several formats comes first, when there is only one run to draw.
EXECUTABLE = sorted(filter(executable, COMMANDS), key=lambda command: "--format" not in command.words)


@pytest.mark.parametrize("command", {each.words: each for each in EXECUTABLE}.values(), ids=str)
def test_commands_run(command, here):
    words = " ".join(command.arguments)
    if "multirun_outputs/train" in words:
        here.first_run()  # so that there is a run, also if this test runs alone
    arguments = [word.replace("RUN", here.first_run()) if "RUN" in words else word for word in command.arguments]
    if command.module == "cifarbn.train":
        words = [word for word in arguments if not word.startswith("-") and word != "job"]
        flags = [word for word in arguments if word in ("-m", "--cfg", "job")]
        if is_repetition(command):
            here(command.module, [*arguments, "resume=false"])
            return
        quoted = [
            f'{w.partition("=")[0]}="{w.partition("=")[2]}"' if w.startswith(("resume_from=", "init_from=")) else w
            for w in words
        ]
        arguments = [*flags, *shortened(quoted), *tiny(quoted)]
    if command.module == "cifarbn.report":
        arguments += QUICK[: 2 if "--format" in arguments else None]
    here(command.module, arguments)


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_images_exist(page):
    text = BLOCK.sub("", page.read_text())
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text)
    images = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text)
    images += [(alt, src) for src, alt in re.findall(r'<img src="([^"]+)"[^>]*alt="([^"]*)"', text)]
    for alt, image in images:
        assert alt, f"{image} needs a description"
        assert (page.parent / image).is_file(), image
    for link in links:
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_every_page_is_in_the_navigation_of_the_site():
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = re.findall(r"[\w/-]+\.md", text)
    assert len(named) == len(set(named)), "a page is listed twice"
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} <= set(named)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: str(block.page.relative_to(ROOT)))
def test_yaml_blocks_are_yaml(block):
    assert OmegaConf.create(block.body) is not None


def test_the_command_line_page_lists_every_option():
    text = (DOCS / "command-line.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text.partition("## Groups and options")[2], re.MULTILINE))
    for group in (path for path in CONF.iterdir() if path.is_dir() and path.name not in ("experiment", "hydra")):
        documented = set(re.findall(r"`([\w]+)`", rows[group.name]))
        options = {file.stem for file in group.glob("*.yaml")}
        assert options <= documented, f"docs/command-line.md, {group.name}: {options - documented} is missing"
    experiments = text.partition("## Experiments")[2]
    for file in (CONF / "experiment").rglob("*.yaml"):
        assert f"`{file.stem}`" in experiments, f"docs/command-line.md: experiment {file.stem} is missing"
    keys = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"), resolve=False)
    documented = text.partition("## Top-level keys")[2].partition("##")[0]
    for key in keys.keys() - {"defaults", "hydra", "record"}:
        assert f"`{key}`" in documented, f"docs/command-line.md: {key} is missing"


def test_the_run_folder_page_lists_every_field_column_and_status():
    text = (DOCS / "run-folder.md").read_text()
    for name in (*Result.__annotations__, *COLUMNS, *(status.value for status in Status)):
        assert f"`{name}`" in text, f"docs/run-folder.md: {name} is missing"


def test_every_measured_record_is_described():
    text = (ROOT / "multirun_outputs" / "README.md").read_text()
    for folder in ROOT.glob("multirun_outputs/*.record"):
        assert f"`{folder.name}`" in text


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository to which every patch of docs/extend is applied, one after another."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("cifarbn", "conf"):  # with the compiled modules, but no file that is being written
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    (copy / "my_package").mkdir()
    (copy / "my_package" / "__init__.py").touch()
    for block in blocks("diff"):
        applied = subprocess.run(
            ["git", "apply", "-C1", "-"], cwd=copy, input=block.body, text=True, capture_output=True
        )
        assert applied.returncode == 0, f"{block.page.relative_to(ROOT)}: {applied.stderr}"
    return copy


# Runs every command in one process, since most of a short command is its imports.
RUN_ALL = """
import json, sys
import cifarbn.train, cifarbn.report.__main__
for module, arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    try:
        (cifarbn.train if module == "cifarbn.train" else cifarbn.report.__main__).main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{arguments}: {ended.code}")
"""


def test_every_patch_of_the_documentation_works(extended):
    commands = [command for command in COMMANDS if command.page.parent == EXTEND and not command.marker]
    todo = []
    for command in commands:
        arguments = command.arguments
        if command.module == "cifarbn.train":
            own_data = any(word.startswith("data=") for word in arguments)
            arguments += [*TINY, "model.width=4", *(["data.batch_size=16"] if own_data else FEW_IMAGES)]
        elif command.module == "cifarbn.report":
            arguments += QUICK
        todo.append((command.module, arguments))
    assert {command.page.stem for command in commands} == {page.stem for page in EXTEND.glob("*.md")} - {"index"}
    finished = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(todo)],
        cwd=extended,
        env=os.environ | {"PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_every_patch_is_well_formatted(extended):
    """The examples pass the package's own formatter and linter."""
    new = [
        str(extended / path)
        for block in blocks("diff")
        for path in re.findall(r"^\+\+\+ b/(.*\.py)$", block.body, re.M)
    ]
    for command in (["format", "--diff"], ["check", "--select", "E,F,I,UP,B"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), *new]
        finished = subprocess.run(ruff, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    finished = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    loaded = re.compile(r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?https?:")
    for page in (tmp_path / "site").rglob("*.html"):
        assert not loaded.search(page.read_text()), f"{page.name} loads something from the network"
