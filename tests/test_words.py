"""The wording of everything a person reads: no banned phrase and no old name in any tracked text file.

In Python files, phrases are searched in comments, docstrings and string literals, and in notebooks in the cells'
sources; old names are searched everywhere.
"""

import io
import json
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Banned phrase -> what to write instead.
PHRASES = {
    r"go(?:es|ing)? on": "continue",
    r"whoever": "name the person or the code",
    r"whatever": "any, or name it",
    r"what is none": "name it",
    r"its doing": "name the action",
    r"by which factor": "the ratio",
    r"here stands?": "this is",
    r"in place of what": "instead of",
    r"so many": "the number",
    r"such as it": "as it",
    r"of our own": "custom",
    r"of its own accord": "automatically",
    r"is refused where": "raises an error if",
    r"what made": "name it",
    r"beside": "next to, or in addition to",
    r"pictures?": "image",
    r"(?-i:nets?)(?!:)": "model, or network",  # `Net` is a class name, `net:` an argument of the Classifier
    r"said": "printed, or reported",
    r"cannot be had": "is not available",
    r"looked at": "inspected, or checked",
    r"as ever": "as before",
    r"thus": "so",
    r"hence": "so",
    r"whereby": "by which",
    r"anew": "again",
    r"afresh": "from scratch",
    r"makes a run": "creates a run",
}
PHRASE = {phrase: re.compile(rf"(?<![\w.`/-]){phrase}(?![\w`(=/-])(?!\.\w)", re.IGNORECASE) for phrase in PHRASES}
# Titles of publications.
TITLES = ("Loss Landscape of Neural Nets",)

OLD_NAMES = (
    *("pictures_per_second", "pixels_per", "mean_over_views", "NOT_THE_EXPERIMENT", "MadeElsewhere", "run_plainly"),
    *(
        "plain_errors",
        "StepHistory",
        "LastCheckpoint",
        "EpochOrder",
        "standing_at",
        "consecutive_split",
        "changed_code",
    ),
    *("test_views", "of_shortcut", "of_weight", "one_process"),
)
OLD_NAME = re.compile(rf"(?<![\w])({'|'.join(OLD_NAMES)})")

# Files that are not the project's own text, and files about old spellings.
SKIPPED = ("tests/test_words.py", "cifarbn/runs/old_names.py", "LICENSE", "constraints.txt")
ABOUT_OLD_NAMES = (
    *("CHANGELOG.md", "tests/test_identity.py", "tests/test_old_names.py"),
    *("tests/test_data_frame.py", "tests/test_preflight.py"),
)


def tracked_text_files() -> list[str]:
    """Return the tracked files that are text, without run folders."""
    listed = subprocess.run(
        ["git", "grep", "--cached", "-I", "--name-only", "-e", ""], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if ".record/" not in name and name not in SKIPPED]


def prose(name: str, text: str) -> list[tuple[int, str]]:
    """Return the parts of a file that a person reads as language, each with its line number."""
    if name.endswith(".ipynb"):
        return [(0, "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    if not name.endswith(".py"):
        return list(enumerate(text.splitlines(), 1))
    parts = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("COMMENT", "FSTRING_MIDDLE"):
            parts.append((token.start[0], token.string))
        elif kind == "STRING":
            prefix = re.match(r"\w*", token.string)[0].lower()  # type: ignore[index]
            string = re.sub(r"\{[^{}]*\}", "{}", token.string) if "f" in prefix else token.string
            body = string[len(prefix) :].strip("\"'")
            if not re.search(r"\s", body):  # a name, not prose
                continue
            parts += [(token.start[0] + i, line) for i, line in enumerate(body.splitlines())]
    return parts


def hits(name: str, text: str) -> list[str]:
    """Return one message per banned phrase or old name in a file."""
    messages = [
        f"{name}:{number}: old name {match[1]}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in OLD_NAME.finditer(line)
        if name not in ABOUT_OLD_NAMES
    ]
    for number, line in prose(name, text):
        for title in TITLES:
            line = line.replace(title, "")
        for phrase, pattern in PHRASE.items():
            if match := pattern.search(line):
                messages.append(f"{name}:{number}: {match[0]!r} ({PHRASES[phrase]}): {line.strip()}")
    return messages


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.md", "The run goes on.", "'goes on'"),
        ("a.md", "Two Pictures of it", "'Pictures'"),
        ("a.py", "x = 1  # a net\n", "'net'"),
        ("a.py", 'x = f"{net} and nets"\n', "'nets'"),
        ("a.py", '"""First.\n\nIt is thus so.\n"""\n', "a.py:3: 'thus'"),
        ("a.yaml", "key: 1  # changed_code", "old name changed_code"),
    ],
)
def test_a_planted_phrase_is_found(name, text, found):
    (hit,) = hits(name, text)
    assert found in hit


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "`net.weight`, classifier.net and net.conv1, besides a network"),
        ("a.py", 'net = {"net": 1}\n'),
        ("a.py", 'x = f"model {net}"\n'),
        ("a.md", "Li et al. 2018, Visualizing the Loss Landscape of Neural Nets"),
        ("CHANGELOG.md", "`changed_code` is now `on_code_change`."),
    ],
)
def test_code_titles_and_notes_on_old_names_are_allowed(name, text):
    assert hits(name, text) == []


@pytest.mark.parametrize("name", tracked_text_files())
def test_a_file_has_no_banned_phrase_and_no_old_name(name):
    messages = hits(name, (ROOT / name).read_text())
    assert not messages, "\n" + "\n".join(messages)
