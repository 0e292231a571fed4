"""Reading run folders from untrusted sources: text is cleaned on entry, and errors name the file."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarbn.errors import UserError
from cifarbn.runs.result_file import read_result
from cifarbn.runs.schema import RESULT, Result

LONGEST = 2000  # characters of a text


def stored_result(folder: Path) -> Result | None:
    """Return a run folder's result with cleaned text; None if there is no result.json.

    Raises:
        UserError: if the file is damaged or not a regular file; one line, without the folder's path.
    """
    file = Path(folder) / RESULT
    try:
        result: Any = read_result(folder)
    except UserError as error:
        # Drop the path: reports name no folders of this machine.
        raise UserError(clean(str(error).replace(f"{file}", RESULT))) from error
    if result is None:
        return None
    if result.get("error"):
        result["error"] = result["error"].strip().split("\n")[0]  # before its lines become one
    return clean(result)


def clean(value: Any) -> Any:
    """Return JSON, or any part of it, with text that is safe to print: one line, without control characters.

    White space of any kind becomes a space. Control characters (such as terminal escape sequences), characters that
    change the direction of writing, and lone surrogates become the replacement character.
    """
    if isinstance(value, str):
        text = value if len(value) <= LONGEST else value[:LONGEST] + "..."
        return text if text.isascii() and text.isprintable() else "".join(map(_clean_character, text))
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def _clean_character(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() or category in ("Zl", "Zp"):
        return " "
    return "\N{REPLACEMENT CHARACTER}" if category in ("Cc", "Cf", "Cs", "Co") else character
