"""What a run folder holds may be anybody's: text is cleaned where it enters, and a file of another kind is named."""

import math
import re
import stat
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifarbn.errors import UserError
from cifarbn.runs import RESULT, Result, read_result

DEEPEST = 50  # levels of a result; beyond some hundreds Python's own recursion ends
LONGEST = 2000  # characters of a text
LARGEST = float(np.finfo(np.float32).max)  # of what is measured in float32


def stored_result(folder: Path) -> Result | None:
    """Return a run folder's result, with clean text and every known key of the kind that a run writes; None: no file.

    Raises:
        UserError: in one line, without the folder, if it is of another kind.
    """
    file = Path(folder) / RESULT
    try:
        check_ordinary(file)
        result: Any = read_result(folder)
        if isinstance(result, dict) and isinstance(result.get("error"), str):
            result["error"] = result["error"].strip().split("\n")[0]  # before its lines become one
        result = clean(result)
    except FileNotFoundError:
        return None
    except RecursionError:
        raise UserError(f"{RESULT} is nested too deeply") from None
    except UserError as error:
        # Without the path, for that is the machine's.
        raise UserError(clean(str(error).replace(f"{file}", RESULT))) from error
    except OSError as error:
        raise UserError(f"{RESULT} cannot be read ({error.strerror or type(error).__name__})") from error
    if not isinstance(result, Mapping):
        raise UserError(f"{RESULT} is not a group of keys")
    # Null where a key that is read here could be missing as well; of any other it may mean something.
    named = {key.partition(".")[0] for key in _KINDS}
    known = {key: value for key, value in result.items() if value is not None or key not in named}
    for key in ("config", "metrics", "seconds", "data"):
        if isinstance(known.get(key), Mapping):
            known[key] = {name: value for name, value in known[key].items() if value is not None}
    for key in _WORDS:
        if key in known and isinstance(known[key], (bool, int, float)):  # trainer.precision=32
            known[key] = str(known[key])
    for key, (fits, kind) in _KINDS.items():
        if (value := _at(known, key)) is not None and not fits(value):
            raise UserError(f"{RESULT}: {key} is not {kind}")
    for key in ("status", "config"):
        if key not in known:
            raise UserError(f"{RESULT} has no {key}")
    classes, confusion = known.get("data", {}).get("classes"), known.get("confusion")
    if classes and confusion and len(classes) != len(confusion):
        raise UserError(f"{RESULT}: confusion is not of the {len(classes)} classes of data.classes")
    return known  # type: ignore[return-value]


def check_ordinary(file: Path) -> None:
    """Let an ordinary file pass: to read a FIFO waits for ever, to read a device may never end.

    Raises:
        OSError: if there is none, or it may not be looked at.
        UserError: if it is of another kind.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise UserError(f"{file.name} is not an ordinary file")


def clean(value: Any, depth: int = 0) -> Any:
    """Return JSON, or any part of it, with text that is safe to print: one line, without control characters.

    White space of any kind becomes a space. What a terminal would obey (escape sequences), what turns the direction
    of writing, and lone halves of characters, which cannot be encoded, become the replacement character.

    Raises:
        RecursionError: if it is nested too deeply.
    """
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(value, str):
        text = value if len(value) <= LONGEST else value[:LONGEST] + "..."
        return text if text.isascii() and text.isprintable() else "".join(map(_clean_character, text))
    if isinstance(value, Mapping):
        return {clean(key): clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item, depth + 1) for item in value]
    return value


def without_directories(text: str) -> str:
    """Return the text with the last part of each absolute path in place of the path: where things lie is the machine's.

    >>> without_directories("[Errno 2] No such file or directory: '/home/me/data/x.bin'")
    "[Errno 2] No such file or directory: 'x.bin'"
    """
    text = re.sub(r"""(['"])(?:[A-Za-z]:)?[/\\][^'"]*[/\\]([^'"/\\]*)\1""", r"\1\2\1", text)
    return re.sub(r"""(?<![\w:/\\.~-])(?:[A-Za-z]:)?[/\\](?:[^\s'"/\\:,;()]+[/\\])+""", "", text)


def _clean_character(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() or category in ("Zl", "Zp"):
        return " "
    return "\N{REPLACEMENT CHARACTER}" if category in ("Cc", "Cf", "Cs", "Co") else character


def _at(node: Any, key: str) -> Any:
    """The value of a dotted key; None where it, or a group about it, is missing."""
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(map(_word, value))


def _group(value: Any) -> bool:
    return isinstance(value, Mapping)


def _number(value: Any) -> bool:
    """A number that is not beyond float32; infinite and NaN are fine, a diverged run has them."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= LARGEST or value in (math.inf, -math.inf) or value != value


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _positive(value: Any) -> bool:
    return _count(value) and value > 0


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_number, value.values()))


def _three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_number(item) and math.isfinite(item) for item in value)


def _square(value: Any) -> bool:
    rows = value if isinstance(value, list) else []
    return bool(rows) and all(
        isinstance(row, list) and len(row) == len(rows) and all(_count(n) and n < 2**40 for n in row) for row in rows
    )


_WORDS = ("status", "device", "precision", "compile", "git_commit")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{key: (_word, "a word") for key in (*_WORDS, "error", "data.name")},
    **{key: (_words, "a list of words") for key in ("overrides", "data.classes")},
    **{key: (_group, "a group of keys") for key in ("config", "data", "versions")},
    **{
        f"config.{key}": (_group, "a group of keys") for key in ("model", "data", "optim", "loss", "schedule", "record")
    },
    "config.record.gradient_probe": (_group, "a group of keys"),
    "config.loss._target_": (_word, "a word"),
    **{key: (_numbers, "a group of numbers") for key in ("metrics", "seconds")},
    **{key: (_number, "a number") for key in ("images_per_second", "config.target", "config.optim.lr")},
    **{key: (_count, "a whole number") for key in ("steps", "parameters", "config.seed")},
    "config.model.num_classes": (_positive, "a whole number of at least 1"),
    **{f"data.{part}_size": (_count, "a whole number") for part in ("train", "val", "test")},
    **{key: (_three, "three numbers") for key in ("data.mean", "data.std")},
    "confusion": (_square, "a square table of whole numbers"),
}
