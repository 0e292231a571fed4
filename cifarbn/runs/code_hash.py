"""The code that a run computes with: a hash of every module that affects its numbers."""

import ast
import hashlib
import importlib
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
# Every run computes with these modules.
ROOTS = tuple(
    f"{PACKAGE}.{name}"
    for name in ("train", "training.classifier", "training.trainer", "training.callbacks.metrics_logger")
)
# Modules that print, draw or store results, but compute nothing of them. A package includes all of its modules.
NOT_COMPUTING = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        *(
            "cli",
            "durable",
            "errors",
            "figures",
            "runs",
            "terminal",
            "fast.cgroup",
            "fast.cores",
            "fast.threads",
            "training.loggers",
            "training.lost_parent",
        ),
        "training.preflight",
        *(f"training.callbacks.{name}" for name in ("progress", "resume_checkpoint", "thread_watch", "timing")),
    )
)
# result.json holds the versions of these packages, so they never count as the user's code, even as a checkout.
VERSIONED = frozenset(
    ("hydra", "lightning", "numpy", "omegaconf", "pytorch_lightning", "torch", "torchmetrics", "torchvision")
)
NATIVE = frozenset((".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp"))


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Return module -> hash of its code, for each module that a run of this config computes with.

    These are the modules that every run needs, the modules in which the config's `_target_`s are found and defined, and
    everything they import, directly or indirectly, from this package or from the user's own code. The user's own code
    is any module that is neither installed nor part of Python; for installed packages, result.json holds the versions.
    Comments, docstrings, formatting and the version of Python do not affect the hash. Imports by a call, such as
    `importlib.import_module(name)`, are not detected.

    Args:
        config: a run's config, with values resolved.
    """
    hashes: dict[str, str] = {}
    waiting = {*ROOTS, *(module for target in targets(config) for module in _modules_of_target(target))}
    while waiting:
        module = waiting.pop()
        if module in hashes or _computes_nothing(module) or (file := _file(module)) is None:
            continue
        hashes[module], imports = _read(file)
        for level, base, name in imports:
            waiting |= _modules_of_import(_absolute(module, level, base), name)
    return dict(sorted(hashes.items()))


def read_imported() -> None:
    """Read the code of the imported modules of this package, so that a later change of the files has no effect.

    Processes that are forked from this one, maybe days later, execute and hash the same code.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith(f"{PACKAGE}.") and file and not _computes_nothing(name):
            _read(Path(file))


def targets(node: Any) -> Iterator[str]:
    """Yield every `_target_` of a config."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            yield target
            # hydra.utils.get_class and similar functions import the object that their path names.
            if target.startswith("hydra.utils.get_") and isinstance(node.get("path"), str):
                yield node["path"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from targets(child)


def _modules_of_target(target: str) -> set[str]:
    """Return the modules in which a `_target_` is found and defined (up to two); empty if it cannot be found."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if _spec(module) is None:
            continue
        try:
            target_object = importlib.import_module(module)
            for attribute in parts[length:]:
                target_object = getattr(target_object, attribute)
        except Exception:
            break  # instantiating it will raise the error
        defined = getattr(target_object, "__module__", None)
        return _modules_of_import(module, parts[length]) | ({defined} if isinstance(defined, str) else set())
    return set()


def _modules_of_import(base: str, name: str | None) -> set[str]:
    """Return the modules that `from base import name` runs, or `import base` if `name` is None.

    The packages of this project only re-export names of their modules, so importing one name depends on its module
    alone.
    """
    spec = _spec(base)
    if base.partition(".")[0] == PACKAGE and spec and spec.origin and spec.submodule_search_locations is not None:
        if name is not None and _spec(f"{base}.{name}"):
            return _modules_of_import(f"{base}.{name}", None)
        exports = {alias: module for _, module, alias in _read(Path(spec.origin))[1]}
        return {module for alias, module in exports.items() if name in (None, alias)}
    module = base if name is None or _spec(f"{base}.{name}") is None else f"{base}.{name}"
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def _absolute(module: str, level: int, base: str) -> str:
    """Return the absolute name of the module in `from <level dots>base import ...`, as written in `module`."""
    if level == 0:
        return base
    spec = _spec(module)
    package = module.split(".") if spec and spec.submodule_search_locations is not None else module.split(".")[:-1]
    package = package[: len(package) - (level - 1)]
    return ".".join([*package, base] if base else package)


def _computes_nothing(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:length]) in NOT_COMPUTING for length in range(1, len(parts) + 1))


def _file(module: str) -> Path | None:
    """Return the file of a module of this package or of the user; None for installed modules or without a file."""
    spec = _spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    if module.partition(".")[0] == PACKAGE:
        return Path(spec.origin) if spec.submodule_search_locations is None else None
    return Path(spec.origin)


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Find a module of this package or of the user without importing anything; None for any other module."""
    parent, _, _ = module.rpartition(".")
    try:
        if parent:
            above = _spec(parent)
            folders = above.submodule_search_locations if above else None
            return PathFinder.find_spec(module, list(folders)) if folders is not None else None
        if module == "__main__":  # a script that calls `cifarbn.train.train` itself
            file = getattr(sys.modules["__main__"], "__file__", None)
            return ModuleSpec(module, None, origin=str(Path(file).absolute())) if file else None
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return None if spec is None or (module != PACKAGE and _is_installed(module, spec)) else spec


def _is_installed(module: str, spec: ModuleSpec) -> bool:
    if module in VERSIONED or module in sys.stdlib_module_names:
        return True
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return any(
        {"site-packages", "dist-packages"} & {*Path(place).parts} or any(map(Path(place).is_relative_to, _installed()))
        for place in places
    )


@cache
def _installed() -> tuple[Path, ...]:
    """Return the folders of installed packages: Python's own, and those on `sys.path` that hold a `*.dist-info`."""
    known = {*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), site.getusersitepackages()}
    written = {folder for folder in sys.path if folder and any(Path(folder).glob("*.dist-info"))}
    return tuple(map(Path, known | written))


@cache
def _read(file: Path) -> tuple[str, frozenset[tuple[int, str, str | None]]]:
    """Return a file's hash, including any C files in its folder, and its imports as (dots, module, name or None).

    Files that are not Python are hashed byte for byte and import nothing.
    """
    content = file.read_bytes()
    native = b"".join(other.read_bytes() for other in sorted(file.parent.iterdir()) if other.suffix in NATIVE)
    try:
        tree = ast.parse(content) if file.suffix == ".py" else None
    except (SyntaxError, ValueError):
        tree = None
    imports: set[tuple[int, str, str | None]] = set()
    if tree:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imports |= {(0, alias.name, None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {None if alias.name == "*" else alias.name for alias in node.names}
                imports |= {(node.level, node.module or "", name) for name in names}
            elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:]
        content = "".join(_canonical(tree)).encode()
    return hashlib.sha256(content + native).hexdigest()[:12], frozenset(imports)


def _canonical(tree: ast.AST) -> Iterator[str]:
    """Yield a text of the syntax tree that is the same in every version of Python, unlike `ast.dump`.

    Versions differ in empty fields (3.12 has new ones, 3.13 does not print them), in how they split the text of an
    f-string, and in the characters that `repr` escapes.
    """
    waiting: list[Any] = [tree]  # an explicit stack: expressions may be nested deeper than Python's recursion limit
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Token):
            yield item
        elif isinstance(item, list):
            waiting += [_Token("]"), *reversed(item), _Token("[")]
        elif isinstance(item, ast.AST):
            fields = []
            for name, value in sorted(ast.iter_fields(item)):
                if isinstance(item, ast.JoinedStr):
                    value = _joined(value)
                empty = value is None or (isinstance(value, (list, ast.JoinedStr)) and not _content(value))
                if name not in ("kind", "type_comment") and not empty:
                    fields += [_Token(f"{name}="), value, _Token(",")]
            waiting += [_Token(")"), *reversed(fields), _Token(f"{type(item).__name__}(")]
        else:  # `repr` raises an error for integers of more than 4,300 digits
            yield hex(item) if type(item) is int else ascii(item)


class _Token(str):
    """Punctuation of the canonical text, as opposed to a string of the code."""


def _content(value: Any) -> list[Any]:
    return _joined(value.values) if isinstance(value, ast.JoinedStr) else value


def _joined(pieces: list[Any]) -> list[Any]:
    """Return the pieces of an f-string, with adjacent texts joined and empty ones removed."""
    joined: list[Any] = []
    for piece in pieces:
        text = str(piece.value) if isinstance(piece, ast.Constant) else None
        if text == "":
            continue
        if text is not None and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(str(joined[-1].value) + text)
        else:
            joined.append(piece)
    return joined
