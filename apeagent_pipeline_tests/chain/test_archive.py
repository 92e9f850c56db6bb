"""Archives: what is put right, and what is refused with its line."""

import logging
import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MAX_TICK
from apeagent_pipeline.artifacts.manifest import parquet_bytes
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive
from apeagent_pipeline.chain.archive.normalise import FileReader
from apeagent_pipeline.chain.archive.problems import Problems
from apeagent_pipeline.chain.archive.reading import open_table
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA, check_raw_swaps, empty_raw_swaps

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "base_eth_usdc_swaps_2025-01-23_2025-02-04.csv"
HEADER = (
    "block_number,transaction_hash,pool_id,router_address,original_sender,is_contract_sender,amount0,amount1,"
    "sqrt_price_x96,liquidity,tick,fee,timestamp"
)
POOL = BASE_ETH_USDC.pool_id[2:]


def published(df: pl.DataFrame) -> list[str]:
    """Lines as the published collector scripts write them: no 0x on hashes, mixed case, no log index."""
    lines = df.select(
        pl.col("block_number").cast(pl.String()),
        pl.col("transaction_hash").str.slice(2),
        pl.lit(POOL).alias("pool"),
        "0x" + pl.col("sender").str.slice(2).str.to_uppercase(),
        pl.lit("0x4423B0D6955aF39B48cf215577a79Ce574299D3f").alias("from"),
        pl.lit("False").alias("contract"),
        "amount0",
        "amount1",
        "sqrt_price_x96",
        "liquidity",
        pl.col("tick").cast(pl.String()),
        pl.lit("500").alias("fee"),
        pl.col("block_timestamp").dt.epoch("s").cast(pl.String()),
    )
    return [",".join(row) for row in lines.iter_rows()]


@pytest.fixture(scope="module")
def lines(two_days: pl.DataFrame) -> list[str]:
    return published(two_days)


def write(path: Path, lines: list[str], header: str = HEADER) -> SwapArchive:
    path.write_text("\n".join([header, *lines]) + "\n")
    return SwapArchive(path, BASE_ETH_USDC)


def test_a_published_csv_gives_the_swaps_of_the_chain(tmp_path: Path, lines: list[str], two_days: pl.DataFrame) -> None:
    archive = write(tmp_path / "swaps.csv", lines)
    found = archive.swaps
    assert found.schema == RAW_SWAPS_SCHEMA
    same = [name for name in found.columns if name not in {"block_hash", "transaction_index", "log_index", "tx_from"}]
    assert found.select(same).equals(two_days.select(same))
    assert found["tx_from"].unique().to_list() == ["0x4423b0d6955af39b48cf215577a79ce574299d3f"]
    assert found["block_hash"].null_count() == found["transaction_index"].null_count() == found.height
    assert archive.span() == (FIRST_DAY, FIRST_DAY + timedelta(days=1))
    for day in archive.span():
        check_raw_swaps(archive.read_day(day), day)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_this_project_wrote_is_read_back_as_it_was(tmp_path: Path, two_days: pl.DataFrame, suffix: str) -> None:
    path = tmp_path / f"swaps{suffix}"
    two_days.write_csv(path) if suffix == ".csv" else two_days.write_parquet(path)
    assert SwapArchive(path, BASE_ETH_USDC).swaps.equals(two_days)


def test_the_stored_days_are_an_archive_that_gives_the_same_days(tmp_path: Path, two_days: pl.DataFrame) -> None:
    # A day without swaps, one whose transactions are known, and the manifests that lie beside the tables.
    today = pl.col("block_timestamp").dt.date() == FIRST_DAY
    first, second = two_days.filter(today), two_days.filter(~today)
    second = second.with_columns(tx_from=pl.lit("0x" + "ab" * 20), tx_to=pl.lit("0x" + "cd" * 20))
    for number, day in enumerate([empty_raw_swaps(), first, second, empty_raw_swaps()], start=20):
        (tmp_path / f"2025-01-{number}.parquet").write_bytes(parquet_bytes(day))
        (tmp_path / f"2025-01-{number}.manifest.json").write_text("{}")
    archive = SwapArchive(tmp_path, BASE_ETH_USDC)
    assert archive.swaps.equals(pl.concat([first, second]))
    assert [parquet_bytes(archive.read_day(day)) for day in archive.span()] == [
        parquet_bytes(first),
        parquet_bytes(second),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_largest_values_survive_the_reading_of_a_file(tmp_path: Path, two_days: pl.DataFrame, suffix: str) -> None:
    # No swap has them together: the evidence would refuse the archive.
    largest = {"amount0": -(1 << 127), "amount1": (1 << 127) - 1, "liquidity": (1 << 128) - 1}
    largest |= {"sqrt_price_x96": MAX_SQRT_PRICE - 1, "tick": MAX_TICK - 1, "fee": 1_000_000}
    extreme = two_days.tail(1).with_columns(**{name: pl.lit(str(value)) for name, value in largest.items()})
    table = pl.concat([two_days.head(3), extreme.cast(dict(RAW_SWAPS_SCHEMA))])
    path = tmp_path / f"swaps{suffix}"
    table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    opened = open_table(path)
    assert opened is not None
    problems = Problems(path)
    reader = FileReader(path, 0, opened, pool=BASE_ETH_USDC, clock=None, blocks=None, problems=problems)
    found = pl.concat(reader.batches()).select(RAW_SWAPS_SCHEMA.names())
    assert not problems
    assert found.equals(table)


def test_an_archive_of_several_pools_and_chains_gives_each_its_own(tmp_path: Path, two_days: pl.DataFrame) -> None:
    other = BASE_ETH_USDC.model_copy(update={"pool_id": "0x" + "ab" * 32})
    elsewhere = BASE_ETH_USDC.model_copy(update={"chain_id": 1})
    theirs = two_days.head(40).with_columns(pl.lit(other.pool_id).alias("pool_id"))
    far = two_days.head(30).with_columns(pl.lit(1, pl.Int64()).alias("chain_id"))
    pl.concat([theirs, two_days, far]).write_parquet(tmp_path / "swaps.parquet")
    for pool, expected in ((BASE_ETH_USDC, two_days), (other, theirs), (elsewhere, far)):
        archive = SwapArchive(tmp_path / "swaps.parquet", pool)
        assert archive.swaps.equals(expected)
        check_raw_swaps(archive.read_day(FIRST_DAY), FIRST_DAY)


def test_duplicates_and_disorder_are_put_right(tmp_path: Path, lines: list[str]) -> None:
    clean = write(tmp_path / "clean.csv", lines).swaps
    # As two workers whose ranges share their ends write it: the later half first, forty lines twice.
    half = next(i for i in range(len(lines) // 2, len(lines)) if lines[i].split(",")[0] != lines[i - 1].split(",")[0])
    messy = write(tmp_path / "messy.csv", [*lines[half:], *lines[: half + 40]]).swaps
    assert messy.equals(clean)


def test_a_folder_is_one_archive(tmp_path: Path, lines: list[str]) -> None:
    whole = write(tmp_path / "whole.csv", lines)
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.csv", lines[:1_000])
    write(folder / "b.csv", lines[990:])
    (folder / "README.md").write_text("not a swap")
    parts = SwapArchive(folder, BASE_ETH_USDC)
    assert parts.swaps.equals(whole.swaps)
    assert parts.content_hash != whole.content_hash


def test_the_content_hash_follows_the_content_and_not_the_name(tmp_path: Path, lines: list[str]) -> None:
    a, b = write(tmp_path / "a.csv", lines[:9]), write(tmp_path / "b.csv", lines[:9])
    assert a.content_hash == b.content_hash
    assert write(tmp_path / "c.csv", lines[:8]).content_hash != a.content_hash


def test_a_day_without_rows_inside_the_span_is_typed_and_empty_and_outside_it_an_error(
    tmp_path: Path, lines: list[str]
) -> None:
    later = [*lines[-1].split(",")]
    later[0], later[-1] = str(int(later[0]) + 3 * 43_200), str(int(later[-1]) + 3 * 86_400)
    archive = write(tmp_path / "swaps.csv", [*lines, ",".join(later)])
    gap = archive.read_day(FIRST_DAY + timedelta(days=2))
    assert gap.is_empty()
    assert gap.schema == RAW_SWAPS_SCHEMA
    for day in (FIRST_DAY - timedelta(days=1), date(2030, 1, 1)):
        with pytest.raises(ArchiveError, match=f"{day} lies outside"):
            archive.read_day(day)


def test_rows_of_other_pools_are_left_out_and_counted(
    tmp_path: Path, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    foreign = [line.replace(POOL, "ab" * 32) for line in lines[:7]]
    with caplog.at_level(logging.WARNING):
        found = write(tmp_path / "swaps.csv", [*foreign, *lines]).swaps
    assert found.equals(write(tmp_path / "clean.csv", lines).swaps)
    assert "7 rows of other pools" in caplog.text
    with pytest.raises(ArchiveError, match=r"holds no swap of the pool .* \(7 rows.*APEAGENT_POOL_KEY"):
        _ = write(tmp_path / "foreign.csv", foreign).swaps


COLUMNS = HEADER.split(",")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("amount0", "1e18"),
        ("amount0", "nan"),
        ("amount1", ""),
        ("amount1", "12.5"),
        ("sqrt_price_x96", "-4458936925670369649410795"),
        ("sqrt_price_x96", "0"),
        ("sqrt_price_x96", "NaN"),
        ("liquidity", "-1"),
        ("tick", "99999999"),
        ("fee", "half a percent"),
        ("fee", "99999999999"),
        ("block_number", "-3"),
        ("block_number", "12e3"),
        ("transaction_hash", "abc"),
        ("pool_id", "the ETH-USDC one"),
        ("router_address", "0x12"),
        ("timestamp", "yesterday"),
        ("timestamp", ""),
    ],
)
def test_a_malformed_value_is_named_with_file_line_and_expectation(
    tmp_path: Path, lines: list[str], column: str, value: str
) -> None:
    broken = lines[4].split(",")
    broken[COLUMNS.index(column)] = value
    archive = write(tmp_path / "swaps.csv", [*lines[:4], ",".join(broken), *lines[5:20]])
    shown = re.escape(repr(value)) if value else "nothing"
    with pytest.raises(ArchiveError, match=rf"swaps\.csv line 6: {column} is {shown}, expected "):
        _ = archive.swaps


def changed(column: str, change: Callable[[str], str], line: str) -> str:
    values = line.split(",")
    values[COLUMNS.index(column)] = change(values[COLUMNS.index(column)])
    return ",".join(values)


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("tick", lambda tick: str(int(tick) + 5), "line 6: a tick that contradicts"),
        ("sqrt_price_x96", lambda price: price + "0" * 20, "line 6: a tick that contradicts"),
        ("timestamp", lambda moment: str(int(moment) + 86_400), "line 6: times that are not those of their blocks"),
        ("timestamp", lambda moment: "2025-13-45T00:00:00", "line 6: timestamp is '2025-13-45T00:00:00', expected"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_their_line(
    tmp_path: Path, lines: list[str], column: str, change: Callable[[str], str], expected: str
) -> None:
    archive = write(tmp_path / "swaps.csv", [*lines[:4], changed(column, change, lines[4]), *lines[5:20]])
    with pytest.raises(ArchiveError, match=expected):
        _ = archive.swaps


def test_two_different_rows_under_one_key_are_refused(tmp_path: Path, two_days: pl.DataFrame) -> None:
    twice = two_days.head(3).with_columns(pl.lit("0x" + "9" * 64).alias("transaction_hash"))
    pl.concat([two_days, twice]).write_parquet(tmp_path / "swaps.parquet")
    with pytest.raises(ArchiveError, match="log_index of another"):
        _ = SwapArchive(tmp_path / "swaps.parquet", BASE_ETH_USDC).swaps


def test_a_line_with_too_few_or_too_many_values_is_named(tmp_path: Path, lines: list[str]) -> None:
    for broken, count in ((lines[2] + ",7", 14), (lines[2].rsplit(",", 1)[0], 12)):
        with pytest.raises(ArchiveError, match=f"line 4 has {count} values, expected 13"):
            _ = write(tmp_path / "swaps.csv", [*lines[:2], broken, *lines[3:9]]).swaps


def test_missing_columns_are_named_in_both_languages(tmp_path: Path, lines: list[str]) -> None:
    header = HEADER.replace("router_address", "router").replace("liquidity", "depth")
    with pytest.raises(ArchiveError, match=r"lacks sender, liquidity; its columns are block_n"):
        _ = write(tmp_path / "swaps.csv", lines[:3], header).swaps


def test_floating_point_amounts_in_parquet_are_refused(tmp_path: Path, two_days: pl.DataFrame) -> None:
    two_days.with_columns(pl.col("amount0").cast(pl.Float64())).write_parquet(tmp_path / "swaps.parquet")
    with pytest.raises(ArchiveError, match=r"amount0 is .*a floating-point number loses digits"):
        _ = SwapArchive(tmp_path / "swaps.parquet", BASE_ETH_USDC).swaps


def test_a_null_in_parquet_is_refused_with_its_row(tmp_path: Path, two_days: pl.DataFrame) -> None:
    price = pl.when(pl.int_range(pl.len()) == 11).then(None).otherwise(pl.col("sqrt_price_x96"))
    two_days.with_columns(price.alias("sqrt_price_x96")).write_parquet(tmp_path / "swaps.parquet")
    with pytest.raises(ArchiveError, match="line 12: sqrt_price_x96 is nothing"):
        _ = SwapArchive(tmp_path / "swaps.parquet", BASE_ETH_USDC).swaps


def test_what_is_no_archive_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, content in (("a.csv", b""), ("b.csv", b"\xff\xfe\x00"), ("c.parquet", b"PAR1"), ("d.txt", b"x")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "headeronly.csv").write_text(HEADER + "\n")
    for name in ("missing.csv", "empty", "a.csv", "b.csv", "c.parquet", "d.txt", "headeronly.csv"):
        with pytest.raises(ArchiveError, match=name):
            _ = SwapArchive(tmp_path / name, BASE_ETH_USDC).swaps


def test_line_ends_of_other_systems_and_a_byte_order_mark_do_not_matter(tmp_path: Path, lines: list[str]) -> None:
    clean = write(tmp_path / "clean.csv", lines[:50]).swaps
    path = tmp_path / "windows.csv"
    path.write_bytes(("\r\n".join([HEADER, *lines[:50]]) + "\r\n\r\n").encode("utf-8-sig"))
    assert SwapArchive(path, BASE_ETH_USDC).swaps.equals(clean)


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"the real sample is not at {SAMPLE}")
def test_the_real_sample_is_read_whole() -> None:
    archive = SwapArchive(SAMPLE, BASE_ETH_USDC)
    assert archive.swaps.height == 5_546 - 18
    assert archive.span() == (date(2025, 1, 23), date(2025, 2, 4))
    days = [FIRST_DAY + timedelta(days=i) for i in range(2, 15)]
    frames = [archive.read_day(day) for day in days]
    for day, frame in zip(days, frames, strict=True):
        check_raw_swaps(frame, day)
    assert pl.concat(frames).equals(archive.swaps)
    assert archive.read_day(date(2025, 1, 25)).is_empty()
