"""Random corruptions of a right archive: each is refused, told in a notice, or without effect on the swaps.

Run ``python -m apeagent_pipeline_tests.benchmarks.archive_mutations`` for the table of a long run.
"""

import itertools
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource

Rows = list[dict[str, str]]
Mutation = Callable[[Rows, random.Random], Rows]
AMOUNTS = ("amount0", "amount1")
SWAPS = 400
SEEDS = 4


def negated(value: str) -> str:
    return value[1:] if value.startswith("-") else value if value == "0" else f"-{value}"


def as_double(value: str) -> str:
    return f"{float(value):.0f}"


def as_spreadsheet(value: str) -> str:
    digits = value.lstrip("-")
    return value[: len(value) - len(digits)] + digits[:15] + "0" * max(len(digits) - 15, 0)


def every(columns: tuple[str, ...], change: Callable[[str], str]) -> Mutation:
    return lambda rows, _: [{**row, **{name: change(row[name]) for name in columns}} for row in rows]


def one(columns: tuple[str, ...], change: Callable[[str], str]) -> Mutation:
    def mutate(rows: Rows, chance: random.Random) -> Rows:
        # A swap that is large enough for its amounts to tell something.
        at = chance.choice([at for at, row in enumerate(rows) if min(len(row[name]) for name in AMOUNTS) > 6])
        return [{**row, **{n: change(row[n]) for n in columns}} if at == i else row for i, row in enumerate(rows)]

    return mutate


def exchanged(first: str, second: str) -> Mutation:
    return lambda rows, _: [{**row, first: row[second], second: row[first]} for row in rows]


def shifted(columns: tuple[str, ...]) -> Mutation:
    def mutate(rows: Rows, _: random.Random) -> Rows:
        return [{**after, **{name: before[name] for name in columns}} for before, after in itertools.pairwise(rows)]

    return mutate


def times(shift: int) -> Callable[[str], str]:
    return lambda value: str(int(value) + shift)


def scaled(value: str) -> str:
    return value + "000"


def dropped(rows: Rows, chance: random.Random) -> Rows:
    at = chance.randrange(20, len(rows) - 20)
    return rows[:at] + rows[at + 1 :]


def dropped_many(rows: Rows, chance: random.Random) -> Rows:
    at = chance.randrange(20, len(rows) - 60)
    return rows[:at] + rows[at + 40 :]


def dropped_often(rows: Rows, chance: random.Random) -> Rows:
    return [row for row in rows if chance.random() > 0.1]


def dropped_before_midnight(rows: Rows, chance: random.Random) -> Rows:
    midnight = midnight_of(rows)
    return rows[: midnight - chance.randint(1, 20)] + rows[midnight:]


def dropped_after_midnight(rows: Rows, chance: random.Random) -> Rows:
    midnight = midnight_of(rows)
    return rows[:midnight] + rows[midnight + chance.randint(1, 20) :]


def midnight_of(rows: Rows) -> int:
    days = [int(row["block_timestamp"]) // 86_400 for row in rows]
    return days.index(days[-1])


def without_first(rows: Rows, chance: random.Random) -> Rows:
    return rows[chance.randint(1, 20) :]


def without_last(rows: Rows, chance: random.Random) -> Rows:
    return rows[: -chance.randint(1, 20)]


def repeated(rows: Rows, chance: random.Random) -> Rows:
    at = chance.randrange(len(rows))
    return [*rows, rows[at]]


def repeated_with_another_index(rows: Rows, chance: random.Random) -> Rows:
    at = chance.randrange(len(rows))
    return [*rows, {**rows[at], "log_index": str(int(rows[at]["log_index"]) + 1000)}]


def shuffled(rows: Rows, chance: random.Random) -> Rows:
    return chance.sample(rows, len(rows))


def shuffled_without_index(rows: Rows, chance: random.Random) -> Rows:
    return [{**row, "log_index": "", "transaction_index": ""} for row in chance.sample(rows, len(rows))]


def renumbered(rows: Rows, chance: random.Random) -> Rows:
    return [{**row, "log_index": str(10_000 - int(row["log_index"]))} for row in rows]


def cut(rows: Rows, chance: random.Random) -> Rows:
    return rows[: chance.randrange(len(rows) // 4, len(rows) // 2)]


PRICE = ("sqrt_price_x96",)
MUTATIONS: dict[str, Mutation] = {
    "flip: every sign": every(AMOUNTS, negated),
    "flip: one row": one(AMOUNTS, negated),
    "flip: one amount": one(("amount0",), negated),
    "flip: no sign": every(AMOUNTS, lambda value: value.lstrip("-")),
    "scale: amount0 of every row": every(("amount0",), scaled),
    "scale: amount1 of one row": one(("amount1",), scaled),
    "scale: both amounts": every(AMOUNTS, scaled),
    "scale: liquidity": every(("liquidity",), scaled),
    "scale: price": every(PRICE, scaled),
    "scale: fee": every(("fee",), lambda value: value + "0"),
    "shift: price and tick by one row": shifted(("sqrt_price_x96", "tick")),
    "shift: amounts by one row": shifted(AMOUNTS),
    "shift: liquidity by one row": shifted(("liquidity",)),
    "shift: times by an hour": every(("block_timestamp",), times(3600)),
    "shift: times by two seconds": every(("block_timestamp",), times(2)),
    "shift: one time by a day": one(("block_timestamp",), times(86_400)),
    "shift: block numbers": every(("block_number",), times(1_000_000)),
    "shift: one tick": one(("tick",), times(1)),
    "round: prices to doubles": every(PRICE, as_double),
    "round: one price to a double": one(PRICE, as_double),
    "round: prices to 15 digits": every(PRICE, as_spreadsheet),
    "round: amounts to 15 digits": every(AMOUNTS, as_spreadsheet),
    "round: amounts to doubles": every(AMOUNTS, as_double),
    "round: all to 15 digits": every((*AMOUNTS, "liquidity", *PRICE), as_spreadsheet),
    "drop: one row": dropped,
    "drop: forty rows": dropped_many,
    "drop: every tenth row, by chance": dropped_often,
    "duplicate: a row": repeated,
    "duplicate: a row under another log index": repeated_with_another_index,
    "shuffle: all rows": shuffled,
    "shuffle: all rows without an index": shuffled_without_index,
    "shuffle: log indexes backwards": renumbered,
    "truncate: rows at the end": cut,
    "swap columns: amount0 and amount1": exchanged(*AMOUNTS),
    "swap columns: liquidity and price": exchanged("liquidity", "sqrt_price_x96"),
    "swap columns: block and transaction hash": exchanged("block_hash", "transaction_hash"),
    "swap columns: tick and fee": exchanged("tick", "fee"),
    "swap columns: block number and log index": exchanged("block_number", "log_index"),
}
"""What is done to the file; all values are text."""


AT_MIDNIGHT: dict[str, Mutation] = {
    "drop: the last rows of a day": dropped_before_midnight,
    "drop: the first rows of a day": dropped_after_midnight,
}
"""What is done to a file of two days."""
AT_AN_END: dict[str, Mutation] = {
    "drop: the first rows of the file": without_first,
    "drop: the last rows of the file": without_last,
}
"""What is done to a file of a whole day. No file can tell what was before its first swap."""
PERHAPS = "places where a swap may be missing unseen"


def as_rows(swaps: pl.DataFrame) -> Rows:
    text = swaps.with_columns(pl.col("block_timestamp").dt.epoch("s")).cast(pl.String()).fill_null("")
    return text.to_dicts()


def right_rows() -> Rows:
    return as_rows(EmbeddedSource(BASE_ETH_USDC, 42).read_day(FIRST_DAY).head(SWAPS))


def rows_around_midnight() -> Rows:
    source = EmbeddedSource(BASE_ETH_USDC, 42)
    before, after = source.read_day(FIRST_DAY), source.read_day(FIRST_DAY + timedelta(days=1))
    return as_rows(pl.concat([before.tail(SWAPS // 2), after.head(SWAPS // 2)]))


def rows_of_a_day() -> Rows:
    return as_rows(EmbeddedSource(BASE_ETH_USDC, 42).read_day(FIRST_DAY))


def imported(rows: Rows, folder: Path) -> SwapArchive:
    path = folder / "swaps.csv"
    pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String())).write_csv(path)
    return SwapArchive(path, BASE_ETH_USDC)


class Corruption:
    """Corrupts a right file and tells what became of it."""

    def __init__(self, rows: Rows, folder: Path) -> None:
        self._rows = rows
        self._folder = folder
        right = imported(rows, folder)
        self._expected, self._known = right.swaps, set(right.imported.notices)
        self._perhaps = [notes.perhaps_missing for notes in right.imported.days.values()]

    def outcome(self, mutation: Mutation, seed: int) -> tuple[str, str]:
        """What became of a corrupted file, and what was told about it.

        "refused"; "told": a notice says what is wrong; "perhaps": the place is among those where a swap may be
        missing; "no effect" on the swaps; "PASSED": stored without a word.
        """
        try:
            found = imported(mutation(self._rows, random.Random(seed)), self._folder)
            swaps = found.swaps
        except ArchiveError as error:
            return "refused", str(error).partition("line ")[2][:160]
        told = [note for note in found.imported.notices if note not in self._known and " was read: " not in note]
        if swaps.equals(self._expected):
            return "no effect", "; ".join(told)
        certain = [notice for notice in told if PERHAPS not in notice]
        if certain:
            return "told", "; ".join(certain)
        perhaps = [notes.perhaps_missing for notes in found.imported.days.values()]
        return (
            ("PASSED", "")
            if perhaps == self._perhaps
            else ("perhaps", "; ".join(told) or "the blocks of another place")
        )


@pytest.fixture(scope="module")
def corruption(tmp_path_factory: pytest.TempPathFactory) -> Corruption:
    return Corruption(right_rows(), tmp_path_factory.mktemp("corrupted"))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_corruption_never_passes_in_silence(name: str, corruption: Corruption) -> None:
    for seed in range(1 if name.split(": ")[1].startswith(("every ", "no ", "all to")) else SEEDS):
        result, told = corruption.outcome(MUTATIONS[name], seed)
        assert result != "PASSED", (name, seed)
        if not name.startswith(("drop", "duplicate: a row", "shuffle", "truncate")):
            assert result == "refused", (name, seed, result, told)


@pytest.mark.parametrize("name", AT_MIDNIGHT)
def test_swaps_missing_at_midnight_are_told(name: str, tmp_path: Path) -> None:
    corrupted = Corruption(rows_around_midnight(), tmp_path)
    for seed in range(SEEDS):
        assert corrupted.outcome(AT_MIDNIGHT[name], seed)[0] in {"told", "perhaps"}, (name, seed)


def test_a_swap_missing_where_the_next_one_crossed_a_tick_is_told(corruption: Corruption) -> None:
    # The liquidity differs on both sides of the gap, so that the price before the next swap is not known by itself.
    result, told = corruption.outcome(dropped, 43)
    assert (result, told.partition(":")[0]) == ("told", f"1 of {SWAPS - 1} swaps do not follow from the swap before")


def without(*places: int) -> Mutation:
    return lambda rows, _: [row for at, row in enumerate(rows) if at not in places]


def test_the_place_of_a_missing_swap_is_named_by_its_blocks(corruption: Corruption) -> None:
    rows = right_rows()
    result, told = corruption.outcome(without(100), 0)
    assert result == "told"
    assert f"between blocks {rows[99]['block_number']} and {rows[101]['block_number']}" in told


def test_no_single_missing_swap_passes_in_silence(corruption: Corruption) -> None:
    # The first and the last swap have no neighbour that could tell.
    outcomes = {at: corruption.outcome(without(at), 0)[0] for at in range(1, SWAPS - 1, 17)}
    assert "PASSED" not in outcomes.values(), outcomes
    assert sum(outcome == "perhaps" for outcome in outcomes.values()) < 0.15 * len(outcomes)


def test_the_right_file_passes_without_a_word(tmp_path: Path) -> None:
    archive = imported(right_rows(), tmp_path)
    assert archive.swaps.height == SWAPS
    told = [notice for notice in archive.imported.notices if "cut short" not in notice and PERHAPS not in notice]
    assert told == [f"swaps.csv was read: apeagent's own columns, {SWAPS} rows"]
