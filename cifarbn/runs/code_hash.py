"""Which code a run computes with: a hash of every module that has a say in its numbers."""

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
# Every run computes with these, whatever its config says.
ROOTS = tuple(
    f"{PACKAGE}.{name}"
    for name in ("train", "training.classifier", "training.trainer", "training.callbacks.metrics_logger")
)
# They say, show or keep what a run computes; they do not compute. A package stands for all that is in it.
BYSTANDERS = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        *("cli", "errors", "figures", "runs", "fast.cores", "fast.threads", "training.preflight"),
        *(
            f"training.callbacks.{name}"
            for name in ("progress", "resume_checkpoint", "tensorboard_log", "thread_watch", "timing")
        ),
    )
)
# A result has their versions, also where they are installed from a checkout.
VERSIONED = frozenset(
    ("hydra", "lightning", "numpy", "omegaconf", "pytorch_lightning", "torch", "torchmetrics", "torchvision")
)
NATIVE = frozenset((".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp"))


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Module -> a hash of its code, for each module that a run of this config computes with.

    These are the modules that every run needs, those that the config's `_target_`s are taken from and defined in, and
    all that they import, directly or through others, of this package or of the user's own code: whatever is neither
    installed nor part of Python, wherever it lies. A result has the versions of the packages. Comments, docstrings and
    the layout of the text do not count, nor does the version of Python. An import that is made by a call, such as
    `importlib.import_module(name)`, is not seen.

    Args:
        config: a run's, with values resolved.
    """
    hashes: dict[str, str] = {}
    waiting = {*ROOTS, *(module for target in _targets(config) for module in _modules_of_target(target))}
    while waiting:
        module = waiting.pop()
        if module in hashes or _is_bystander(module) or (file := _file(module)) is None:
            continue
        hashes[module], imports = _read(file)
        for level, base, name in imports:
            waiting |= _modules_of_import(_absolute(module, level, base), name)
    return dict(sorted(hashes.items()))


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            yield target
            # hydra.utils.get_class and its like take what their path names.
            if target.startswith("hydra.utils.get_") and isinstance(node.get("path"), str):
                yield node["path"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _targets(child)


def _modules_of_target(target: str) -> set[str]:
    """The modules in which a `_target_` is found and defined, which may be two; empty if it cannot be found."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if _spec(module) is None:
            continue
        try:
            thing = importlib.import_module(module)
            for attribute in parts[length:]:
                thing = getattr(thing, attribute)
        except Exception:
            break  # instantiating it will say what is wrong
        defined = getattr(thing, "__module__", None)
        return _modules_of_import(module, parts[length]) | ({defined} if isinstance(defined, str) else set())
    return set()


def _modules_of_import(base: str, name: str | None) -> set[str]:
    """All that `from base import name` runs, or `import base` where there is no name.

    A package of this project's own only hands on what its modules define: whoever imports one name of it does not
    depend on the others.
    """
    spec = _spec(base)
    if base.partition(".")[0] == PACKAGE and spec and spec.origin and spec.submodule_search_locations is not None:
        if name is not None and _spec(f"{base}.{name}"):
            return _modules_of_import(f"{base}.{name}", None)
        exports = {alias: module for _, module, alias in _read(Path(spec.origin))[1]}
        return {module for alias, module in exports.items() if name in (None, alias)}
    whole = base if name is None or _spec(f"{base}.{name}") is None else f"{base}.{name}"
    parts = whole.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def _absolute(module: str, level: int, base: str) -> str:
    """The name of the module that `from <level dots>base import ...` in `module` means."""
    if level == 0:
        return base
    spec = _spec(module)
    package = module.split(".") if spec and spec.submodule_search_locations is not None else module.split(".")[:-1]
    package = package[: len(package) - (level - 1)]
    return ".".join([*package, base] if base else package)


def _is_bystander(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:length]) in BYSTANDERS for length in range(1, len(parts) + 1))


def _file(module: str) -> Path | None:
    """The file of a module of this package or of the user's; None for installed ones and for what has no file."""
    spec = _spec(module)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    if module.partition(".")[0] == PACKAGE:
        return Path(spec.origin) if spec.submodule_search_locations is None else None
    return Path(spec.origin)


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where a module of this package or of the user's is, found without importing anything; None for any other."""
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
    """The folders of installed packages: those that Python knows, and those on the path that pip has written to."""
    known = {*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), site.getusersitepackages()}
    written = {folder for folder in sys.path if folder and any(Path(folder).glob("*.dist-info"))}
    return tuple(map(Path, known | written))


@cache
def _read(file: Path) -> tuple[str, frozenset[tuple[int, str, str | None]]]:
    """A file's hash, with that of any C beside it, and what it imports: (dots, module, name or None).

    What is not Python counts byte for byte and imports nothing.
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
    """A text of the tree that is the same in every version of Python; `ast.dump`'s is not.

    Versions differ in fields that are empty (3.12 has new ones, 3.13 does not print them), in how many pieces they cut
    the text of an f-string, and in which characters `repr` shows as they are.
    """
    waiting: list[Any] = [tree]  # a stack of its own: expressions may be nested deeper than Python's
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
        else:  # `repr` refuses an integer of more than 4,300 digits
            yield hex(item) if type(item) is int else ascii(item)


class _Token(str):
    """Punctuation of the canonical text, as opposed to a string of the code."""


def _content(value: Any) -> list[Any]:
    return _joined(value.values) if isinstance(value, ast.JoinedStr) else value


def _joined(pieces: list[Any]) -> list[Any]:
    """The pieces of an f-string, with neighbouring texts joined and empty ones left out."""
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
