"""Text of anybody's in each of the report's formats; page.html escapes for HTML, and `figures.style` for figures."""

import csv
import io
import re

# What a spreadsheet would compute, also in the full-width forms of East Asian keyboards.
FORMULA = tuple("=+-@\t\r\n＝＋－＠")

_MARKDOWN = str.maketrans({**{c: f"\\{c}" for c in r"\`*[]|$~#"}, "&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " "})
_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        **{c: f"{{{c}}}" for c in "[]*"},  # after the \\ of a row they would be its arguments
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
    """Text that neither HTML nor Markdown sees anything in; an underscore within a word is none of Markdown's."""
    escaped = text.translate(_MARKDOWN).replace("://", "\\://")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\_", escaped)


def markdown_code(text: str) -> str:
    """The same as code, where no escape is known: between more backticks than it has in a row."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def latex(text: str) -> str:
    """Text for LaTeX, which compiles with any of its engines: letters that they need a package for become `?`."""
    known = re.sub(r"[^\x20-\x7e\xa0\xb1\xb7\xc0-\xcf\xd1-\xdd\xdf-\xef\xf1-\xfd\xff−]", "?", text)
    return known.translate(_LATEX)


def csv_file(text: str) -> str:
    """A CSV file whose cells are numbers or text, and no formulas: a quote goes before what would be one."""
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
