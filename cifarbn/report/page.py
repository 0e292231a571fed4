"""The report as one page: index.html, which needs nothing beside it, and the same as Markdown."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cifarbn.report import table
from cifarbn.report.captions import NO_BREAK, count, data_and_n
from cifarbn.report.escape import markdown, markdown_code
from cifarbn.report.gather import RunSet
from cifarbn.report.section import Section
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

    @property
    def base64(self) -> str:
        """Return the file as the data of a `data:` URL."""
        return b64encode(self.png).decode()

    @property
    def css_width(self) -> int:
        """Return the width in CSS pixels."""
        return round(self.inches * CSS_PIXELS_PER_INCH)


def html_page(
    sweep: RunSet, sections: Sequence[Section], images: Mapping[str, Image], opening: Section | None = None
) -> str:
    """The page: table, what was left out, then the sections. No script, no network; images are part of it.

    Its links lead to the same numbers and figures as files beside it, and it says as much without these.

    Args:
        sweep: the runs.
        sections: below the table, in this order.
        images: of every drawing, by its name.
        opening: above the table.
    """
    return _HTML.get_template("page.html").render(
        sweep=sweep,
        title=title(sweep),
        summary=summary(sweep),
        columns=table.columns(sweep) if sweep.counted else {},
        notes=notes(sweep),
        numbers=NUMBERS,
        opening=opening,
        sections=sections,
        images=images,
        provenance=provenance(sweep),
    )


def markdown_page(sweep: RunSet, sections: Sequence[Section], opening: Section | None = None) -> str:
    """The same for GitHub and editors; its images are the files in figures/."""
    parts = [f"# {markdown(title(sweep))}", markdown(summary(sweep))]
    if opening:
        parts += [*_markdown_section(opening), "## All runs, best first"]
    if sweep.counted:
        parts.append(table.as_markdown(table.columns(sweep)).rstrip())
    parts += [*map(markdown, notes(sweep)), _markdown_files(NUMBERS)]
    for heading, runs in (("Left out of every mean", sweep.excluded), ("Read in part", sweep.read_in_part)):
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


def title(sweep: RunSet) -> str:
    """The folders' names; not where they are, for that is the machine's."""
    return f"Runs of {', '.join(clean(root.resolve().name) for root in sweep.roots)}"


def summary(sweep: RunSet) -> str:
    """How many runs, and of what."""
    runs = sum(len(group.runs) for group in sweep.groups)
    text = f"{count(runs, 'run')} in {count(len(sweep.counted), 'group')}"
    text += "; groups differ in more than the seed." if len(sweep.counted) > 1 else "."
    if excluded := len(sweep.excluded):
        text += f" {count(excluded, 'run')} left out, see below."
    if not sweep.counted:
        return text
    hardware = table.devices(sweep)
    trained_on = f" Trained on {hardware[0]}." if len(hardware) == 1 and hardware[0] else ""
    return f"{text} {data_and_n(sweep.counted)}{trained_on}"


def notes(sweep: RunSet) -> list[str]:
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


def provenance(sweep: RunSet) -> str:
    """Which code and packages made the runs."""
    results = [run.result for group in sweep.groups for run in group.runs + group.excluded]
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


def _kind(heading: str) -> str:
    if heading in table.PROSE:
        return "word prose"
    return "word" if heading in table.WORDS else "number"


def _whole_parts(label: str) -> str:
    """A label whose line ends between its parts, not between a key and its value."""
    return ", ".join(re.sub(" (?=[^ ]+$)", NO_BREAK, part) for part in label.split(", "))


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


_HTML = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_HTML.globals["zip"] = partial(zip, strict=True)
_HTML.filters |= {"kind": _kind, "whole_parts": _whole_parts, "anchor": _anchor}
