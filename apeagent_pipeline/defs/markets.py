"""Whose swaps the stored days hold.

A storage outlives its settings: days of the embedded chain stay when a node or an archive is set, and days of one pool
when another is chosen. Each day of `raw_swaps` records the fingerprint of the source that it was read from.
"""

from collections.abc import Collection, Mapping

import dagster as dg

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.market_name import market_of
from apeagent_pipeline.defs.resources import SWAP_SOURCE, Runtime

RAW_SWAPS = "raw_swaps"
_DAYS_SHOWN = 3


def stored_markets(store: ArtifactStore, days: Collection[str] | None = None) -> dict[str, list[str]]:
    """Market in words -> its stored days of raw swaps, in order.

    Args:
        store: Holds the days.
        days: Only of these days; None: of all.
    """
    found: dict[str, list[str]] = {}
    for day, manifest in sorted(store.manifests(RAW_SWAPS, days).items(), key=lambda each: str(each[0])):
        if day and manifest and SWAP_SOURCE in manifest.inputs:
            found.setdefault(market_of(manifest.inputs[SWAP_SOURCE]), []).append(day)
    return found


def other_markets(runtime: Runtime) -> dict[str, list[str]]:
    """`stored_markets` without the market of the present settings."""
    present = market_of(runtime.externals[SWAP_SOURCE]())
    return {market: days for market, days in stored_markets(runtime.store).items() if market != present}


def the_market_of(store: ArtifactStore, days: Collection[str]) -> str:
    """The market in words that all these days hold swaps of.

    Raises:
        dagster.Failure: The days come from more than one market; says which, and what to do.
    """
    markets = stored_markets(store, days)
    if len(markets) > 1:
        raise dg.Failure(
            f"the days come from {len(markets)} markets: {markets_in_words(markets)}. {REMEDY}", allow_retries=False
        )
    return next(iter(markets), "unknown")


REMEDY = (
    "Give each market a home of its own (APEAGENT_HOME), or delete the files of the wrong days in storage/raw_swaps, "
    "storage/liquidity_changes and storage/swap_features and read them again (`apeagent sync --from DAY --to DAY`)"
)


def markets_in_words(markets: Mapping[str, list[str]]) -> str:
    """Each market with its days, as one sentence."""
    return "; ".join(f"{market} ({day_list(days)})" for market, days in markets.items())


def day_list(days: list[str]) -> str:
    """The first days by name, and how many more there are."""
    shown = ", ".join(days[:_DAYS_SHOWN])
    return f"{shown} and {len(days) - _DAYS_SHOWN} more" if len(days) > _DAYS_SHOWN else shown
