"""Days are checked while the archive is read; one that is not in order gives the same swaps and the same notes."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource


@pytest.fixture(scope="module")
def swaps() -> pl.DataFrame:
    source = EmbeddedSource(BASE_ETH_USDC, 42)
    days = [source.read_day(FIRST_DAY + timedelta(days=number)).head(60) for number in range(3)]
    return pl.concat([days[0], days[1][:20], days[1][21:], days[2]])


def imported(swaps: pl.DataFrame, folder: Path) -> SwapArchive:
    folder.mkdir()
    swaps.write_parquet(folder / "swaps.parquet")
    return SwapArchive(folder / "swaps.parquet", BASE_ETH_USDC, cache=folder / "cache")


def test_a_late_row_of_a_day_that_was_checked_is_not_lost(swaps: pl.DataFrame, tmp_path: Path) -> None:
    right = imported(swaps, tmp_path / "right")
    late = imported(pl.concat([swaps[:10], swaps[11:], swaps[10:11]]), tmp_path / "late")
    assert right.swaps.equals(swaps)
    assert late.swaps.equals(swaps)
    assert late.imported.days == right.imported.days
    assert right.imported.days[FIRST_DAY + timedelta(days=1)].gaps >= 1


def test_rows_in_any_order_give_the_same_days(swaps: pl.DataFrame, tmp_path: Path) -> None:
    right, shuffled = (
        imported(swaps, tmp_path / "right"),
        imported(swaps.sample(fraction=1, shuffle=True, seed=1), tmp_path / "shuffled"),
    )
    assert shuffled.swaps.equals(right.swaps)
    assert shuffled.imported.days == right.imported.days


def test_a_row_of_a_day_that_was_checked_is_merged_where_it_comes_again(swaps: pl.DataFrame, tmp_path: Path) -> None:
    again = imported(pl.concat([swaps, swaps[5:6]]), tmp_path / "again")
    assert again.swaps.equals(swaps)
    assert again.imported.days[FIRST_DAY].duplicates == 1


def test_an_error_in_the_last_day_keeps_no_day(swaps: pl.DataFrame, tmp_path: Path) -> None:
    wrong = swaps.with_columns(
        fee=pl.when(pl.int_range(pl.len()) == len(swaps) - 5).then(3_000).otherwise("fee").cast(pl.Int32())
    )
    archive = imported(wrong, tmp_path / "wrong")
    with pytest.raises(ArchiveError, match="fee"):
        _ = archive.swaps
    assert not list((tmp_path / "wrong").rglob("*.arrow"))
