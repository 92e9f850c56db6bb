"""Escape text from outside (nodes, teachers, models, users) for terminals and Markdown pages."""

import re

_MARKS = re.compile(r"([\\`*_\[\]<>~&])")


def printable(text: str) -> str:
    """Replace control characters, which a terminal would execute, and lone surrogates, which UTF-8 cannot encode.

    Line breaks and tabs stay; every other such character becomes U+FFFD.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def markdown_line(text: str) -> str:
    """Escape the text as one line of Markdown, so that it creates no link, image or HTML."""
    return _MARKS.sub(r"\\\1", " ".join(printable(text).split()))


def code_block(text: str) -> str:
    """Put the text in a Markdown code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"
