"""Import contracts, checked on the source: they keep each part of the package usable without the others."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cifarbn

PACKAGE = "cifarbn"

# Known violations that will be removed, such as "models.vgg -> fast.batch_norm". The test fails if an entry no longer
# applies; remove it then.
KNOWN: set[str] = set()

LEAVES = ("models", "losses", "smoothness", "figures", "runs.schema")
LEAVES_MAY_IMPORT = ("errors",)
FIGURES_MAY_IMPORT = ("smoothness.bands", "smoothness.factors")  # the dataclasses that figures draw
KNOW_HYDRA = (
    *("train", "reproduce", "cli", "runs.load"),
    *("benchmark.checks", "benchmark.speedrun_recipe"),  # they compose experiments of conf/ like the command line
)
COMMANDS = ("train", "reproduce", "predict", "tensorboard", "benchmark", "report.__main__", "cli")
NO_NAMES = ("utils", "helpers", "common")


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Return whether a module is one of the packages or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def allowed(module: str) -> tuple[str, ...]:
    """Return what a module of LEAVES may import; () for any other module."""
    own = tuple(package for package in LEAVES if within(module, (package,)))
    return own and (*own, *LEAVES_MAY_IMPORT, *(FIGURES_MAY_IMPORT if own == ("figures",) else ()))


# Each rule returns whether an import (module, target) is forbidden. Names omit the leading "cifarbn.".
RULES: dict[str, Callable[[str, str], bool]] = {
    "models, losses, smoothness, figures and runs.schema import nothing of the package but errors and types": (
        lambda module, target: bool(allowed(module)) and not within(target, allowed(module))
    ),
    "report and figures import neither training, recorders nor fast": (
        lambda module, target: (
            within(module, ("report", "figures")) and within(target, ("training", "recorders", "fast"))
        )
    ),
    "optimizers imports nothing but errors and fast.hardware": (
        lambda module, target: module == "optimizers" and target not in ("errors", "fast.hardware")
    ),
    "only commands import cli": lambda module, target: within(target, ("cli",)) and not within(module, COMMANDS),
}


def imports(root: Path) -> dict[str, set[str]]:
    """Return the modules of the package in `root` and the imports of each, including those inside functions."""
    modules = {".".join(file.relative_to(root).with_suffix("").parts): file for file in root.glob(f"{PACKAGE}/**/*.py")}
    packages = {name.removesuffix(".__init__"): file for name, file in modules.items()}
    return {name: set(_imported(name, file, packages)) for name, file in packages.items()}


def _imported(name: str, file: Path, modules: dict[str, Path]) -> Iterator[str]:
    parts = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) + 1 - node.level]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield whole if whole in modules else source


def arrows(root: Path) -> set[tuple[str, str]]:
    """Return (module, target) for each import within the package, without the package's name."""
    return {
        (module.removeprefix(f"{PACKAGE}."), target.removeprefix(f"{PACKAGE}."))
        for module, targets in imports(root).items()
        for target in targets
        if target.startswith(f"{PACKAGE}.") and module != PACKAGE
    }


def violations(root: Path) -> dict[str, str]:
    """Return each forbidden import, such as `models.vgg -> fast.batch_norm`, with its rule."""
    broken = {
        f"{module} -> {target}": rule
        for module, target in arrows(root)
        for rule, forbids in RULES.items()
        if forbids(module, target)
    }
    for module, targets in imports(root).items():
        name = module.removeprefix(f"{PACKAGE}.")
        if any(within(target, ("hydra", "omegaconf")) for target in targets) and not within(name, KNOW_HYDRA):
            broken[f"{name} -> hydra"] = "only train, reproduce, cli and runs.load import Hydra"
        if bad := set(name.split(".")) & set(NO_NAMES):
            broken[name] = f"no module is called {bad.pop()}"
    return broken


def cycle(edges: set[tuple[str, str]]) -> list[str]:
    """Return one import cycle of the package's parts, such as [cli, training, cli]; [] if there is none."""
    graph: dict[str, set[str]] = {}
    for module, target in edges:
        part, other = module.split(".")[0], target.split(".")[0]
        if part != other:
            graph.setdefault(part, set()).add(other)
    done: set[str] = set()

    def visit(part: str, path: list[str]) -> list[str]:
        if part in path:
            return [*path[path.index(part) :], part]
        if part not in done:
            for other in sorted(graph.get(part, ())):
                if closed := visit(other, [*path, part]):
                    return closed
            done.add(part)
        return []

    return next(filter(None, (visit(part, []) for part in sorted(graph))), [])


ROOT = Path(cifarbn.__file__).parents[1]


def test_every_import_is_allowed():
    broken = {name: rule for name, rule in violations(ROOT).items() if name not in KNOWN}
    assert not broken, "\n".join(f"{name}: {rule}" for name, rule in sorted(broken.items()))


def test_every_known_violation_still_exists():
    assert not KNOWN - violations(ROOT).keys(), "no longer violated: remove it from KNOWN"


def test_no_two_parts_of_the_package_import_each_other():
    known = {tuple(each.split(" -> ")) for each in KNOWN}
    assert cycle(arrows(ROOT) - known) == []


@pytest.fixture
def tree(tmp_path):
    """A small package that violates no rule."""
    files = {
        "__init__": "",
        "errors": "",
        "losses": "from cifarbn.errors import UserError",
        "models/__init__": "from cifarbn.models.vgg import VGG",
        "models/vgg": "import torch\nfrom cifarbn.models import types",
        "models/types": "",
        "fast/__init__": "",
        "fast/hardware": "from ..losses import Loss",
        "optimizers": "from cifarbn.fast.hardware import has_bf16",
        "train": "import hydra\nfrom cifarbn.training import trainer",
        "training/__init__": "",
        "training/trainer": "",
        "report/__init__": "",
        "report/__main__": "from cifarbn.cli import errors",
        "cli/__init__": "from omegaconf import DictConfig",
        "cli/errors": "",
    }
    for name, text in files.items():
        file = tmp_path / PACKAGE / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_a_package_without_violations_passes(tree):
    assert violations(tree) == {} and cycle(arrows(tree)) == []


@pytest.mark.parametrize(
    ("name", "text", "violation"),
    [
        ("models/vgg", "from cifarbn.fast.hardware import has_bf16", "models.vgg -> fast.hardware"),
        ("models/vgg", "def f():\n    import cifarbn.fast.hardware", "models.vgg -> fast.hardware"),
        ("models/vgg", "from ..fast import hardware", "models.vgg -> fast.hardware"),
        ("models/vgg", "from cifarbn.smoothness.bands import SeedBand", "models.vgg -> smoothness.bands"),
        ("losses", "from cifarbn import optimizers", "losses -> optimizers"),
        ("runs/schema", "from cifarbn.runs import folder", "runs.schema -> runs"),
        ("report/page", "from cifarbn.training.trainer import make", "report.page -> training.trainer"),
        ("figures/curves", "import cifarbn.report", "figures.curves -> report"),
        ("optimizers", "from cifarbn.fast.batch_norm import BatchNorm2d", "optimizers -> fast.batch_norm"),
        ("training/trainer", "from cifarbn.cli.errors import friendly", "training.trainer -> cli.errors"),
        ("training/trainer", "from hydra.utils import instantiate", "training.trainer -> hydra"),
        ("report/page", "import omegaconf.errors", "report.page -> hydra"),
        ("training/utils", "", "training.utils"),
        ("helpers/text", "", "helpers.text"),
    ],
)
def test_a_planted_violation_is_detected(tree, name, text, violation):
    file = tree / PACKAGE / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    (tree / PACKAGE / "fast" / "batch_norm.py").touch()
    file.write_text(text)
    assert set(violations(tree)) == {violation}


def test_a_planted_cycle_is_detected(tree):
    (tree / PACKAGE / "training" / "trainer.py").write_text("def f():\n    from cifarbn import train")
    assert cycle(arrows(tree)) == ["train", "training", "train"]
