"""What counts as the code of a run, and what does not."""

import hashlib

import pytest

from cifarbn.sources import _read, sources

CONFIG = {
    "model": {"_target_": "cifarbn.models.VGG", "activation": {"_target_": "torch.nn.ReLU"}},
    "data": {"_target_": "cifarbn.data.CIFAR10"},
    "record": {"probe": {"_target_": "cifarbn.recorders.GradientProbe"}},
}


def test_modules_are_those_that_compute_and_whatever_they_import():
    found = set(sources(CONFIG))
    assert {"cifarbn.train", "cifarbn.classifier", "cifarbn.hardware"} <= found
    assert {"cifarbn.models.vgg", "cifarbn.models.initialization", "cifarbn.data.loader"} <= found
    assert {"cifarbn.recorders.gradient_probe", "cifarbn.smoothness.walk"} <= found
    # Another net, a recorder that is off, what only shows or keeps, and packages, whose versions a result has.
    assert not {"cifarbn.models.resnet", "cifarbn.recorders.step_change", "cifarbn.runs", "cifarbn.figures"} & found
    assert all(name.startswith("cifarbn.") for name in found)


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
    assert "cifarbn.kernels.library" in sources(CONFIG)


def test_a_net_of_the_user_s_own_counts(tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text("width = 8\n")
    (tmp_path / "my_nets.py").write_text("import my_layers\n\n\nclass Net:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = sources({"model": {"_target_": "my_nets.Net"}})
    assert "my_nets" in found and "torch" not in found


def test_a_target_that_does_not_exist_is_left_to_whoever_makes_it():
    assert sources({"model": {"_target_": "cifarbn.models.Nothing"}}) == sources({})
