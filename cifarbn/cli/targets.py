"""Instantiate the objects that a config describes, with one clear error for each mistake in it."""

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate
from torch import nn
from torch.nn.parameter import UninitializedParameter

from cifarbn.cli.custom import GROUPS
from cifarbn.cli.errors import instantiation_errors
from cifarbn.errors import UserError
from cifarbn.runs.identity import CUSTOM


def build(key: str, config: Mapping[str, Any]) -> Any:
    """Instantiate a part of the config after checking its `_target_`s and their arguments.

    Args:
        key: key of the part, such as "optim".
        config: the part, with all interpolations resolved.

    Raises:
        UserError: If a target cannot be imported, its arguments do not fit, or it raises an exception.
    """
    for node_key, node in _nodes(key, config):
        _check_arguments(node_key, _find(node_key, str(node["_target_"])), node)
    with instantiation_errors(key):
        return instantiate(config)


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Instantiate the config's model.

    Raises:
        UserError: If it cannot be instantiated, is not an `nn.Module`, or has lazy layers.
    """
    model = build("model", config)
    if not isinstance(model, nn.Module):
        raise UserError(f"model: {config['_target_']} returned a {type(model).__name__}, not a torch.nn.Module")
    if lazy := [name for name, parameter in model.named_parameters() if isinstance(parameter, UninitializedParameter)]:
        raise UserError(
            f"model: {lazy[0]} belongs to a lazy layer, whose size is not known before the first batch; state its "
            "input size (nn.Linear instead of nn.LazyLinear)"
        )
    return model


def build_loss(config: Mapping[str, Any]) -> Any:
    """Instantiate the config's loss.

    Raises:
        UserError: If it cannot be instantiated, or is not callable.
    """
    loss = build("loss", config)
    if not callable(loss):
        raise UserError(
            f"loss: {config['_target_']} returned a {type(loss).__name__}, not a function of (logits, labels)"
        )
    return loss


def _nodes(key: str, node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (key, node) for every node with a `_target_`."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _nodes(f"{key}.{name}", child)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _nodes(f"{key}.{index}", child)


def _find(key: str, target: str) -> Any:
    """Return the class or function that a target names."""
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{key}: {key}._target_ takes the name of a class or function, package.Name, not {target!r}")
    thing, used = _import(key, target, parts)
    for position in range(used, len(parts)):
        name, parent = parts[position], ".".join(parts[:position])
        if not hasattr(thing, name):
            names = {other.lower(): other for other in dir(thing)}
            close = difflib.get_close_matches(name.lower(), names, n=1)
            hint = f"; did you mean {parent}.{names[close[0]]}?" if close else ""
            raise UserError(f"{key}: {key}._target_={target}: {parent} has no {name!r}{hint}")
        thing = getattr(thing, name)
    if not callable(thing):
        raise UserError(f"{key}: {key}._target_={target} is a {type(thing).__name__}, not a class or function")
    return thing


def _import(key: str, target: str, parts: list[str]) -> tuple[Any, int]:
    """Import the longest module that a dotted name begins with; return it and its number of parts."""
    module: Any = None
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                break
            raise _import_error(key, name, error) from error
        except Exception as error:
            raise _import_error(key, name, error) from error
    else:
        length += 1
    if module is None:
        known = [*sys.modules, *(info.name for info in pkgutil.iter_modules())]
        close = difflib.get_close_matches(parts[0], [name for name in known if "." not in name], n=1)
        hint = f"did you mean {close[0]!r}? Otherwise " if close else ""
        raise UserError(
            f"{key}: {key}._target_={target}: there is no module {parts[0]!r}; {hint}"
            "install it, or add its folder to PYTHONPATH"
        )
    return module, length - 1


def _import_error(key: str, module: str, error: Exception) -> UserError:
    reason = str(error).strip().split("\n")[0]
    return UserError(f"{key}: importing {module} failed ({type(error).__name__}: {reason})")


def _check_arguments(key: str, target: Any, node: Mapping[str, Any]) -> None:
    """Raise UserError if the node's arguments do not fit the target's signature."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some classes written in C have none
        return
    positional = node.get("_args_") or []
    arguments = {str(name): value for name, value in node.items() if not str(name).startswith("_")}
    bind = signature.bind_partial if node.get("_partial_") else signature.bind
    try:
        bind(*positional, **arguments)
    except TypeError as error:
        name = getattr(target, "__name__", str(target))
        names = ", ".join(signature.parameters) or "none"
        raise UserError(f"{key}: {name} {error}; its arguments are: {names}{_hint(key, target, error)}") from error


def _hint(key: str, target: Any, error: TypeError) -> str:
    group = key.rpartition(".")[2]
    if key == "loss" and not isinstance(target, type) and "missing" in str(error):
        return ". For a function of (logits, labels), add loss._partial_=true"
    if group == "optim" and "unexpected keyword argument 'lr'" in str(error):
        return ". Leave out optim.lr with ~optim.lr"
    if group in GROUPS and "unexpected" in str(error):
        return f". {group}={CUSTOM} passes only the arguments that you set"
    return ""
