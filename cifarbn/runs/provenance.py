"""What a result depends on in addition to its config: package versions and the commit of this checkout."""

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from cifarbn.runs.code_hash import VERSIONED, targets
from cifarbn.runs.schema import Result

PACKAGES = ("cifarbn", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")
LOADS = {"cifarbn.models.external.timm_model": "timm"}  # `_target_` -> the module in which the model is


def environment(config: Mapping[str, Any] | None = None) -> Result:
    """Return the versions of Python and the packages, and the commit of this checkout.

    Args:
        config: a run's config; the installed packages of its `_target_`s are included.
    """
    modules = {LOADS.get(target, target).partition(".")[0] for target in targets(config)}
    others: set[str] = set()
    if unusual := modules - {*VERSIONED, "cifarbn"}:
        others = {package for module in unusual for package in _packages().get(module, [module])}
    versions = {name: _version(name) or "not installed" for name in PACKAGES}
    versions |= {name: found for name in sorted(others) if (found := _version(name))}
    return {"versions": {"python": platform.python_version(), **versions}, "git_commit": _git_commit()}


@cache
def _packages() -> Mapping[str, list[str]]:
    """Return module -> the installed packages that contain it, which takes 0.2 s; incomplete in Python 3.10."""
    return packages_distributions()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):  # a checkout or a module that is not installed, or no module at all
        return None


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
