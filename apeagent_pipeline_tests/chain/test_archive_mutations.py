"""Random corruptions of a right archive: each is refused, told in a notice, or without effect on the swaps.

Run ``python -m apeagent_pipeline_tests.chain.test_archive_mutations 2000`` for the table of a long run.
"""

import itertools
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
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


def right_rows() -> Rows:
    swaps = EmbeddedSource(BASE_ETH_USDC, 42).read_day(FIRST_DAY).head(SWAPS)
    text = swaps.with_columns(pl.col("block_timestamp").dt.epoch("s")).cast(pl.String()).fill_null("")
    return text.to_dicts()


def imported(rows: Rows, folder: Path) -> SwapArchive:
    path = folder / "swaps.csv"
    pl.DataFrame(rows, schema=dict.fromkeys(rows[0], pl.String())).write_csv(path)
    return SwapArchive(path, BASE_ETH_USDC)


def outcome(name: str, rows: Rows, seed: int, folder: Path) -> tuple[str, str]:
    """What became of a corrupted file, and what was told about it."""
    right = imported(rows, folder)
    expected, known = right.swaps, set(right.imported.notices)
    try:
        found = imported(MUTATIONS[name](rows, random.Random(seed)), folder)
        swaps = found.swaps
    except ArchiveError as error:
        return "refused", str(error).partition("line ")[2][:160]
    told = [notice for notice in found.imported.notices if notice not in known and " was read: " not in notice]
    if swaps.equals(expected):
        return "no effect", "; ".join(told)
    return ("noticed", "; ".join(told)) if told else ("PASSED", "")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return right_rows()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_corruption_never_passes_in_silence(name: str, rows: Rows, tmp_path: Path) -> None:
    for seed in range(1 if name.split(": ")[1].startswith(("every", "no ", "all to")) else SEEDS):
        result, told = outcome(name, rows, seed, tmp_path)
        assert result != "PASSED", (name, seed)
        if not name.startswith(("drop", "duplicate: a row", "shuffle", "truncate")):
            assert result == "refused", (name, seed, result, told)


def test_a_swap_missing_where_the_next_one_crossed_a_tick_is_told(rows: Rows, tmp_path: Path) -> None:
    # The liquidity differs on both sides of the gap, so that the price before the next swap is not known by itself.
    result, told = outcome("drop: one row", rows, 43, tmp_path)
    assert (result, told.partition(":")[0]) == ("noticed", f"1 of {SWAPS - 1} swaps do not follow from the swap before")


def test_the_right_file_passes_without_a_word(rows: Rows, tmp_path: Path) -> None:
    archive = imported(rows, tmp_path)
    assert archive.swaps.height == SWAPS
    assert [notice for notice in archive.imported.notices if "cut short" not in notice] == [
        f"swaps.csv was read: apeagent's own columns, {SWAPS} rows"
    ]


def main(count: int) -> None:
    """Print what became of ``count`` corruptions, by kind."""
    rows = right_rows()
    results: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            name = list(MUTATIONS)[number % len(MUTATIONS)]
            result, told = outcome(name, rows, number, Path(folder))
            results[name, result] += 1
            examples.setdefault((name, result), told)
    print("| corruption | outcome | files | first message |\n| --- | --- | --- | --- |")
    for (name, result), number in sorted(results.items()):
        print(f"| {name} | {result} | {number} | {examples[name, result][:120]} |")


if __name__ == "__main__":
    main(int(sys.argv[1]))
