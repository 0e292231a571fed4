"""An installed wheel contains the configs, the kernels and the report's page."""

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
    # Run in an empty folder to keep the checkout off the path; Python 3.10 has no -P.
    code = "import cifarbn, cifarbn.train; print(cifarbn.__file__); cifarbn.train.main()"
    finished = subprocess.run(
        [sys.executable, "-c", code, "data=shapes", "model=vgg_a_bn", "--cfg", "job"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert str(tmp_path / "site") in finished.stdout
    assert "_target_: cifarbn.models.VGG" in finished.stdout
    package = tmp_path / "site" / "cifarbn"
    for folder, pattern in (("fast/kernels", "*.[ch]"), ("report", "page.*")):
        shipped = {file.name for file in (package / folder).iterdir()}
        assert shipped >= {file.name for file in (CHECKOUT / "cifarbn" / folder).glob(pattern)} != set()
