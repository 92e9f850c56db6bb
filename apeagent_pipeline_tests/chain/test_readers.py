"""The stored swaps mean the same to every tool that people read Parquet with."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apeagent_pipeline.artifacts.manifest import parquet_bytes
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA, empty_raw_swaps

Row = dict[str, Any]

LARGEST = {
    "amount0": str(-(1 << 127)),
    "amount1": str((1 << 127) - 1),
    "sqrt_price_x96": str((1 << 160) - 1),
    "liquidity": str((1 << 128) - 1),
    "tick": -887_272,
    "fee": (1 << 24) - 1,
    "block_number": (1 << 53) + 1,
    "block_timestamp": datetime(2262, 4, 11, 23, 47, 16, tzinfo=UTC),
}


def by_pyarrow(path: Path) -> list[Row]:
    return pq.read_table(path).to_pylist()


def by_pandas(path: Path) -> list[Row]:
    rows = pd.read_parquet(path, dtype_backend="pyarrow").to_dict("records")
    return [{name: None if value is pd.NA else value for name, value in row.items()} for row in rows]


def by_duckdb(path: Path) -> list[Row]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


READERS = [by_pyarrow, by_pandas, by_duckdb]


@pytest.fixture
def day(two_days: pl.DataFrame) -> pl.DataFrame:
    """Some real rows, one with the largest values of every field, one with a sender known and one with nulls."""
    rows = two_days.head(5)
    extreme = rows.tail(1).with_columns(**{name: pl.lit(value) for name, value in LARGEST.items()})
    enriched = rows.head(1).with_columns(tx_from=pl.lit("0x" + "a" * 40), tx_to=pl.lit("0x" + "b" * 40))
    return pl.concat([each.cast(dict(RAW_SWAPS_SCHEMA)) for each in (rows, enriched, extreme)])


@pytest.mark.parametrize("read", READERS)
def test_no_digit_is_lost_by_any_reader(tmp_path: Path, day: pl.DataFrame, read: Callable[[Path], list[Row]]) -> None:
    path = tmp_path / "2025-01-21.parquet"
    path.write_bytes(parquet_bytes(day))
    rows = read(path)
    assert rows == day.to_dicts()
    assert {name: rows[-1][name] for name in LARGEST} == LARGEST
    assert [rows[-2]["tx_from"], rows[-1]["tx_from"]] == ["0x" + "a" * 40, None]
    assert int(rows[-1]["sqrt_price_x96"]) == (1 << 160) - 1


def test_a_day_without_swaps_is_typed_and_empty_for_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "2025-01-21.parquet"
    path.write_bytes(parquet_bytes(empty_raw_swaps()))
    for read in READERS:
        assert read(path) == []
    assert pl.read_parquet(path).schema == RAW_SWAPS_SCHEMA
    arrow = {pl.Int64(): pa.int64(), pl.Int32(): pa.int32(), pl.Datetime("us", "UTC"): pa.timestamp("us", "UTC")}
    types = [arrow.get(kind, pa.large_string()) for kind in RAW_SWAPS_SCHEMA.dtypes()]
    found = pq.read_schema(path)
    assert found.names == RAW_SWAPS_SCHEMA.names()
    assert [pa.large_string() if pa.types.is_string_view(kind) else kind for kind in found.types] == types
    frame = pd.read_parquet(path, dtype_backend="pyarrow")
    assert str(frame.dtypes["block_timestamp"]) == "timestamp[us, tz=UTC][pyarrow]"
    sql = {pl.Int64(): "BIGINT", pl.Int32(): "INTEGER", pl.Datetime("us", "UTC"): "TIMESTAMP WITH TIME ZONE"}
    described = duckdb.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)]).fetchall()
    assert [(name, kind) for name, kind, *_ in described] == [
        (name, sql.get(kind, "VARCHAR")) for name, kind in RAW_SWAPS_SCHEMA.items()
    ]


def test_sums_of_amounts_are_exact_in_sql(tmp_path: Path, two_days: pl.DataFrame) -> None:
    path = tmp_path / "day.parquet"
    path.write_bytes(parquet_bytes(two_days))
    found = duckdb.execute("SELECT sum(amount0::HUGEINT), sum(amount1::HUGEINT) FROM read_parquet(?)", [str(path)])
    assert [int(value) for value in found.fetchone() or ()] == [
        sum(int(value) for value in two_days[name]) for name in ("amount0", "amount1")
    ]
