"""What the documentation refers to: links, files, commands, modules, settings, and names in the code.

Each function returns what is wrong in a text, in words; an empty list means that every reference holds.
"""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import typer
from typer.core import TyperGroup, TyperOption

from apeagent_pipeline.cli import app
from apeagent_pipeline_tests.docs.generate import ROOT
from apeagent_pipeline_tests.docs.settings_table import setting_names

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=\S*")
_SETTING = re.compile(r"\bAPEAGENT_[A-Z0-9_]*[A-Z0-9]\b")
_FILE = re.compile(r"(?:[\w.-]+/)+(?:[\w-]+\.(?:py|json|md|yaml|toml|txt))?|[\w-]+\.py|\.ci/[\w.]+")
_MODULE = re.compile(r"python3? -m ([\w.]*\w)")
_SCRIPT = re.compile(r"python3? ([\w/.-]+\.py)")
_NAME_IN_FILE = re.compile(r"((?:`\w+`(?:,\s+|\s+and\s+)?)+)\s+in\s+`([\w./-]+\.\w+)`")
_NEW_FILE = re.compile(r"`[^`\n]+` \(new\)")
_POSITIONAL_IN_QUOTES = re.compile(r"\"[^\"]*\$\d")
_SEARCHED = (ROOT, ROOT / "apeagent_pipeline", ROOT / "apeagent_pipeline_tests")
_OURS = "apeagent_pipeline"


def wrong_links(text: str, page: Path) -> list[str]:
    """Relative links of a page to files or headings that do not exist."""
    wrong = []
    for target in _LINK.findall(_without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            wrong.append(f"{target}: there is no such file")
        elif anchor and anchor not in anchors(text if file == page else file.read_text()):
            wrong.append(f"{target}: there is no such heading")
    return wrong


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    spelled = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_without_code(text)))
    return {heading.strip().replace(" ", "-") for heading in spelled}


def wrong_commands(text: str) -> list[str]:
    """Lines that call ``apeagent`` with a command or an option that does not exist, or lack what is required."""
    wrong = []
    for line, is_example in _code_lines(text):
        if is_example and "apeagent " in line and _POSITIONAL_IN_QUOTES.search(line):
            wrong.append(f"{line}: the shell replaces $1 within double quotes")
        calls = [words[1:] for words in _simple_commands(line) if words[0].rpartition("/")[2] == "apeagent"]
        wrong += [f"{line}: {problem}" for words in calls if (problem := _problem(words, is_example))]
    return wrong


def wrong_modules(text: str) -> list[str]:
    """Modules and scripts of this repository that a command runs and that do not exist."""
    modules = [name for name in _MODULE.findall(text) if name.startswith(_OURS)]
    wrong = [f"python -m {name}: there is no such module" for name in modules if not _is_module(name)]
    scripts = [name for name in _SCRIPT.findall(text) if name.startswith(_OURS)]
    return wrong + [f"python {name}: there is no such file" for name in scripts if not (ROOT / name).is_file()]


def wrong_settings(text: str) -> list[str]:
    """Names of settings that do not exist."""
    return sorted(set(_SETTING.findall(text)) - setting_names())


def wrong_paths(text: str) -> list[str]:
    """Files and folders in backticks that do not exist.

    Written from the root of the repository, the package or the tests. Not looked at: files that a page tells the reader
    to make (followed by "(new)"), and paths of a home or storage, which begin with ``.apeagent`` or hold a ``{asset}``.
    """
    named = {word for word in _INLINE.findall(_NEW_FILE.sub("", _without_fences(text))) if _FILE.fullmatch(word)}
    ours = {word for word in named if not word.startswith(".apeagent")}
    return sorted(word for word in ours if not any((folder / word).exists() for folder in _SEARCHED))


def wrong_names(text: str) -> list[str]:
    """Names that a page finds "in" a file and that the file does not hold."""
    wrong = []
    for names, file in _NAME_IN_FILE.findall(text):
        found = [folder / file for folder in _SEARCHED if (folder / file).is_file()]
        code = found[0].read_text() if found else ""
        wrong += [f"{name} in {file}" for name in re.findall(r"`(\w+)`", names) if name not in code]
    return wrong


def _without_fences(text: str) -> str:
    return _FENCE.sub("", text)


def _without_code(text: str) -> str:
    return _INLINE.sub("", _without_fences(text))


def _code_lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of code, and whether each is an example to type (else it may only name a command)."""
    for _, block in _FENCE.findall(text):
        yield from ((line, True) for line in block.replace("\\\n", " ").splitlines())
    yield from ((line, False) for line in _INLINE.findall(_without_fences(text)))


def _simple_commands(line: str) -> Iterator[list[str]]:
    for part in re.split(r"&&|\|\||[|;]", line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:  # prose with an apostrophe
            continue
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        if words:
            yield words


def _problem(words: list[str], is_example: bool) -> str:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    if not words or words == ["--help"]:
        return ""
    if words[0] not in group.commands:
        return f"there is no command {words[0]}"
    parameters = group.commands[words[0]].params
    options = {spelling: each for each in parameters if isinstance(each, TyperOption) for spelling in each.opts}
    given, rest = set(), iter(words[1:])
    positional = 0
    for word in rest:
        if word == "--help" or word.startswith("["):
            continue
        if not word.startswith("-"):
            positional += 1
            continue
        name, has_value, _ = word.partition("=")
        if name not in options:
            return f"{words[0]} has no option {name}"
        given.add(name)
        if not options[name].is_flag and not has_value and next(rest, None) is None and is_example:
            return f"{name} needs a value"
    arguments = [each for each in parameters if not isinstance(each, TyperOption)]
    if positional > len(arguments):
        return f"{words[0]} takes {len(arguments)} arguments"
    missing = [each.opts[0] for each in parameters if each.required and isinstance(each, TyperOption)]
    missing = [name for name in missing if name not in given]
    if is_example and (missing or positional < sum(each.required for each in arguments)):
        return f"{words[0]} lacks {', '.join(missing) or 'its argument'}"
    return ""


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
