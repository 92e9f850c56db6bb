"""What is wrong with an archive: one message a cause, with the first place and the number of rows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apeagent_pipeline.chain.errors import ChainError

_SHOWN_CAUSES = 5
_SHOWN_CHARACTERS = 80
_LONGEST_MESSAGE = 700


class ArchiveError(ChainError):
    """An archive cannot be used; the message names file, lines, what was found and what was expected."""


@dataclass
class Problem:
    """One cause of refusal."""

    file: Path
    line: int
    found: str
    remedy: str
    rows: int

    def __str__(self) -> str:
        """One line: the first place, the number of rows, and what was expected."""
        count = f" ({self.rows} rows)" if self.rows > 1 else ""
        return f"{self.file} line {self.line}: {self.found}{count}{self.remedy}"[:_LONGEST_MESSAGE]


@dataclass
class Problems:
    """Collects causes of refusal over all files, so that each is reported once."""

    archive: Path
    _found: dict[str, Problem] = field(default_factory=dict)

    def add_value(self, file: Path, line: int, *, header: str, value: Any, expected: str, rows: int) -> None:
        """A value that its column cannot hold."""
        shown = "nothing" if value is None or value == "" else repr(str(value)[:_SHOWN_CHARACTERS])
        self.add(
            f"{header}: {expected}",
            file,
            line,
            found=f"{header} is {shown}",
            remedy=f", expected {expected}",
            rows=rows,
        )

    def add(self, cause: str, file: Path, line: int, *, found: str, remedy: str, rows: int) -> None:
        """Rows that share a cause; later rows of a cause only add to its number.

        Args:
            cause: Tells causes apart.
            file: With the first row.
            line: Of the first row.
            found: What the first row shows.
            remedy: What follows the number of rows: what was expected, or what to do.
            rows: How many rows have it.
        """
        known = self._found.setdefault(cause, Problem(file, line, found, remedy, 0))
        known.rows += rows

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._found)

    def raise_any(self) -> None:
        """Refuse the archive if there is a problem.

        Raises:
            ArchiveError: naming the first causes.
        """
        if self._found:
            causes = [str(problem) for problem in self._found.values()]
            more = f"; and {len(causes) - _SHOWN_CAUSES} more causes" if len(causes) > _SHOWN_CAUSES else ""
            listed = "; ".join(causes[:_SHOWN_CAUSES])
            raise ArchiveError(f"the swap archive {self.archive.name} cannot be imported: {listed}{more}")
