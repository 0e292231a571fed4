"""Escape untrusted text for Markdown, LaTeX and CSV; page.html escapes for HTML, `figures.style` for figures."""

import csv
import io
import re

# A cell that starts with one of these is a formula for a spreadsheet, also in full-width East Asian forms.
FORMULA = tuple("=+-@\t\r\n＝＋－＠")

_MARKDOWN = str.maketrans({**{c: f"\\{c}" for c in r"\`*[]|$~#"}, "&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " "})
_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        **{c: f"{{{c}}}" for c in "[]*"},  # directly after the \\ of a row they would be its arguments
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "\N{NO-BREAK SPACE}": "~",
    }
)


def markdown(text: str) -> str:
    """Escape text so that neither HTML nor Markdown interprets it; underscores within words need no escape."""
    escaped = text.translate(_MARKDOWN).replace("://", "\\://")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\_", escaped)


def markdown_code(text: str) -> str:
    """Quote text as inline code, where escapes do not work: between more backticks than occur in a row in it."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def latex(text: str) -> str:
    """Escape text for LaTeX; letters that some engine cannot typeset without a package become `?`."""
    known = re.sub(r"[^\x20-\x7e\xa0\xb1\xb7\xc0-\xcf\xd1-\xdd\xdf-\xef\xf1-\xfd\xff−]", "?", text)
    return known.translate(_LATEX)


def csv_file(text: str) -> str:
    """Return a CSV file without formulas: a quote is inserted before text that a spreadsheet would compute."""
    safe = io.StringIO()
    rows = csv.reader(io.StringIO(text, newline=""))
    csv.writer(safe, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    return safe.getvalue()


def _cell(cell: str) -> str:
    if not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
