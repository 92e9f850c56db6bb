"""The parts of the documentation that are made from the code and from recorded results.

Run ``python -m apeagent_pipeline_tests.docs.generate`` after a change of `Settings` or of a recorded result. It
rewrites what stands between ``<!-- generated: NAME -->`` and ``<!-- /generated -->`` in README.md and in the pages; a
test compares. NAME is ``settings``, ``result RESULT`` or ``summary RESULT``.
"""

import re
from collections.abc import Callable
from pathlib import Path

from apeagent_pipeline_tests.docs.results import result_section, summary_table
from apeagent_pipeline_tests.docs.settings_table import settings_table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = ROOT / "apeagent_pipeline" / "docs"

_SECTION = re.compile(r"(<!-- generated: (\w+) ?([\w-]*) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_RENDERERS: dict[str, Callable[..., str]] = {
    "settings": settings_table,
    "result": result_section,
    "summary": summary_table,
}


def documents() -> list[Path]:
    """README.md and every page."""
    return [README, *sorted(PAGES.glob("*.md"))]


def generated(text: str) -> str:
    """The text of a page with its generated sections made anew.

    Raises:
        KeyError: A section has a name that is not known.
    """

    def section(found: re.Match[str]) -> str:
        start, kind, name, end = found.groups()
        return f"{start}\n{_RENDERERS[kind](*filter(None, [name])).strip()}\n\n{end}"

    return _SECTION.sub(section, text)


def generated_names(text: str) -> list[str]:
    """The names of the generated sections of a page, such as ``result demo``."""
    return [" ".join(filter(None, found.group(2, 3))) for found in _SECTION.finditer(text)]


def main() -> None:
    """Rewrite what is not as it should be."""
    for path in documents():
        before = path.read_text()
        after = generated(before)
        if after != before:
            path.write_text(after)
            print(f"{path.relative_to(ROOT)} rewritten")


if __name__ == "__main__":
    main()
