"""The checks of an archive's days, one after the other, and what they tell of the archive as a whole."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import Q96
from apeagent_pipeline.chain.archive.clock import exact_clock
from apeagent_pipeline.chain.archive.evidence import Judged, epoch_seconds, judge
from apeagent_pipeline.chain.archive.imported import DayNotes
from apeagent_pipeline.chain.archive.normalise import FILE, NORMAL_SCHEMA
from apeagent_pipeline.chain.archive.ordering import OrderEvidence, in_order
from apeagent_pipeline.chain.archive.problems import Problems
from apeagent_pipeline.chain.archive.streams import LINE
from apeagent_pipeline.chain.archive.verdict import Evidence, People, denials, off_clock
from apeagent_pipeline.chain.days import days_between

_SMALLEST_PRICE = 1e-12
_FEWEST_SWAPS = 10
_SILENCE_SPACINGS = 20
_SHORTEST_SILENCE = 1_800
_MOST_COMPARED_FILES = 20
_MOST_PLACES = 100
_SHOWN_PLACES = 5


def between(places: Sequence[tuple[int, int]]) -> str:
    """Such as ``between blocks 5 and 9, 12 and 13 and others``."""
    shown = ", ".join(f"{first} and {last}" for first, last in places[:_SHOWN_PLACES])
    return f"between blocks {shown}{' and others' if len(places) > _SHOWN_PLACES else ''}"


class DayChecks:
    """Checks days, each once and in their order.

    Args:
        archive: Named in errors.
        tables: Its files of swaps; their places stand in `FILE`.
        names: What notices call them.
        pool: Whose swaps these are.
        flips: Whether the settings flip the signs.

    Attributes:
        days: Notes of each day that was checked.
        notices: What was found out about the whole archive.
        problems: Why it is refused.
    """

    def __init__(
        self, archive: Path, tables: Sequence[Path], names: Sequence[str], *, pool: PoolSpec, flips: bool
    ) -> None:
        self.days: dict[date, DayNotes] = {}
        self.notices: list[str] = []
        self.problems = Problems(archive)
        self._tables = tables
        self._names = names
        self._pool = pool
        self._flips = flips
        self._clock = exact_clock(pool.chain_id)
        self._order = OrderEvidence()
        self._earlier = NORMAL_SCHEMA.to_frame()
        self._people = People()
        self._evidence = Evidence()

    def check(self, day: date, gathered: pl.DataFrame, ranks: Mapping[int, tuple[int, bool]]) -> pl.DataFrame:
        """Check a day later than those before.

        Args:
            day: Which.
            gathered: All its rows, NORMAL_SCHEMA, in any order.
            ranks: As `in_order` takes them.

        Returns:
            NORMAL_SCHEMA: each swap once and in order. It counts only if no problem is found.
        """
        ordered = in_order(gathered, ranks, self._order)
        for cause, wrong in ordered.wrong.items():
            self._deny(wrong, cause, "")
        rows = ordered.rows
        judged = judge(rows, self._earlier, self._pool, self._clock)
        self._check_times(rows, judged)
        notes = _notes(day, rows, self._earlier, judged, ordered.duplicates)
        notes.notes += self._overlaps(gathered)
        self.days[day] = notes
        self._evidence.add(judged)
        self._people.add(rows)
        self._earlier = rows.tail(1)
        return rows

    def finish(self) -> None:
        """Judge the archive as a whole, after its last day."""
        for denial in denials(self._evidence, self._pool, self._flips):
            self._deny(denial.rows, denial.cause, f"{denial.detail}. {denial.remedy}")
        if wrong := self._people.denial():
            file, line = wrong.rows.select(FILE, LINE).row(0)
            count = sum(notes.swaps for notes in self.days.values())
            self.problems.add(
                wrong.cause, self._tables[file], line, found=wrong.cause, remedy=f". {wrong.remedy}", rows=count
            )
        self._check_order()
        self._tell_price()
        self._tell_days()

    def _deny(self, rows: pl.DataFrame, cause: str, remedy: str) -> None:
        file, line = rows.select(FILE, LINE).row(0)
        self.problems.add(cause, self._tables[file], line, found=cause, remedy=remedy, rows=rows.height)

    def _check_times(self, rows: pl.DataFrame, judged: Judged) -> None:
        if self._clock and (denial := off_clock(judged, rows, self._clock, self._pool.chain_id)):
            self._deny(denial.rows, denial.cause, f"{denial.detail}. {denial.remedy}")
            return
        times = np.r_[epoch_seconds(self._earlier), epoch_seconds(rows)]
        backwards = np.flatnonzero(np.diff(times) < 0) + 1 - self._earlier.height
        if len(backwards):
            self._deny(rows[backwards], "lies in a later block but at an earlier time than another row", "")

    def _tell_price(self) -> None:
        base, quote = self._pool.token0, self._pool.token1
        price = (float(self._earlier["sqrt_price_x96"][0]) / Q96) ** 2 * 10.0 ** (base.decimals - quote.decimals)
        if not _SMALLEST_PRICE < price < 1 / _SMALLEST_PRICE:
            self.notices.append(
                f"the last price is {price:.3g} {quote.symbol} for 1 {base.symbol}: if that cannot be, the file has "
                "the tokens in the other order"
            )

    def _check_order(self) -> None:
        order = self._order
        if order.contradicted:
            self.notices.append(
                f"{order.contradicted} blocks were put in the order that their prices prove; the file has another"
            )
        if order.open and (order.contradicted or not order.confirmed):
            file, line = order.first_open or (0, 0)
            self.problems.add(
                "order",
                self._tables[file],
                line,
                found="is one of several swaps of a block whose order is not known",
                remedy=": there is no log_index, and neither the prices nor the order of the file prove it. Export "
                "log_index",
                rows=order.open,
            )

    def _overlaps(self, rows: pl.DataFrame) -> list[str]:
        if rows[FILE].min() == rows[FILE].max():
            return []
        numbers = rows[FILE].unique().sort().to_list()
        if not 1 < len(numbers) <= _MOST_COMPARED_FILES:
            return []
        swaps = rows.select(
            FILE, "block_number", pl.struct("block_number", "transaction_hash", "sqrt_price_x96").alias("swap")
        )
        told = []
        files = {number: swaps.filter(pl.col(FILE) == number) for number in numbers}
        for place, one in enumerate(numbers):
            for two in numbers[place + 1 :]:
                a, b = files[one], files[two]
                low = max(a["block_number"].min(), b["block_number"].min())  # type: ignore[type-var]
                high = min(a["block_number"].max(), b["block_number"].max())  # type: ignore[type-var]
                inside = pl.col("block_number").is_between(low, high)
                a, b = a.filter(inside), b.filter(inside)
                only_a = a.join(b, on="swap", how="anti").height
                only_b = b.join(a, on="swap", how="anti").height
                if only_a < a.height and (only_a or only_b):
                    names = [self._names[number] for number in (one, two)]
                    told.append(
                        f"{names[0]} and {names[1]} overlap and differ: {only_a} swaps only in the first, {only_b} "
                        "only in the second"
                    )
        return told

    def _tell_days(self) -> None:
        days, evidence = self.days, self._evidence
        for day in days_between(min(days), max(days)):
            if day not in days:
                days[day] = DayNotes(
                    notes=[
                        "the archive has no swap of this day although it has earlier and later ones: "
                        "a file may be missing"
                    ]
                )
        for day, notes in sorted(days.items()):
            self.notices += [f"{day}: {note}" for note in notes.notes]
        gaps, rows = sum(notes.gaps for notes in days.values()), sum(notes.swaps for notes in days.values())
        if gaps:
            self.notices.append(
                f"{gaps} of {rows} swaps do not follow from the swap before: swaps are missing before them, "
                f"{between([place for _, notes in sorted(days.items()) for place in notes.missing])}"
            )
        if undecided := sum(notes.undecided for notes in days.values()):
            self.notices.append(
                f"{undecided} places where a swap may be missing unseen, because the next swap crossed several ticks: "
                f"{between([place for _, notes in sorted(days.items()) for place in notes.perhaps_missing])}"
            )
        if evidence.exact < evidence.compared:
            self.notices.append(
                f"{evidence.compared - evidence.exact} of {evidence.compared} compared swaps follow from the swap "
                "before, but not to the last digit: they stopped at a price limit, or digits are lost"
            )
        tested = sum(notes.tested for notes in days.values())
        if not tested:
            self.notices.append(
                "no swap is large enough to test signs, units and fee against the price: the import could not be "
                "verified"
            )


def _notes(day: date, rows: pl.DataFrame, earlier: pl.DataFrame, judged: Judged, duplicates: int) -> DayNotes:
    notes = DayNotes(
        swaps=rows.height,
        tested=judged.count("informative"),
        confirmed=judged.count("fits"),
        gaps=judged.count("gap"),
        missing=_places(rows, earlier, judged.flags["gap"]),
        undecided=judged.count("undecided"),
        perhaps_missing=_places(rows, earlier, judged.flags["undecided"]),
        duplicates=duplicates,
    )
    if duplicates:
        notes.notes.append(f"{duplicates} rows that repeat others are left out")
    if not notes.tested:
        notes.notes.append("no swap is large enough to test signs, units and fee")
    if rows.height < _FEWEST_SWAPS:
        return notes
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    first, last = rows["block_timestamp"][0], rows["block_timestamp"][-1]
    spacing = (last - first).total_seconds() / (rows.height - 1)
    longest = timedelta(seconds=max(_SHORTEST_SILENCE, _SILENCE_SPACINGS * spacing))
    if first - start > longest:
        notes.notes.append(f"the first swap is of {first:%H:%M:%S}: the day may be cut short at its start")
    if start + timedelta(days=1) - last > longest:
        notes.notes.append(f"the last swap is of {last:%H:%M:%S}: the day may be cut short at its end")
    return notes


def _places(rows: pl.DataFrame, earlier: pl.DataFrame, flags: np.ndarray) -> list[tuple[int, int]]:
    """Blocks of the first rows with a flag, each after that of the row before it."""
    if not flags.any():
        return []
    blocks = np.r_[earlier["block_number"].to_numpy(), rows["block_number"].to_numpy()]
    at = np.flatnonzero(flags)[:_MOST_PLACES] + earlier.height
    return list(zip(blocks[at - 1].tolist(), blocks[at].tolist(), strict=True))
