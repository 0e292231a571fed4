"""What a result depends on in addition to its config: package versions and the commit of this checkout."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cifarbn.runs.schema import Result

PACKAGES = ("cifarbn", "torch", "torchvision", "pytorch-lightning", "hydra-core", "torchmetrics")


def environment() -> Result:
    """Return the versions of Python and the packages, and the commit of this checkout."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return {"versions": versions, "git_commit": _git_commit()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on PYTHONPATH that is not installed
        return "not installed"


def _git_commit() -> str | None:
    """Return the checkout's commit, with `+changes` if files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return None  # installed inside another repository
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
