"""What counts as the code of a run, and what does not."""

import hashlib
import sys
from pathlib import Path

import pytest

from cifarbn.runs import code_hash as module
from cifarbn.runs.code_hash import _read, sources

CONFIG = {
    "model": {"_target_": "cifarbn.models.VGG", "activation": {"_target_": "torch.nn.ReLU"}},
    "data": {"_target_": "cifarbn.data.CIFAR10"},
    "record": {"probe": {"_target_": "cifarbn.recorders.GradientProbe"}},
}


def test_modules_are_those_that_compute_and_for_any_they_import():
    found = set(sources(CONFIG))
    assert {"cifarbn.train", "cifarbn.training.classifier", "cifarbn.fast.hardware"} <= found
    assert {"cifarbn.models.vgg", "cifarbn.models.init", "cifarbn.data.loader"} <= found
    assert {"cifarbn.recorders.gradient_probe", "cifarbn.smoothness.directional_probe"} <= found
    # Not: another model, a recorder that is not used, modules that compute nothing, installed packages.
    assert (
        not {"cifarbn.models.resnet", "cifarbn.recorders.step_change", "cifarbn.runs.folder", "cifarbn.figures"} & found
    )
    computing = {"train", "training", "data", "fast", "models", "losses", "optimizers", "recorders", "smoothness"}
    assert {tuple(name.split(".")[:2]) for name in found} <= {("cifarbn", part) for part in computing}


CODE = '''"""A module."""


def area(width: float) -> float:
    """Of a square."""
    return width**2
'''


def hash_of(folder, text):
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.py"
    file.write_text(text)
    return _read(file)[0]


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("A module", "Another docstring", False),
        ("Of a square", "In square metres", False),
        ("    return", "    # a comment\n\n    return", False),
        ("width**2", "(width ** 2)", False),
        ("width**2", "width**3", True),
        ("width**2", "2 * width", True),
    ],
)
def test_only_code_counts(tmp_path, old, new, counts):
    assert old in CODE
    assert (hash_of(tmp_path, CODE.replace(old, new)) != hash_of(tmp_path, CODE)) == counts


def test_c_beside_a_module_counts(tmp_path):
    (tmp_path / "other.c").write_text("int one = 1;")
    before = hash_of(tmp_path, CODE)
    (tmp_path / "other.c").write_text("int one = 2;")
    _read.cache_clear()
    assert hash_of(tmp_path, CODE) != before
    assert "cifarbn.fast.kernels.library" in sources(CONFIG)


def test_a_hash_is_the_same_in_every_version_of_python(tmp_path):
    # Verified with Python 3.10.13, 3.11.7, 3.12.1 and 3.13.0; so were all 609 modules and tests of 3.10's own library.
    assert hash_of(tmp_path, (Path(__file__).parent / "every_syntax.txt").read_text()) == "a02f6da8afbb"


def test_an_expression_nested_deeper_than_python_s_stack_counts(tmp_path):
    text = "x = " + " + ".join(["1"] * 2500)
    assert hash_of(tmp_path, text) != hash_of(tmp_path, text + " + 2")


def test_what_is_not_python_counts_byte_for_byte(tmp_path):
    assert hash_of(tmp_path, "print 1") != hash_of(tmp_path, "print  1")


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The user's own code: a maker of files under a folder that is on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    # Only the user's files change between two calls, so the package's own are read once.
    read, package = module._read.__wrapped__, Path(module.__file__).parents[1]
    monkeypatch.setattr(module, "_read", lambda file: (_read if file.is_relative_to(package) else read)(file))

    def forget():
        for cached in (module._spec, module._installed):
            cached.cache_clear()
        for name in set(sys.modules) - before:
            del sys.modules[name]

    def write(**texts):
        """Keys are module names with __ for a dot; returns the hashes of a run of `mine.Model`."""
        for name, text in texts.items():
            file = tmp_path / f"{name.replace('__', '/')}.py".replace("/INIT", "/__init__")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        forget()
        found = sources({"model": {"_target_": "mine.Model"}})
        return {name: value for name, value in found.items() if not name.startswith("cifarbn.")}

    forget()
    yield write
    forget()


MODEL = "class Model:\n    pass\n"


@pytest.mark.parametrize(
    ("files", "counted"),
    [
        ({"mine": MODEL}, {"mine"}),
        # Another top-level module, through any number of others.
        (
            {"mine": "import layers\n" + MODEL, "layers": "import sizes", "sizes": "width = 8"},
            {"mine", "layers", "sizes"},
        ),
        ({"mine": "from layers import *\n" + MODEL, "layers": ""}, {"mine", "layers"}),
        # Where an import stands does not matter.
        ({"mine": MODEL + "    def f(self):\n        import layers", "layers": ""}, {"mine", "layers"}),
        ({"mine": MODEL + "if False:\n    from layers import a", "layers": ""}, {"mine", "layers"}),
        (
            {"mine": MODEL + "try:\n    import gone, layers\nexcept ImportError:\n    pass", "layers": ""},
            {"mine", "layers"},
        ),
        # A package: what its __init__ does counts, for it runs.
        (
            {"mine__INIT": "from mine.core import Model", "mine__core": MODEL, "mine__other": ""},
            {"mine", "mine.core"},
        ),
        (
            {"mine": "import p.a\n" + MODEL, "p__INIT": "import setup_", "p__a": "", "setup_": ""},
            {"mine", "p", "p.a", "setup_"},
        ),
        # Relative imports, of one level and of two, of a module and of a name in it.
        (
            {"mine__INIT": "from .core import Model", "mine__core": "from . import a\nfrom .b import c\n" + MODEL}
            | {"mine__a": "", "mine__b__INIT": "from ..d import e\nc = 1", "mine__d": "e = 1"},
            {"mine", "mine.core", "mine.a", "mine.b", "mine.d"},
        ),
        (
            {
                "mine__INIT": "from .core import *",
                "mine__core": "from .a.b import c\n" + MODEL,
                "mine__a__INIT": "",
                "mine__a__b": "c = 1",
            },
            {"mine", "mine.core", "mine.a", "mine.a.b"},
        ),
        # A package without an __init__.
        (
            {"mine": "import space.a\nfrom space import b\n" + MODEL, "space__a": "", "space__b": ""},
            {"mine", "space.a", "space.b"},
        ),
        # The name that the target has, and where it is defined.
        ({"mine": "from layers import Model", "layers": MODEL}, {"mine", "layers"}),
        # Python's own and installed packages do not.
        ({"mine": "import json, torch.nn, yaml, hydra.utils\nfrom numpy import linalg\n" + MODEL}, {"mine"}),
    ],
)
def test_every_module_of_the_user_s_counts(user, files, counted):
    before = user(**files)
    assert set(before) == counted
    for name in files:  # and a change of any of them is seen
        after = user(**{name: files[name] + "\nchanged = 1\n"})
        imported = name.replace("__INIT", "").replace("__", ".")
        assert {key for key in counted if after[key] != before[key]} == {imported} & counted
        user(**{name: files[name]})


def test_an_installed_package_is_recognised_by_what_pip_writes_beside_it(user, tmp_path, monkeypatch):
    target = tmp_path / "anywhere"
    (target / "wheel_.dist-info").mkdir(parents=True)
    (target / "wheel_.py").write_text("")
    monkeypatch.syspath_prepend(target)
    assert set(user(mine="import wheel_\n" + MODEL)) == {"mine"}


def test_a_model_of_the_user_s_counts_what_it_takes_of_this_package(user):
    user(mine="from cifarbn.models import VGG as Model\n")
    found = set(sources({"model": {"_target_": "mine.Model"}}))
    assert {"mine", "cifarbn.models.vgg"} <= found and "cifarbn.models.resnet" not in found
    user(mine="from cifarbn import models\nModel = models.VGG\n")
    assert {"cifarbn.models.vgg", "cifarbn.models.resnet"} <= set(sources({"model": {"_target_": "mine.Model"}}))


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"_target_": "mine.Model.small"}},
        {"model": {"_target_": "mine.Maker"}},
        {"model": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "mine.Model"}]}},
        {
            "model": {
                "_target_": "torch.nn.ReLU",
                "kind": {"_target_": "hydra.utils.get_class", "path": "mine.Model"},
            }
        },
    ],
)
def test_a_target_may_be_anywhere_in_the_config_and_a_method_or_an_object(user, config):
    small = "    @classmethod\n    def small(cls):\n        return cls()\n"
    user(mine=f"import functools\n{MODEL}{small}Maker = functools.partial(Model)\n")
    assert "mine" in sources(config)


def test_a_target_that_does_not_exist_is_left_to_whoever_makes_it():
    assert sources({"model": {"_target_": "cifarbn.models.Nothing"}}) == sources({})
