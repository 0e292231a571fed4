"""Print the installed packages as constraints for pip, with a marker on those that need a newer Python than cifarbn."""

import re
from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

# torch itself pins the versions of its CUDA packages; pip and setuptools are part of the virtual environment.
LEFT_OUT = re.compile(r"cifarbn|cuda-.*|nvidia-.*|pip|setuptools|triton")
OLDEST, NEWEST = 10, 20  # Python 3.10, as in pyproject.toml


def line(name: str, version: str, requires_python: str | None) -> str:
    """Return one constraint, such as `scipy==1.17.1 ; python_version >= "3.11"`."""
    supported = SpecifierSet(requires_python or "")
    oldest = next(minor for minor in range(OLDEST, NEWEST) if supported.contains(f"3.{minor}.99"))
    return f"{name}=={version}" + (f' ; python_version >= "3.{oldest}"' if oldest > OLDEST else "")


if __name__ == "__main__":
    print("# The versions last tested, by `make newest`. `make quickstart` and `make test` install them.")
    installed = {
        each.metadata["Name"]: line(each.metadata["Name"], each.version, each.metadata["Requires-Python"])
        for each in distributions()
        if not LEFT_OUT.fullmatch(each.metadata["Name"])
    }
    print("\n".join(installed[name] for name in sorted(installed, key=str.lower)))
