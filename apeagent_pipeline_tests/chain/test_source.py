"""The settings choose where swaps come from."""

import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.chain.source import ArchiveSource, EmbeddedSource, RpcSource, open_swap_source
from apeagent_pipeline.settings import Settings, SettingsError
from apeagent_pipeline_tests.chain.conftest import NOW, SECRET, Node


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def test_with_nothing_set_it_is_the_embedded_chain_with_the_one_seed() -> None:
    source = open_swap_source(settings(seed=7))
    assert isinstance(source, EmbeddedSource)
    assert (source.name, source.pool, source.seed) == ("embedded", BASE_ETH_USDC, 7)
    assert source.fingerprint() != open_swap_source(settings(seed=8)).fingerprint()
    assert source.demo_days() == (FIRST_DAY, FIRST_DAY + timedelta(days=4))


def test_the_embedded_chain_gives_its_days_and_grows_with_the_clock(two_days: pl.DataFrame) -> None:
    source = EmbeddedSource(BASE_ETH_USDC, 42, now=NOW.timestamp)
    assert source.days() == (FIRST_DAY, date(2025, 1, 25))
    assert source.read_day(FIRST_DAY).equals(two_days.filter(pl.col("block_timestamp").dt.date() == FIRST_DAY))
    with pytest.raises(ChainError, match="not final"):
        source.read_day(date(2025, 1, 26))


def test_an_archive_gives_its_own_span(tmp_path: Path, two_days: pl.DataFrame) -> None:
    two_days.write_parquet(tmp_path / "swaps.parquet")
    source = open_swap_source(settings(swaps_archive=str(tmp_path / "swaps.parquet")))
    assert isinstance(source, ArchiveSource)
    assert source.name == "archive"
    assert source.days() == source.demo_days() == (FIRST_DAY, FIRST_DAY + timedelta(days=1))
    assert source.read_day(FIRST_DAY).equals(two_days.filter(pl.col("block_timestamp").dt.date() == FIRST_DAY))
    assert str(tmp_path) not in source.fingerprint()


def test_a_node_gives_days_up_to_the_last_final_one(node: Node, two_days: pl.DataFrame) -> None:
    source = open_swap_source(settings(rpc_urls=f"{node.url.get_secret_value()}, http://127.0.0.1:9/unused"))
    assert isinstance(source, RpcSource)
    assert source.name == "rpc"
    assert source.days() == (FIRST_DAY, date(2025, 1, 25))
    assert source.demo_days() == (FIRST_DAY, date(2025, 1, 25))
    assert source.read_day(FIRST_DAY).equals(two_days.filter(pl.col("block_timestamp").dt.date() == FIRST_DAY))
    assert SECRET not in source.fingerprint()
    assert "127.0.0.1" not in source.fingerprint()


def test_two_sources_at_once_are_refused_and_both_variables_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"APEAGENT_SWAPS_ARCHIVE.*APEAGENT_RPC_URLS"):
        open_swap_source(settings(swaps_archive=str(tmp_path), rpc_urls="http://localhost:8545"))


@pytest.mark.parametrize("url", [f"ftp://host/{SECRET}", SECRET, f"ws://host/{SECRET}", "http://", f"http://[{SECRET}"])
def test_what_is_no_http_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="entry 2 is not an http") as caught:
        open_swap_source(settings(rpc_urls=f"http://localhost:8545,{url}"))
    assert SECRET not in str(caught.value)


def test_a_pool_whose_tokens_are_unknown_is_refused() -> None:
    with pytest.raises(SettingsError, match="APEAGENT_POOL_ID"):
        open_swap_source(settings(pool_id="0x" + "1" * 64))
    with pytest.raises(SettingsError, match="APEAGENT_POOL_MANAGER"):
        open_swap_source(settings(pool_manager="uniswap"))


def test_the_pool_id_may_be_written_in_capitals_and_the_manager_be_another() -> None:
    other = "0x" + "Ab" * 20
    source = open_swap_source(settings(pool_id=BASE_ETH_USDC.pool_id.upper().replace("0X", "0x"), pool_manager=other))
    assert source.pool.pool_manager == other.lower()
    assert source.pool.pool_id == BASE_ETH_USDC.pool_id


def test_a_missing_archive_is_found_when_it_is_read_and_named(tmp_path: Path) -> None:
    source = open_swap_source(settings(swaps_archive=str(tmp_path / "nothing.csv")))
    for ask in (source.days, source.fingerprint, lambda: source.read_day(FIRST_DAY)):
        with pytest.raises(ChainError, match=r"nothing\.csv does not exist"):
            ask()


def test_choosing_a_source_does_not_import_web3() -> None:
    program = (
        "import sys; from apeagent_pipeline.chain.source import open_swap_source; "
        "from apeagent_pipeline.settings import Settings; open_swap_source(Settings(_env_file=None)); "
        "assert 'web3' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
