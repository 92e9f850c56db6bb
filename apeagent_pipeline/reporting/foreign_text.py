"""Text that others wrote (nodes, teachers, models, people), made harmless for terminals and Markdown pages."""

import re

_MARKS = re.compile(r"([\\`*_\[\]<>~&])")


def printable(text: str) -> str:
    """The text without control characters, which a terminal would obey, and without what UTF-8 cannot write.

    Line breaks and tabs stay; every other such character becomes U+FFFD.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def markdown_line(text: str) -> str:
    """The text in one line of Markdown that shows it as it is: no link, picture or HTML comes of it."""
    return _MARKS.sub(r"\\\1", " ".join(printable(text).split()))


def code_block(text: str) -> str:
    """The text as a Markdown code block, which nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"
