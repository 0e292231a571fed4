"""The report as one page: index.html, which needs nothing beside it, and the same as Markdown."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain
from typing import NamedTuple

from cifarbn.report import table
from cifarbn.report.escape import markdown, markdown_code
from cifarbn.report.gather import Sweep
from cifarbn.report.section import Drawing, Section
from cifarbn.report.wording import NO_BREAK, count, data_and_n
from cifarbn.runs.untrusted import clean

CSS_PIXELS_PER_INCH = 96
# The files of the table, beside the page.
NUMBERS = {"table.csv": " (the table, unrounded)", "table.tex": " (for LaTeX)", "runs.csv": " (a row a run)"}


class Image(NamedTuple):
    """A figure as drawn.

    Attributes:
        png: the file's bytes.
        inches: its width.
    """

    png: bytes
    inches: float


def html_page(
    sweep: Sweep, sections: Sequence[Section], images: Mapping[str, Image], opening: Section | None = None
) -> str:
    """The page: table, what was left out, then the sections. No script, no network; images are part of it.

    Its links lead to the same numbers and figures as files beside it, and it says as much without these.

    Args:
        sweep: the runs.
        sections: below the table, in this order.
        images: of every drawing, by its name.
        opening: above the table.
    """
    links = " · ".join(f'<a href="#{_anchor(s)}">{escape(s.title)}</a>' for s in sections)
    body = [
        f"<h1>{escape(title(sweep))}</h1>",
        f"<p>{escape(summary(sweep))}</p>",
        _html_section(opening, images) if opening else "",
        "<h2>All runs, best first</h2>" if opening else "",
        _html_table(table.columns(sweep), "Groups of runs, best first") if sweep.counted else "",
        _paragraphs(notes(sweep)),
        _html_files(NUMBERS),
        _html_runs("Left out of every mean", sweep.left_out),
        _html_runs("Read in part", sweep.read_in_part),
        _html_same(sweep),
        f"<nav>{links}</nav>" if len(sections) > 1 else "",
        *(_html_section(section, images) for section in sections),
        f"<footer><p>{escape(provenance(sweep))}</p></footer>",
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title(sweep))}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{chr(10).join(part for part in body if part)}
</main>
</body>
</html>
"""


def markdown_page(sweep: Sweep, sections: Sequence[Section], opening: Section | None = None) -> str:
    """The same for GitHub and editors; its images are the files in figures/."""
    parts = [f"# {markdown(title(sweep))}", markdown(summary(sweep))]
    if opening:
        parts += [*_markdown_section(opening), "## All runs, best first"]
    if sweep.counted:
        parts.append(table.as_markdown(table.columns(sweep)).rstrip())
    parts += [*map(markdown, notes(sweep)), _markdown_files(NUMBERS)]
    for heading, runs in (("Left out of every mean", sweep.left_out), ("Read in part", sweep.read_in_part)):
        lines = [
            f"- {markdown_code(run)}{f' ({markdown(group)})' if group else ''}: {markdown(reason)}"
            for run, group, reason in runs
        ]
        parts += [f"## {heading}", "\n".join(lines)] if lines else []
    if sweep.same:
        said = ", ".join(markdown_code(f"{key}={value}") for key, value in sweep.same.items())
        parts.append(f"The same in all runs: {said}")
    for section in sections:
        parts += _markdown_section(section)
    return "\n\n".join([*parts, "---", markdown(provenance(sweep))]) + "\n"


def title(sweep: Sweep) -> str:
    """The folders' names; not where they are, for that is the machine's."""
    return f"Runs of {', '.join(clean(root.resolve().name) for root in sweep.roots)}"


def summary(sweep: Sweep) -> str:
    """How many runs, and of what."""
    runs = sum(len(group.runs) for group in sweep.groups)
    text = f"{count(runs, 'run')} in {count(len(sweep.counted), 'group')}"
    text += "; groups differ in more than the seed." if len(sweep.counted) > 1 else "."
    if left_out := len(sweep.left_out):
        text += f" {count(left_out, 'run')} left out, see below."
    if not sweep.counted:
        return text
    hardware = table.devices(sweep)
    trained_on = f" Trained on {hardware[0]}." if len(hardware) == 1 and hardware[0] else ""
    return f"{text} {data_and_n(sweep.counted)}{trained_on}"


def notes(sweep: Sweep) -> list[str]:
    """What a reader must know to read the table right."""
    if not sweep.counted:
        return ["No run has finished yet, so there is nothing to average."]
    several = any(len(group.runs) > 1 for group in sweep.counted)
    found = ["Accuracies are those after the last epoch; nothing was selected by the test set."]
    if several:
        found[0] += " ± is the standard deviation over the runs (n − 1), and the interval is Student's for their mean."
    if any(len(group.runs) == 1 for group in sweep.counted):
        found.append("A group with n = 1 has no spread: a difference from its neighbours may be chance.")
    if any(group.target is not None for group in sweep.counted):
        found.append("The gap is measured minus target, in percentage points.")
    if len({group.data for group in sweep.counted}) > 1:
        found.append("Groups on different data do not compare with each other.")
    return [" ".join(found)]


def provenance(sweep: Sweep) -> str:
    """Which code and packages made the runs."""
    results = [run.result for group in sweep.groups for run in group.runs + group.left_out]
    versions = {f"{name} {version}" for result in results for name, version in result.get("versions", {}).items()}
    commits = {str(result.get("git_commit") or "no commit")[:20] for result in results}
    return f"Made by {', '.join(sorted(versions)) or 'unknown versions'}; code: {', '.join(sorted(commits))}."


def _markdown_section(section: Section) -> list[str]:
    parts = [f"## {section.title}", *map(markdown, section.text.split("\n") if section.text else ())]
    parts += [table.as_markdown(section.table).rstrip()] if section.table else []
    parts += ["\n".join(f"- {markdown(point)}" for point in section.points)] if section.points else []
    parts += [_markdown_files(dict.fromkeys(section.files, ""))] if section.files else []
    return parts + [
        f"![{markdown(d.alt)}](figures/{d.name}.png)\n\n*{markdown(d.caption)}*\n[PDF](figures/{d.name}.pdf)"
        for d in section.drawings
    ]


def _markdown_files(files: Mapping[str, str]) -> str:
    return f"Files: {', '.join(f'[{name}]({name}){what}' for name, what in files.items())}."


def _html_table(columns: Mapping[str, Sequence[str]], label: str) -> str:
    kinds = [_kind(heading) for heading in columns]
    head = "".join(f'<th scope="col" class="{k}">{escape(h)}</th>' for h, k in zip(columns, kinds, strict=True))
    body = []
    for cells in zip(*columns.values(), strict=True):
        first, *others = [escape(cell) for cell in cells]
        # A label's line ends between its parts, not between a key and its value.
        first = ", ".join(re.sub(" (?=[^ ]+$)", NO_BREAK, part) for part in first.split(", "))
        row = "".join(f'<td class="{k}">{cell}</td>' for cell, k in zip(others, kinds[1:], strict=True))
        body.append(f'<tr><th scope="row" class="word">{first}</th>{row}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _kind(heading: str) -> str:
    if heading in table.PROSE:
        return "word prose"
    return "word" if heading in table.WORDS else "number"


def _html_files(files: Mapping[str, str]) -> str:
    links = ", ".join(f'<a href="{name}">{name}</a>{escape(what)}' for name, what in files.items())
    return f'<p class="files">Files: {links}.</p>'


def _html_runs(heading: str, runs: Sequence[tuple[str, str, str]]) -> str:
    if not runs:
        return ""
    items = "".join(
        f"<li><strong>{escape(group)}</strong>: {escape(reason)}<br><code>{escape(run)}</code></li>"
        if group
        else f"<li><code>{escape(run)}</code>: {escape(reason)}</li>"
        for run, group, reason in runs
    )
    return f'<aside class="warning"><h2>{heading}</h2><ul>{items}</ul></aside>'


def _html_same(sweep: Sweep) -> str:
    said = " ".join(f"<code>{escape(f'{key}={value}')}</code>" for key, value in sweep.same.items())
    every = "\n".join(f"{key} = {value}" for key, value in sweep.constant.items())
    text = f"<p>The same in all runs: {said}</p>" if said else ""
    return (
        f"{text}<details><summary>The whole config, where all runs agree</summary><pre>{escape(every)}</pre></details>"
    )


def _html_section(section: Section, images: Mapping[str, Image]) -> str:
    figures = "\n".join(_html_figure(drawing, images[drawing.name]) for drawing in section.drawings)
    rows = _html_table(section.table, section.title) if section.table else ""
    points = "".join(f"<li>{escape(point)}</li>" for point in section.points)
    return (
        f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>{_paragraphs([section.text])}{rows}'
        f"{f'<ul>{points}</ul>' if points else ''}"
        f"{_html_files(dict.fromkeys(section.files, '')) if section.files else ''}"
        f'<div class="figures">{figures}</div></section>'
    )


def _html_figure(drawing: Drawing, image: Image) -> str:
    width = round(image.inches * CSS_PIXELS_PER_INCH)
    data = base64.b64encode(image.png).decode()
    kind = "pictures" if drawing.pictorial else "chart"
    return (
        f'<figure style="--width:{width}px"><div class="scroll"><img class="{kind}" alt="{escape(drawing.alt)}" '
        f'src="data:image/png;base64,{data}"></div><figcaption>{escape(drawing.caption)} '
        f'<a href="figures/{drawing.name}.pdf">PDF</a></figcaption></figure>'
    )


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in chain(*(text.split("\n") for text in texts)) if line)


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


# In the dark, charts are turned inside out: the hue stays, and white becomes the page's black. Pictures stay.
_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --muted: #59626d; --page: #fbfbfc; --card: #fff; --line: #dfe3e8;
  --link: #0067a3; --warn: #b45309; --warn-page: #fff7ed; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --muted: #a0a8b3; --page: #121416; --card: #1a1a1a;
  --line: #33383f; --link: #6cb8ee; --warn: #f0a95b; --warn-page: #2a1f12; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
p { max-width: 46rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
a { color: var(--link); }
code { font-size: .85em; background: var(--card); border: 1px solid var(--line); border-radius: .25rem;
  padding: .05em .3em; overflow-wrap: anywhere; }
nav { margin: 1.5rem 0; }
section { border-top: 1px solid var(--line); padding-top: 1.25rem; margin-top: 1.75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; margin-bottom: 1rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { white-space: normal; font-weight: 600; line-height: 1.3; color: var(--muted); vertical-align: bottom;
  border-bottom: 2px solid var(--line); }
.word { text-align: left; } .number { text-align: right; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--page); }
td.word:last-child { white-space: normal; min-width: 9rem; }
td.prose, td.prose:last-child { white-space: normal; min-width: 16rem; }
tr:has(.prose) > * { vertical-align: top; } thead tr:has(.prose) > * { vertical-align: bottom; }
section > ul { max-width: 60rem; padding-left: 1.25rem; } section > ul li { margin-bottom: .3rem; }
@media (max-width: 45rem) { tbody th { white-space: normal; min-width: 7.5rem; } th, td { padding: .35rem .45rem; } }
.warning { background: var(--warn-page); border-left: .25rem solid var(--warn); padding: .8rem 1rem; margin: 1rem 0;
  border-radius: .25rem; }
.warning h2 { font-size: 1rem; color: var(--warn); } .warning ul { margin: 0; padding-left: 1.1rem; }
.warning li { overflow-wrap: anywhere; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--link); }
pre { overflow-x: auto; font-size: .8rem; background: var(--card); border: 1px solid var(--line); padding: .75rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .75rem;
  width: calc(var(--width) + 1.5rem + 2px); max-width: 100%; }
img { display: block; width: 100%; min-width: calc(.57 * var(--width)); height: auto; }
figcaption { color: var(--muted); font-size: .85rem; line-height: 1.4; margin-top: .5rem; }
footer { margin-top: 2.5rem; color: var(--muted); font-size: .8rem; }
@media (prefers-color-scheme: dark) { .chart { filter: invert(.9) hue-rotate(180deg); }
  .pictures { border-radius: .25rem; filter: brightness(.92); } }
@media print { figure { break-inside: avoid; } }
"""
