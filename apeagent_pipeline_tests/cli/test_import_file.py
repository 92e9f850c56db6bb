"""``apeagent import FILE --dry-run`` shows what a file holds, and ``export-swaps`` writes one that it reads."""

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import price_from_sqrt_price
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive
from apeagent_pipeline.chain.day_records import notes_in_words
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import ArchiveSource, EmbeddedSource
from apeagent_pipeline.cli import app
from apeagent_pipeline.cli.examination import examine
from apeagent_pipeline.defs.checks import no_swap_missing
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.watcher import LogWatcher
from apeagent_pipeline.settings import load_settings


@pytest.fixture(scope="module")
def swaps() -> pl.DataFrame:
    return EmbeddedSource(BASE_ETH_USDC, 42).read_day(FIRST_DAY).head(60)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APEAGENT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")


def test_a_dry_run_shows_layout_days_and_first_rows_and_stores_nothing(swaps: pl.DataFrame, tmp_path: Path) -> None:
    swaps.write_parquet(tmp_path / "swaps.parquet")
    shown = CliRunner().invoke(app, ["import", "swaps.parquet", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    for expected in (
        "apeagent's own columns",
        str(FIRST_DAY),
        "cut short at its end",
        swaps["amount0"][0],
        "Nothing was",
    ):
        assert expected in shown.output
    assert not Runtime(load_settings(), LogWatcher()).store.days("raw_swaps")


def test_the_last_price_shows_whether_the_decimals_are_right(
    swaps: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps.write_parquet(tmp_path / "swaps.parquet")
    price = price_from_sqrt_price(float(swaps["sqrt_price_x96"][-1]), BASE_ETH_USDC)
    for tokens, shown in (("ETH:18,USDC:6", price), ("ETH:18,USDC:8", price / 100)):
        monkeypatch.setenv("APEAGENT_POOL_TOKENS", tokens)
        told = CliRunner().invoke(app, ["import", "swaps.parquet", "--dry-run"]).output
        assert f"Last price: {shown:,.6g} USDC for one ETH." in told


@pytest.mark.parametrize(("archive", "is_told"), [("", True), ("swaps.parquet", False)])
def test_an_import_says_how_the_other_commands_read_the_file(
    archive: str, is_told: bool, swaps: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps.write_parquet(tmp_path / "swaps.parquet")
    monkeypatch.setenv("APEAGENT_SWAPS_ARCHIVE", archive)
    monkeypatch.setattr("apeagent_pipeline.cli.demo.sync", lambda first, last: None)
    imported = CliRunner().invoke(app, ["import", "swaps.parquet"])
    advice = "export APEAGENT_SWAPS_ARCHIVE=swaps.parquet. Without this setting the other commands read the embedded"
    assert (advice in imported.output) == is_told


def test_a_missing_swap_is_told_with_the_blocks_around_it(swaps: pl.DataFrame, tmp_path: Path) -> None:
    pl.concat([swaps.head(30), swaps.slice(31)]).write_parquet(tmp_path / "swaps.parquet")
    place = f"between blocks {swaps['block_number'][29]} and {swaps['block_number'][31]}"
    shown = CliRunner().invoke(app, ["import", "swaps.parquet", "--dry-run"])
    assert f"swaps are missing before them, {place}" in shown.output
    source = ArchiveSource(BASE_ETH_USDC, tmp_path / "swaps.parquet")
    assert source.day_notes(FIRST_DAY)["swaps_missing"] == place
    told = f"1 swaps do not follow from the swap before: swaps are missing {place}"
    assert told in notes_in_words(source.day_notes(FIRST_DAY))


def test_check_and_doctor_tell_where_swaps_are_missing_and_where_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = EmbeddedSource(BASE_ETH_USDC, 42).read_day(FIRST_DAY)
    pl.concat([day.head(30), day.slice(31)]).write_parquet(tmp_path / "swaps.parquet")
    monkeypatch.setenv("APEAGENT_SWAPS_ARCHIVE", str(tmp_path / "swaps.parquet"))
    runtime = Runtime(load_settings(), LogWatcher())
    notes = runtime.source.day_notes(FIRST_DAY)
    runtime.store.publish_table(
        runtime.source.read_day(FIRST_DAY), asset="raw_swaps", partition=str(FIRST_DAY), code_version="1"
    )
    wrong, figures = no_swap_missing(runtime.store, [str(FIRST_DAY)], runtime.source)
    found = next(each for each in examine(load_settings()) if each.part == "archive")
    assert not wrong, "an archive may hold the swaps of a single router"
    assert found.state == "note"
    for told in (
        f"1 swaps do not follow from the swap before: swaps are missing {notes['swaps_missing']}",
        f"{notes['undecided_gaps']} places where a swap may be missing unseen, {notes['swaps_perhaps_missing']}",
    ):
        assert f"{FIRST_DAY}: {told}" in figures["notes"]
        assert told in found.finding


def test_a_refusal_names_the_setting_that_mends_it(
    swaps: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped = [pl.Series(name, [str(-int(value)) for value in swaps[name]]) for name in ("amount0", "amount1")]
    swaps.with_columns(flipped).write_parquet(tmp_path / "swaps.parquet")
    refused = CliRunner().invoke(app, ["import", "swaps.parquet", "--dry-run"])
    assert isinstance(refused.exception, ArchiveError)
    assert "APEAGENT_SWAPS_SIGNS=pool" in str(refused.exception)
    monkeypatch.setenv("APEAGENT_SWAPS_SIGNS", "pool")
    assert CliRunner().invoke(app, ["import", "swaps.parquet", "--dry-run"]).exit_code == 0


@pytest.mark.parametrize("name", ["day.parquet", "day.csv", "day.csv.gz", "day.jsonl"])
def test_stored_days_are_exported_to_a_file_that_is_imported_unchanged(
    name: str, swaps: pl.DataFrame, tmp_path: Path
) -> None:
    store = Runtime(load_settings(), LogWatcher()).store
    store.publish_table(swaps, asset="raw_swaps", partition=str(FIRST_DAY), code_version="1")
    days = ["--from", str(FIRST_DAY), "--to", str(FIRST_DAY)]
    exported = CliRunner().invoke(app, ["export-swaps", *days, name])
    assert exported.exit_code == 0, exported.output
    assert SwapArchive(tmp_path / name, BASE_ETH_USDC).swaps.equals(swaps)
    missing = CliRunner().invoke(app, ["export-swaps", "--from", "2025-02-01", "--to", "2025-02-02", name])
    assert missing.exit_code != 0
