"""The whole graph, put together for one `Settings`."""

import warnings
from dataclasses import dataclass

import dagster as dg

from apeagent_pipeline.defs.alerts import failure_alert
from apeagent_pipeline.defs.assets.chain import chain_assets
from apeagent_pipeline.defs.assets.distillation import distillation_assets
from apeagent_pipeline.defs.assets.evaluation import evaluation_assets
from apeagent_pipeline.defs.assets.gan import gan_assets
from apeagent_pipeline.defs.assets.market import market_assets
from apeagent_pipeline.defs.assets.reinforcement import reinforcement_assets
from apeagent_pipeline.defs.assets.student import student_assets
from apeagent_pipeline.defs.automation import automation_sensor, nightly_resync, orphan_sweep
from apeagent_pipeline.defs.checks import asset_checks
from apeagent_pipeline.defs.conditions import WHOLE
from apeagent_pipeline.defs.freshness import swaps_freshness
from apeagent_pipeline.defs.io_manager import ArtifactIOManager
from apeagent_pipeline.defs.orphans import tag_host
from apeagent_pipeline.defs.retention import log_retention
from apeagent_pipeline.defs.runtime import Runtime
from apeagent_pipeline.defs.watching import LogWatcher, Watcher
from apeagent_pipeline.settings import Settings

SYNC_JOB = "sync_swaps"


@dataclass(frozen=True)
class Graph:
    """The definitions as Dagster loads them, and the parts that the command line works with."""

    runtime: Runtime
    assets: list[dg.AssetsDefinition]
    checks: list[dg.AssetChecksDefinition]
    definitions: dg.Definitions


def build_graph(settings: Settings, watcher: Watcher | None = None) -> Graph:
    """A fresh graph: assets, checks, jobs and the IO manager. Opens and reads nothing.

    Args:
        settings: What to build it for.
        watcher: Is told how far long work is; the run's log unless given.
    """
    runtime = Runtime(settings, watcher or LogWatcher())
    with warnings.catch_warnings():
        # backfill_policy and allow_nonexistent_upstream_partitions are beta in Dagster 1.13; each load would say so.
        warnings.simplefilter("ignore", dg.BetaWarning)
        declared = [
            *chain_assets(runtime),
            *market_assets(runtime),
            *gan_assets(runtime),
            *distillation_assets(runtime),
            *student_assets(runtime),
            *evaluation_assets(runtime),
            *reinforcement_assets(runtime),
        ]
    checks = asset_checks(runtime)
    freshness_checks, freshness_sensors = swaps_freshness(settings)
    definitions = dg.Definitions(
        assets=declared,
        asset_checks=[*checks, *freshness_checks],
        jobs=[
            dg.define_asset_job(
                SYNC_JOB,
                selection=["raw_swaps", "swap_features"],
                description="The swaps of some days and their features",
            ),
            dg.define_asset_job(
                "model",
                selection=WHOLE,
                description="From the stored days to the canary report, backtest and export",
            ),
        ],
        schedules=[nightly_resync(runtime, SYNC_JOB)],
        sensors=[
            automation_sensor(),
            orphan_sweep(),
            *([log_retention(settings.keep_logs_days)] if settings.keep_logs_days else []),
            *freshness_sensors,
            *([failure_alert(settings.alert_webhook)] if settings.alert_webhook else []),
        ],
        resources={"io_manager": _artifacts(runtime)},
        executor=dg.in_process_executor,
    )
    return Graph(runtime, [asset for asset in declared if isinstance(asset, dg.AssetsDefinition)], checks, definitions)


def _artifacts(runtime: Runtime) -> dg.ResourceDefinition:
    """The IO manager; the first thing that a run's process opens, so it says here where it lives."""

    @dg.io_manager
    def artifacts(context: dg.InitResourceContext) -> ArtifactIOManager:
        if context.instance and context.run_id:
            tag_host(context.instance, context.run_id)
        return runtime.artifacts

    return artifacts
