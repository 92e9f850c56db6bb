"""The swaps as the chain has them."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.chain.completeness import chain_rate
from apeagent_pipeline.defs.daily import materialize_days
from apeagent_pipeline.defs.declaration import OWNER, declare
from apeagent_pipeline.defs.metadata import picture
from apeagent_pipeline.defs.resources import SWAP_SOURCE, Runtime
from apeagent_pipeline.reporting.progress import Progress


def chain_assets(runtime: Runtime) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """``swap_source`` (external), ``raw_swaps`` and ``liquidity_changes``."""
    source = dg.AssetSpec(
        SWAP_SOURCE,
        group_name="chain",
        kinds={"ethereum"},
        owners=[OWNER],
        description="The source of the swaps: the embedded chain, archive files or a JSON-RPC node",
    )
    return [source, _raw_swaps(runtime), _liquidity_changes(runtime)]


def _raw_swaps(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "chain",
            {"polars", "parquet"},
            pool="rpc" if runtime.settings.rpc_urls else None,
            made="on_request",
            daily=True,
        ),
        deps=[SWAP_SOURCE],
    )
    def raw_swaps(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        """Every Swap event of the pool on a UTC day, exactly once, in (block_number, log_index) order.

        Amounts are in the tokens' smallest units and from the swapper's side: negative is paid in.
        """

        def compute(day: str, progress: Progress) -> tuple[pl.DataFrame, dict[str, Any]]:
            from apeagent_pipeline.chain.day_figure import day_figure

            swaps = runtime.source.read_day(date.fromisoformat(day), progress)
            pool = runtime.source.pool
            figures: dict[str, Any] = {
                "source": runtime.source.name,
                "swaps": swaps.height,
                "hooks": pool.has_hooks,
                "dynamic_fee": pool.has_dynamic_fee,
                **runtime.source.day_notes(date.fromisoformat(day)),
                "day": picture("swaps and price of the day", day_figure(swaps, pool)),
            }
            if swaps.height:
                figures |= {"first_block": swaps["block_number"][0], "last_block": swaps["block_number"][-1]}
            rate = chain_rate(swaps).rate
            return swaps, figures if rate is None else {**figures, "chain_rate": rate}

        yield from materialize_days(context, runtime.artifacts, compute, lambda day: [])

    return raw_swaps


def _liquidity_changes(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "chain",
            {"polars", "parquet"},
            pool="rpc" if runtime.settings.rpc_urls else None,
            daily=True,
        ),
        deps=["raw_swaps"],
    )
    def liquidity_changes(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        """Every ModifyLiquidity event of the pool on a UTC day, in (block_number, log_index) order.

        A node returns them in the same requests as the swaps, so this asset is built after raw_swaps. With them, price
        and liquidity are known exactly between any two swaps. An archive holds no such events, so the table is empty.
        """

        def compute(day: str, progress: Progress) -> tuple[pl.DataFrame, dict[str, Any]]:
            changes = runtime.source.read_liquidity(date.fromisoformat(day), progress)
            return changes, {"changes": changes.height}

        yield from materialize_days(context, runtime.artifacts, compute, lambda day: [f"raw_swaps/{day}"])

    return liquidity_changes
