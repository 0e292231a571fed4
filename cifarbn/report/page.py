"""The report as one page: index.html, which needs nothing beside it, and the same as Markdown."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain
from typing import NamedTuple

from cifarbn.report import table
from cifarbn.report.gather import Sweep
from cifarbn.report.section import Drawing, Section
from cifarbn.report.wording import data_and_n

CSS_PIXELS_PER_INCH = 96


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
        _html_left_out(sweep),
        _html_same(sweep),
        f"<nav>{links}</nav>" if len(sections) > 1 else "",
        *(_html_section(section, images) for section in sections),
        f"<footer><p>{escape(provenance(sweep))}</p></footer>",
    ]
    content = "\n".join(part for part in body if part)
    return _TEMPLATE.replace("TITLE", escape(title(sweep))).replace("STYLE", _STYLE).replace("CONTENT", content)


def markdown_page(sweep: Sweep, sections: Sequence[Section], opening: Section | None = None) -> str:
    """The same for GitHub and editors; its images are the files in figures/."""
    parts = [f"# {title(sweep)}", summary(sweep)]
    if opening:
        parts += [*_markdown_section(opening), "## All runs, best first"]
    if sweep.counted:
        parts.append(table.as_markdown(table.columns(sweep)).rstrip())
    parts += notes(sweep)
    if sweep.left_out:
        lines = [f"- `{run}`{f' ({group})' if group else ''}: {reason}" for run, group, reason in sweep.left_out]
        parts += ["## Left out of every mean", "\n".join(lines)]
    if sweep.same:
        parts.append("The same in all runs: " + ", ".join(f"`{key}={value}`" for key, value in sweep.same.items()))
    for section in sections:
        parts += _markdown_section(section)
    return "\n\n".join([*parts, "---", provenance(sweep)]) + "\n"


def title(sweep: Sweep) -> str:
    """The folder's name; not where it is, for that is the machine's."""
    return f"Runs of {sweep.root.resolve().name}"


def summary(sweep: Sweep) -> str:
    """How many runs, and of what."""
    runs = sum(len(group.runs) for group in sweep.groups)
    text = f"{_count(runs, 'run')} in {_count(len(sweep.counted), 'group')} that differ in more than the seed."
    if left_out := len(sweep.left_out):
        text += f" {_count(left_out, 'run')} left out, see below."
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
    return [" ".join(found), "The same numbers are in table.csv and table.tex, those of every run in runs.csv."]


def provenance(sweep: Sweep) -> str:
    """Which code and packages made the runs."""
    results = [run.result for group in sweep.groups for run in group.runs + group.left_out]
    versions = {f"{name} {version}" for result in results for name, version in result.get("versions", {}).items()}
    commits = {str(result.get("git_commit") or "no commit")[:20] for result in results}
    return f"Made by {', '.join(sorted(versions)) or 'unknown versions'}; code: {', '.join(sorted(commits))}."


def _markdown_section(section: Section) -> list[str]:
    parts = [f"## {section.title}", *([section.text] if section.text else [])]
    parts += [table.as_markdown(section.table).rstrip()] if section.table else []
    return parts + [f"![{d.alt}](figures/{d.name}.png)\n\n*{d.caption}*" for d in section.drawings]


def _html_table(columns: Mapping[str, Sequence[str]], label: str) -> str:
    kinds = ["word" if heading in table.WORDS else "number" for heading in columns]
    head = "".join(f'<th scope="col" class="{k}">{escape(h)}</th>' for h, k in zip(columns, kinds, strict=True))
    body = []
    for cells in zip(*columns.values(), strict=True):
        first, *others = [escape(cell) for cell in cells]
        row = "".join(f'<td class="{k}">{cell}</td>' for cell, k in zip(others, kinds[1:], strict=True))
        body.append(f'<tr><th scope="row" class="word">{first}</th>{row}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _html_left_out(sweep: Sweep) -> str:
    if not sweep.left_out:
        return ""
    items = "".join(
        f"<li><strong>{escape(group or run)}</strong>: {escape(reason)}<br><code>{escape(run)}</code></li>"
        for run, group, reason in sweep.left_out
    )
    return f'<aside class="warning"><h2>Left out of every mean</h2><ul>{items}</ul></aside>'


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
    return (
        f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>{_paragraphs([section.text])}{rows}'
        f'<div class="figures">{figures}</div></section>'
    )


def _html_figure(drawing: Drawing, image: Image) -> str:
    width = round(image.inches * CSS_PIXELS_PER_INCH)
    data = base64.b64encode(image.png).decode()
    kind = "pictures" if drawing.pictorial else "chart"
    return (
        f'<figure style="--width:{width}px"><div class="scroll"><img class="{kind}" alt="{escape(drawing.alt)}" '
        f'src="data:image/png;base64,{data}"></div><figcaption>{escape(drawing.caption)}</figcaption></figure>'
    )


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in chain(*(text.split("\n") for text in texts)) if line)


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>TITLE</title>
<style>STYLE</style>
</head>
<body>
<main>
CONTENT
</main>
</body>
</html>
"""

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
p { max-width: 46rem; margin: 0 0 .75rem; }
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
