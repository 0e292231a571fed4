"""An installed wheel has its commands, configs, kernels and the report's page, is typed, and reads `--config-dir`."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def test_a_wheel_works_outside_the_checkout(tmp_path):
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(CHECKOUT))
    (wheel,) = tmp_path.glob("*.whl")
    pip("install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    own = tmp_path / "work" / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\n# Mine.\ndefaults: [override /model: vgg_a_bn]\nname: mine\n")
    # Run in another folder to keep the checkout off the path; Python 3.10 has no -P.
    code = """
import importlib.metadata, sys
import cifarbn
(distribution,) = [each for each in importlib.metadata.distributions(name="cifarbn", path=[sys.argv.pop(1)])]
commands = {each.name: each.load() for each in distribution.entry_points}
print(cifarbn.__file__, *commands)
commands["cifarbn-train"]()
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), "--config-dir", "own", "experiment=mine", "--cfg", "job"],
        cwd=tmp_path / "work",
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert str(tmp_path / "site") in finished.stdout
    for command in ("train", "report", "reproduce", "predict", "benchmark", "tensorboard"):
        assert f"cifarbn-{command}" in finished.stdout
    assert "_target_: cifarbn.models.VGG" in finished.stdout and "\nname: mine\n" in finished.stdout
    package = tmp_path / "site" / "cifarbn"
    assert (package / "py.typed").exists()
    for folder, pattern in (("fast/kernels", "*.[ch]"), ("report", "page.*")):
        shipped = {file.name for file in (package / folder).iterdir()}
        assert shipped >= {file.name for file in (CHECKOUT / "cifarbn" / folder).glob(pattern)} != set()
