"""What figures and tables say alike: of which data, how many runs; and the names of their files."""

import re
from collections.abc import Sequence

from cifarbn.formatting import percent
from cifarbn.report.gather import Group

NO_BREAK = "\N{NO-BREAK SPACE}"


def data_and_n(groups: Sequence[Group]) -> str:
    """Which data the groups' runs used, and how many runs there are of each group.

    >>> data_and_n([group])
    'Data: cifar10 (45,000 training, 5,000 validation and 10,000 test pictures). n = 3.'
    """
    data = dict.fromkeys(_data(group) for group in groups)
    return f"Data: {'; '.join(data)}. {how_many(groups)}."


def names_and_n(groups: Sequence[Group]) -> str:
    """The same, short enough for a figure's title: 'cifar10, n = 3 per group'."""
    return f"{', '.join(dict.fromkeys(group.data for group in groups))}, {how_many(groups)}"


def heading(group: Group) -> str:
    """The title of a group's figure: short enough to stand on one, it says data and n."""
    return f"{group.label} ({group.data}, {how_many([group])})"


def accuracy(fraction: float) -> str:
    """A fraction as people read an accuracy."""
    return percent(fraction)


def count(number: int, noun: str) -> str:
    """A number with its noun: '1 run', '2 runs', '1,234 runs'."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def slugs(groups: Sequence[Group]) -> list[str]:
    """The groups' labels as names for files: safe characters, at most 60, all different in lower case too."""
    found: list[str] = []
    for group in groups:
        slug = "-".join(re.findall(r"[\w.+]+", group.label, flags=re.ASCII))[:60].lower() or "runs"
        while slug in found:
            slug += "+"
        found.append(slug)
    return found


def how_many(groups: Sequence[Group]) -> str:
    """How many runs count: 'n = 3', or 'n = 2 to 3 per group', in one piece."""
    counts = sorted({len(group.runs) for group in groups})
    text = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return text.replace(" ", NO_BREAK) + (" per group" if len(groups) > 1 else "")


def _data(group: Group) -> str:
    facts = group.runs[0].result.get("data", {})
    sizes = [(facts.get(f"{part}_size"), word) for part, word in _PARTS]
    parts = [f"{size:,} {word}" for size, word in sizes if size]
    return f"{group.data} ({', '.join(parts[:-1])} and {parts[-1]} pictures)" if len(parts) > 1 else group.data


_PARTS = (("train", "training"), ("val", "validation"), ("test", "test"))
