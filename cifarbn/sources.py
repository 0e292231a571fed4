"""Which code a run computes with: a hash of every module that has a say in its numbers."""

import ast
import hashlib
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
# Every run computes with these, whatever its config says.
ROOTS = tuple(f"{PACKAGE}.{name}" for name in ("train", "classifier", "hardware", "recorders.step_history"))
# They say, show or keep what a run computes; they do not compute.
BYSTANDERS = frozenset(
    f"{PACKAGE}.{name}" for name in ("command_line", "errors", "figures", "progress", "runs", "sources", "sweep")
)


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Module -> a hash of its code, for each module that a run of this config computes with.

    These are the ones every run needs, the ones that define the config's `_target_`s, and whatever they import of this
    package or, for a target of the user's own, of theirs. Installed packages are not among them, for a result has
    their versions. Comments, docstrings and the layout of the text do not count. A hash is of this Python version's
    syntax tree, so another version may give another one.

    Args:
        config: a run's, with values resolved.
    """
    found: dict[str, str] = {}
    waiting = {*ROOTS, *map(_defining_module, _targets(config))}
    while waiting:
        name = waiting.pop()
        if name in found or name in BYSTANDERS or (file := _file(name)) is None:
            continue
        found[name], imported = _read(file)
        waiting |= {other for other in imported if other.partition(".")[0] in (PACKAGE, name.partition(".")[0])}
    return dict(sorted(found.items()))


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for child in node.values():
            yield from _targets(child)


def _defining_module(target: str) -> str:
    """The module in which a `_target_` is defined, which need not be the one that it is taken from; "" if unknown."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(getattr(importlib.import_module(module), name), "__module__", None) or module
    except (ImportError, AttributeError, ValueError):
        return ""  # instantiating it will say what is wrong


@cache
def _file(module: str) -> Path | None:
    """The file of a module of this package or of the user's; None for installed ones, packages and what is none."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py") or spec.submodule_search_locations:
        return None
    file = Path(spec.origin)
    ours = module.partition(".")[0] == PACKAGE
    return file if ours or not {"site-packages", "dist-packages"} & {*file.parts} and not _standard(file) else None


def _standard(file: Path) -> bool:
    return file.is_relative_to(Path(ast.__file__).parent)


@cache
def _read(file: Path) -> tuple[str, frozenset[str]]:
    """A file's hash, with that of any C beside it, and everything that may be a module among what it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    native = b"".join(other.read_bytes() for other in sorted(file.parent.glob("*.[ch]")))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode() + native).hexdigest()[:12], frozenset(imported)
