"""table.tex, checked by a small strict parser of LaTeX: there is no LaTeX here to compile it."""

import re

import pytest
from test_report import make_run

from cifarbn.report import gather, table
from cifarbn.report.escape import latex

COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
WITHOUT_ARGUMENTS = {
    *(r"\toprule", r"\midrule", r"\bottomrule", r"\begingroup", r"\endgroup", r"\small", r"\footnotesize"),
    *(r"\raggedright", r"\arraybackslash", r"\allowbreak", r"\tabcolsep"),
    *(r"\textbackslash", r"\textasciicircum", r"\textasciitilde", r"\textless", r"\textgreater", r"\textbar"),
    *(r"\pm", r"\times", r"\cdot"),
}
ESCAPED = {f"\\{character}" for character in "&%$#_{}\\"}


def parse(source):
    """Return the cells of the tabular, row by row.

    Raises:
        ValueError: at an unknown command, an unescaped special character, an unbalanced brace, environment, group or
            formula, or a row with another number of cells than the table has columns.
    """
    text = re.sub(r"(?<!\\)%.*\n", "", source)  # comments, including the one that ends a line without a space
    rows, cells, cell = [], [], ""
    columns, open_braces, environments, groups, formula = None, 0, [], 0, False
    place = 0
    while place < len(text):
        character = text[place]
        if character == "\\":
            command = COMMAND.match(text, place)[0]
            place += len(command)
            if command in (r"\begin", r"\end"):
                name = re.compile(r"\{(\w+)\}").match(text, place)
                place = name.end()
                if command == r"\begin":
                    environments.append(name[1])
                    end = _closing(text, place)
                    columns = _columns(text[place + 1 : end])
                    place = end + 1
                elif not environments or environments.pop() != name[1]:
                    raise ValueError(f"\\end{{{name[1]}}} without its \\begin")
            elif command == r"\setlength":
                end = _closing(text, place)
                place = _closing(text, end + 1) + 1
            elif command == r"\\":
                rows.append([*cells, cell.strip()])
                if len(rows[-1]) != columns or open_braces or formula:
                    raise ValueError(f"row {len(rows)} has {len(rows[-1])} cells and {open_braces} open braces")
                cells, cell = [], ""
            elif command in ESCAPED:
                cell += command[1]
            elif command in WITHOUT_ARGUMENTS:
                groups += (command == r"\begingroup") - (command == r"\endgroup")
                if command in (r"\toprule", r"\midrule", r"\bottomrule") and (cell.strip() or not environments):
                    raise ValueError(f"{command} within a row or outside of the tabular")
                cell += "" if command.endswith(("rule", "group", "small", "size", "break")) else command
            else:
                raise ValueError(f"unknown command {command}")
            continue
        if character == "&":
            cells, cell = [*cells, cell.strip()], ""
        elif character == "$":
            formula = not formula
        elif character in "{}":
            open_braces += 1 if character == "{" else -1
            if open_braces < 0:
                raise ValueError("a closing brace without its opening one")
        elif character in "#^_" and not formula:
            raise ValueError(f"unescaped {character}")
        elif not (character.isascii() or character.isalpha()):
            raise ValueError(f"{character!r} needs a package")
        else:
            cell += character
        place += 1
    if open_braces or environments or groups or formula or cells or cell.strip():
        raise ValueError("something is not closed")
    return rows


def _closing(text, place):
    """Return where the brace closes that opens at a place."""
    if text[place] != "{":
        raise ValueError(f"no argument at {text[place : place + 20]!r}")
    depth = 0
    for end in range(place, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if not depth:
            return end
    raise ValueError("an argument is not closed")


def _columns(alignment):
    """Return the number of columns of a tabular, such as 3 for ">{...}p{2cm}lr"."""
    while "{" in alignment:
        start = alignment.index("{")
        alignment = alignment[:start] + alignment[_closing(alignment, start) + 1 :]
    if set(alignment) - set("lcrp>"):
        raise ValueError(f"unknown alignment {alignment}")
    return len(alignment.replace(">", ""))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (r"\begin{tabular}{lr}a & b\\\end{table}", "without its"),
        (r"\begin{tabular}{lr}a\\\end{tabular}", "1 cells"),
        (r"\begin{tabular}{lr}a & b & c\\\end{tabular}", "3 cells"),
        (r"\begin{tabular}{l}a_b\\\end{tabular}", "unescaped _"),
        (r"\begin{tabular}{l}{a\\\end{tabular}", "open braces"),
        (r"\begin{tabular}{l}a}\\\end{tabular}", "closing brace"),
        (r"\begin{tabular}{l}\hline a\\\end{tabular}", "unknown command"),
        (r"\begin{tabular}{l}a$\\\end{tabular}", "open braces"),
        (r"\begin{tabular}{l}a\\", "not closed"),
        ("\\begin{tabular}{l}±\\\\\\end{tabular}", "needs a package"),
        (r"\toprule", "outside"),
    ],
)
def test_the_parser_rejects_what_latex_rejects(bad, message):
    with pytest.raises(ValueError, match=message):
        parse(bad)


def test_the_table_parses_to_its_cells(tmp_path):
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        make_run(tmp_path, "model=vgg_a", f"seed={seed}", accuracy=accuracy)
    make_run(tmp_path, "model=resnet18", accuracy=0.5, config={"model": {"_target_": "x"}})
    source = table.as_latex(gather(tmp_path))
    assert parse(source) == [
        ["runs", "n", "test accuracy, %", "95 % interval"],
        ["vgg_a", "3", r"92.00 \pm 2.00", "87.03 to 96.97"],
        ["resnet18", "1", "50.00", ""],
    ]
    assert source.startswith("% \\usepackage{array, booktabs}\n")
    assert [source.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_labels_of_any_characters_give_a_valid_table(tmp_path):
    hostile = r"\end{tabular} & 100% $x^2$ #1 {a_b} ~ <|> [*] é 漢 -- ''"
    make_run(tmp_path, "note=short", config={"note": "short"})
    make_run(tmp_path, config={"note": hostile})
    rows = parse(table.as_latex(gather(tmp_path)))
    assert len(rows) == 3 and len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("character", [chr(code) for code in range(32, 127)] + list("±−×·é\N{NO-BREAK SPACE}漢"))
def test_every_character_is_escaped(character):
    (row,) = parse(rf"\begin{{tabular}}{{l}}a{latex(character)}b\\\end{{tabular}}")
    assert row[0].startswith("a") and row[0].endswith("b")
