"""From swaps to what a model can learn from."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.defs.daily import materialize_days
from apeagent_pipeline.defs.declaration import declare, launched_config
from apeagent_pipeline.defs.io_manager import step_of
from apeagent_pipeline.defs.markets import the_market_of
from apeagent_pipeline.defs.partitions import LastDays, PreviousDays
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.staleness import stale_artifacts
from apeagent_pipeline.market.features import swap_features as features_of
from apeagent_pipeline.market.windows import WindowsConfig, write_training_windows
from apeagent_pipeline.reporting.progress import Progress
from apeagent_pipeline.settings import Settings

_DAY_AND_THE_ONE_BEFORE = PreviousDays(1)


def market_assets(runtime: Runtime) -> list[dg.AssetsDefinition]:
    """``swap_features`` and ``training_windows``."""
    return [_swap_features(runtime), _training_windows(runtime)]


def _features_code(settings: Settings) -> str:
    """Version of the code of ``swap_features``, with the decimals that the settings give: no input shows these."""
    if not settings.pool_tokens:
        return "1"
    from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC as PRESET
    from apeagent_pipeline.chain.pool_lookup import chosen_pool

    pool = chosen_pool(settings)
    decimals = [decimals for _, decimals in pool.units or ()]
    is_preset = (pool.pool_id, *decimals) == (PRESET.pool_id, PRESET.token0.decimals, PRESET.token1.decimals)
    return "1" if is_preset else "-".join(["1", "decimals", *map(str, decimals)])


def _swap_features(runtime: Runtime) -> dg.AssetsDefinition:
    window = _DAY_AND_THE_ONE_BEFORE.window

    @dg.asset(
        **declare(runtime.settings, "market", {"polars", "parquet"}, code=_features_code(runtime.settings), daily=True),
        ins={"raw_swaps": dg.AssetIn(metadata=_DAY_AND_THE_ONE_BEFORE.metadata)},
    )
    def swap_features(
        context: dg.AssetExecutionContext, raw_swaps: dict[str, pl.LazyFrame]
    ) -> Iterator[dg.MaterializeResult]:
        """One row per swap: price, sizes, tick change, seconds since the previous swap, volatility, volume average.

        The first rows of a day depend on the last rows of the day before. So a changed day also makes the next day
        stale.
        """

        def compute(day: str, progress: Progress) -> tuple[pl.DataFrame, dict[str, Any]]:
            if day not in raw_swaps:
                raise dg.Failure(f"raw_swaps of {day} are missing: materialize raw_swaps for {day} first")
            before = raw_swaps.get(window(day)[0])
            table = features_of(
                raw_swaps[day].collect(), runtime.source.pool, None if before is None else before.collect()
            )
            progress(1, 1, rows=table.height)
            return table, {"volume_usdc": float(table["volume_usdc"].sum()), "swaps": table.height}

        def inputs_of(day: str) -> list[str]:
            return [f"raw_swaps/{read}" for read in window(day)]

        def overtaken() -> list[str]:
            # Meanwhile another run may have built the day before our first day, or the day after our last day from old
            # rows. Both runs check after publishing, so one of them notices.
            first, last = context.partition_keys[0], context.partition_keys[-1]
            border = [first, str(date.fromisoformat(last) + timedelta(days=_DAY_AND_THE_ONE_BEFORE.count))]
            stored = runtime.store.days("raw_swaps")
            stale = stale_artifacts([context.assets_def], runtime, [day for day in border if day in stored])
            days = [each.day for each in stale if each.day and each.changed_inputs]
            read = {each for day in days for each in window(day)}.intersection(stored)
            raw_swaps.update(runtime.artifacts.load_days(step_of(context), "raw_swaps", sorted(read)))
            return days

        yield from materialize_days(context, runtime.artifacts, compute, inputs_of, overtaken)

    return swap_features


def _training_windows(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        # With the GAN: windows of another day would have synthetic windows and their quality built anew every night.
        **declare(
            runtime.settings,
            "market",
            {"polars", "parquet"},
            code="4",
            config=runtime.profile.training_windows,
            made="on_policy",
        ),
        ins={"swap_features": dg.AssetIn(metadata=LastDays("days").metadata)},
    )
    def training_windows(
        context: dg.AssetExecutionContext, swap_features: dict[str, pl.LazyFrame]
    ) -> dg.MaterializeResult:
        """Windows of the last days for the GAN. Valid blocks are interleaved with train rows; the holdout comes last.

        Between two splits at least one window of rows is unused. The scaler is fitted on train only. Days of more than
        one market, such as simulated and real ones, are refused.
        """
        config, _ = launched_config(context, WindowsConfig)
        runtime.watcher.started(context)
        if not swap_features:
            raise dg.Failure("no day of swap_features is stored: materialize raw_swaps and swap_features first")
        market = the_market_of(runtime.store, swap_features)
        days = sorted(swap_features)
        folder = runtime.scratch("training_windows") / context.run_id
        write_training_windows([swap_features[day] for day in days], runtime.source.pool, config, folder)
        return dg.MaterializeResult(value=folder, metadata={"market": market, "days": dg.MetadataValue.json(days)})

    return training_windows
