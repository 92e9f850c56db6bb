"""What an import found out."""

from dataclasses import dataclass, field
from datetime import date


@dataclass
class DayNotes:
    """What the import found out about a day.

    Attributes:
        swaps: Rows.
        tested: Rows whose amounts are large enough to test signs, units and fee.
        confirmed: Of those, rows that fit the price and the liquidity.
        gaps: Rows that do not follow from the row before: swaps are missing there.
        missing: Blocks of the first of them and of the rows before: swaps are missing between the two.
        undecided: Rows that crossed so many ticks that nothing tells whether they follow from the row before.
        perhaps_missing: Blocks of the first of those and of the rows before: a swap may be missing between the two.
        duplicates: Rows that were merged into equal ones.
        notes: Sentences for people.
    """

    swaps: int = 0
    tested: int = 0
    confirmed: int = 0
    gaps: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)
    undecided: int = 0
    perhaps_missing: list[tuple[int, int]] = field(default_factory=list)
    duplicates: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Imported:
    """An archive that was read and not denied.

    Attributes:
        layouts: File name -> layout that was recognised.
        notices: What was put right, left out or could not be told; sentences.
        days: Notes of each day with swaps, and of days without one between them.
    """

    layouts: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    days: dict[date, DayNotes] = field(default_factory=dict)
