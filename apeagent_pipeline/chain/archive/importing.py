"""The import itself: every file once, then every day once."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.ticks import Q96
from apeagent_pipeline.chain.archive import values
from apeagent_pipeline.chain.archive.clock import exact_clock
from apeagent_pipeline.chain.archive.columns import header_keys
from apeagent_pipeline.chain.archive.day_store import DayStore
from apeagent_pipeline.chain.archive.evidence import judge
from apeagent_pipeline.chain.archive.files import ArchiveFiles, natural_order
from apeagent_pipeline.chain.archive.layouts import COLUMN_KEYS, COMPANIONS, key, unusable
from apeagent_pipeline.chain.archive.normalise import FILE, NORMAL_SCHEMA, FileReader
from apeagent_pipeline.chain.archive.ordering import OrderEvidence, in_order
from apeagent_pipeline.chain.archive.problems import ArchiveError, Problems
from apeagent_pipeline.chain.archive.reading import Table, open_table
from apeagent_pipeline.chain.archive.streams import LINE
from apeagent_pipeline.chain.archive.verdict import Evidence, People, denials, off_clock
from apeagent_pipeline.chain.days import days_between
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA

_log = logging.getLogger(__name__)

_SMALLEST_PRICE = 1e-12
_WAS_READ = " was read: "
_FEWEST_SWAPS = 10
_SILENCE_SPACINGS = 20
_SHORTEST_SILENCE = 1_800
_FEW_KNOWN_HEADERS = 3
_MOST_COMPARED_FILES = 20


@dataclass
class DayNotes:
    """What the import found out about a day.

    Attributes:
        swaps: Rows.
        tested: Rows whose amounts are large enough to test signs, units and fee.
        confirmed: Of those, rows that fit the price and the liquidity.
        gaps: Rows that do not follow from the row before: swaps are missing there.
        duplicates: Rows that were merged into equal ones.
        notes: Sentences for people.
    """

    swaps: int = 0
    tested: int = 0
    confirmed: int = 0
    gaps: int = 0
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


class Importer:
    """Reads an archive.

    Args:
        path: Named in errors.
        found: Its files.
        pool: Whose swaps are wanted.
        flips: Whether the amounts have the pool's signs and are to be flipped.
    """

    def __init__(self, path: Path, found: ArchiveFiles, pool: PoolSpec, flips: bool) -> None:
        self._path = path
        self._files = natural_order(found.tables)
        self._skipped = found.skipped
        self._pool = pool
        self._flips = flips
        self._clock = exact_clock(pool.chain_id)
        self._problems = Problems(path)
        self._imported = Imported()
        self._ranks: dict[int, tuple[int, bool]] = {}
        self._tables: list[Path] = []

    def run(self, keep: Callable[[date, pl.DataFrame], None]) -> Imported:
        """Read all files, then check and keep each day.

        Args:
            keep: Takes the swaps of a day, RAW_SWAPS_SCHEMA. Nothing it was given counts if an error is raised.

        Raises:
            ArchiveError: if anything is wrong with the archive.
        """
        store = self._read_files()
        self._problems.raise_any()
        self._check_days(store, keep)
        self._problems.raise_any()
        for notice in self._imported.notices:
            _log.log(logging.INFO if _WAS_READ in notice else logging.WARNING, "%s: %s", self._path, notice)
        return self._imported

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self._path)) if file != self._path else file.name

    def _read_files(self) -> DayStore:
        tables, blocks = self._open_files()
        readers = [
            FileReader(file, number, table, pool=self._pool, clock=self._clock, blocks=blocks, problems=self._problems)
            for number, (file, table) in enumerate(tables)
        ]
        self._tables = [file for file, _ in tables]
        store = DayStore()
        for number, reader in enumerate(readers):
            ascending = descending = 0
            for batch in reader.batches():
                steps = batch["block_number"].diff()
                ascending += int((steps > 0).sum())
                descending += int((steps < 0).sum())
                store.add(self._with_signs(batch))
            self._ranks[number] = (number, descending > ascending)
        self._tell_files(tables, readers)
        self._problems.raise_any()
        self._rank_files()
        if not store.days():
            self._refuse_empty(readers)
        return store

    def _open_files(self) -> tuple[list[tuple[Path, Table]], pl.DataFrame | None]:
        tables: list[tuple[Path, Table]] = []
        blocks: list[pl.DataFrame] = []
        notices = self._imported.notices
        for file in self._files:
            try:
                table = open_table(file)
            except ArchiveError as error:
                if file == self._path or not _is_side_file(file):
                    raise
                notices.append(f"{self._name(file)} is not read: {error}")
                continue
            if table is None:
                raise ArchiveError(
                    f"{file} is empty; expected a header line and one line a swap. Fetch it again or remove it"
                )
            if not table.headers:
                notices.append(f"{self._name(file)} holds no rows")
                continue
            keys = header_keys(table.headers)
            companion = unusable(keys, COMPANIONS) if len(self._files) > 1 else None
            if companion and companion.name == "blocks":
                blocks.append(self._read_blocks(file, table, keys))
            elif companion:
                notices.append(f"{self._name(file)} is not read: it holds {companion.name}")
            elif file != self._path and _is_side_file(file) and _known_headers(keys) < _FEW_KNOWN_HEADERS:
                notices.append(f"{self._name(file)} is not read: it holds no swaps")
            else:
                tables.append((file, table))
        notices += [f"{name} is not read: {why}" for name, why in self._skipped]
        if not tables:
            raise ArchiveError(f"the swap archive {self._path} holds no file of swaps; {'; '.join(notices)[:500]}")
        return tables, pl.concat(blocks).unique("block_number") if blocks else None

    def _read_blocks(self, file: Path, table: Table, keys: Sequence[str]) -> pl.DataFrame:
        number = next(at for name in ("number", "blocknumber") for at, k in enumerate(keys) if k == name)
        time = next(at for name in ("timestamp", "blocktimestamp") for at, k in enumerate(keys) if k == name)
        parts = []
        for batch in table.batches([number, time], self._problems):
            block = values.integers(
                values.clean_text(values.as_text(batch[f"c{number}"], "block_number")), "block_number"
            )
            seconds, _ = values.times(batch[f"c{time}"])
            parts.append(pl.DataFrame({"block_number": block.cast(pl.Int64(), strict=False), "seconds": seconds}))
        rows = pl.concat(parts) if parts else pl.DataFrame(schema={"block_number": pl.Int64(), "seconds": pl.Int64()})
        self._imported.layouts[self._name(file)] = "blocks"
        return rows.drop_nulls()

    def _with_signs(self, batch: pl.DataFrame) -> pl.DataFrame:
        if not self._flips:
            return batch
        return batch.with_columns(
            pl.when(pl.col(name).str.starts_with("-"))
            .then(pl.col(name).str.slice(1))
            .when(pl.col(name) == "0")
            .then(pl.col(name))
            .otherwise("-" + pl.col(name))
            .alias(name)
            for name in ("amount0", "amount1")
        )

    def _tell_files(self, tables: Sequence[tuple[Path, Table]], readers: Sequence[FileReader]) -> None:
        notices = self._imported.notices
        left_out: Counter[str] = Counter()
        for (file, table), reader in zip(tables, readers, strict=True):
            name = self._name(file)
            self._imported.layouts[name] = reader.columns.layout
            notices.append(f"{name}{_WAS_READ}{reader.columns.layout}, {reader.rows} rows")
            notices += [
                f"{name}: {count} values of {column} were rewritten, the first from {old!r} to {new!r}"
                for column, (count, old, new) in reader.rewritten.items()
            ]
            left_out.update(reader.left_out)
            notices += [told for told in table.notices if told not in notices]
            if not reader.rows:
                notices.append(f"{name} holds a header and no rows")
        for told in sorted({told for reader in readers for told in reader.notices}):
            if told.startswith("times without") and self._clock:
                continue  # Each is held against the chain's clock.
            notices.append(told)
        notices += [f"{count} rows {what} are left out" for what, count in left_out.items()]

    def _rank_files(self) -> None:
        last = len(self._ranks) - 1
        if self._ranks and all(backwards for _, backwards in self._ranks.values()):
            self._ranks = {number: (last - rank, backwards) for number, (rank, backwards) in self._ranks.items()}

    def _refuse_empty(self, readers: Sequence[FileReader]) -> None:
        total = sum((reader.left_out for reader in readers), Counter())
        told = ", ".join(f"{count} rows {what}" for what, count in total.items()) or "no rows at all"
        raise ArchiveError(
            f"the swap archive {self._path} holds no swap of the pool {self._pool.pool_id} on chain "
            f"{self._pool.chain_id} ({told}); check APEAGENT_POOL_ID, APEAGENT_CHAIN_ID and APEAGENT_POOL_MANAGER"
        )

    def _check_days(self, store: DayStore, keep: Callable[[date, pl.DataFrame], None]) -> None:
        order = OrderEvidence()
        earlier = NORMAL_SCHEMA.to_frame()
        people = People()
        evidence = Evidence()
        for day in store.days():
            gathered = store.rows(day)
            ordered = in_order(gathered, self._ranks, order)
            for cause, rows in ordered.wrong.items():
                self._deny(rows, cause, "")
            rows = ordered.rows
            judged = judge(rows, earlier, self._pool, self._clock)
            self._check_times(rows, earlier, judged.rows)
            notes = _notes(day, rows, judged.rows, ordered.duplicates)
            notes.notes += self._overlaps(gathered)
            self._imported.days[day] = notes
            evidence.add(judged)
            people.add(rows)
            keep(day, rows.select(RAW_SWAPS_SCHEMA.names()))
            earlier = rows.tail(1)
            store.forget(day)
        for denial in denials(evidence, self._pool, self._flips):
            self._deny(denial.rows, denial.cause, f"{denial.detail}. {denial.remedy}")
        if wrong := people.denial():
            file, line = wrong.rows.select(FILE, LINE).row(0)
            count = sum(notes.swaps for notes in self._imported.days.values())
            self._problems.add(
                wrong.cause, self._tables[file], line, found=wrong.cause, remedy=f". {wrong.remedy}", rows=count
            )
        self._check_order(order)
        self._tell_price(earlier)
        self._tell_days(evidence)

    def _deny(self, rows: pl.DataFrame, cause: str, remedy: str) -> None:
        file, line = rows.select(FILE, LINE).row(0)
        self._problems.add(cause, self._tables[file], line, found=cause, remedy=remedy, rows=rows.height)

    def _check_times(self, rows: pl.DataFrame, earlier: pl.DataFrame, judged: pl.DataFrame) -> None:
        if self._clock and (denial := off_clock(judged, rows, self._clock, self._pool.chain_id)):
            self._deny(denial.rows, denial.cause, f"{denial.detail}. {denial.remedy}")
            return
        both = pl.concat([earlier, rows])
        backwards = pl.col("block_timestamp") < pl.col("block_timestamp").shift(1)
        wrong = both.filter(backwards.fill_null(False))
        if wrong.height:
            self._deny(wrong, "lies in a later block but at an earlier time than another row", "")

    def _tell_price(self, last: pl.DataFrame) -> None:
        base, quote = self._pool.token0, self._pool.token1
        price = (float(last["sqrt_price_x96"][0]) / Q96) ** 2 * 10.0 ** (base.decimals - quote.decimals)
        if not _SMALLEST_PRICE < price < 1 / _SMALLEST_PRICE:
            self._imported.notices.append(
                f"the last price is {price:.3g} {quote.symbol} for 1 {base.symbol}: if that cannot be, the file has "
                "the tokens in the other order"
            )

    def _check_order(self, order: OrderEvidence) -> None:
        if order.contradicted:
            self._imported.notices.append(
                f"{order.contradicted} blocks were put in the order that their prices prove; the file has another"
            )
        if order.open and (order.contradicted or not order.confirmed):
            file, line = order.first_open or (0, 0)
            self._problems.add(
                "order",
                self._tables[file],
                line,
                found="is one of several swaps of a block whose order is not known",
                remedy=": there is no log_index, and neither the prices nor the order of the file prove it. Export "
                "log_index",
                rows=order.open,
            )

    def _overlaps(self, rows: pl.DataFrame) -> list[str]:
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
                    names = [self._name(self._tables[number]) for number in (one, two)]
                    told.append(
                        f"{names[0]} and {names[1]} overlap and differ: {only_a} swaps only in the first, {only_b} "
                        "only in the second"
                    )
        return told

    def _tell_days(self, evidence: Evidence) -> None:
        days = self._imported.days
        for day in days_between(min(days), max(days)):
            if day not in days:
                days[day] = DayNotes(
                    notes=[
                        "the archive has no swap of this day although it has earlier and later ones: "
                        "a file may be missing"
                    ]
                )
        for day, notes in sorted(days.items()):
            self._imported.notices += [f"{day}: {note}" for note in notes.notes]
        gaps, rows = sum(notes.gaps for notes in days.values()), sum(notes.swaps for notes in days.values())
        if gaps:
            self._imported.notices.append(
                f"{gaps} of {rows} swaps do not follow from the swap before: swaps are missing before them"
            )
        if evidence.exact < evidence.compared:
            self._imported.notices.append(
                f"{evidence.compared - evidence.exact} of {evidence.compared} compared swaps follow from the swap "
                "before, but not to the last digit: they stopped at a price limit, or digits are lost"
            )
        tested = sum(notes.tested for notes in days.values())
        if not tested:
            self._imported.notices.append(
                "no swap is large enough to test signs, units and fee against the price: the import could not be "
                "verified"
            )


def _is_side_file(file: Path) -> bool:
    return any(suffix.lower() in {".txt", ".json"} for suffix in file.suffixes[-2:])


def _known_headers(keys: Sequence[str]) -> int:
    known = {k for found in COLUMN_KEYS.values() for k in found}
    return len(known.intersection(keys) | {k for k in keys if key(k) in known})


def _notes(day: date, rows: pl.DataFrame, judged: pl.DataFrame, duplicates: int) -> DayNotes:
    notes = DayNotes(
        swaps=rows.height,
        tested=int(judged["informative"].sum()),
        confirmed=int(judged["fits"].sum()),
        gaps=int((judged["linkable"] & ~judged["linked"] | judged["crossed_gap"]).sum()),
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
