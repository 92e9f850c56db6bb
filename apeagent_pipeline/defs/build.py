"""The whole graph, put together for one `Settings`."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass

import dagster as dg

from apeagent_pipeline.defs.assets.chain import chain_assets
from apeagent_pipeline.defs.assets.distillation import distillation_assets
from apeagent_pipeline.defs.assets.evaluation import evaluation_assets
from apeagent_pipeline.defs.assets.gan import gan_assets
from apeagent_pipeline.defs.assets.market import market_assets
from apeagent_pipeline.defs.assets.reinforcement import reinforcement_assets
from apeagent_pipeline.defs.assets.service import service_assets
from apeagent_pipeline.defs.assets.student import student_assets
from apeagent_pipeline.defs.automation.daemon import automation
from apeagent_pipeline.defs.automation.orphans import tag_host
from apeagent_pipeline.defs.checks import asset_checks, judges
from apeagent_pipeline.defs.conditions import DAYS_SYNCED, WHOLE
from apeagent_pipeline.defs.gates import Gates
from apeagent_pipeline.defs.io_manager import ArtifactIOManager
from apeagent_pipeline.defs.partitions import is_synced
from apeagent_pipeline.defs.profiles import Profile
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.service_checks import service_checks
from apeagent_pipeline.defs.staleness import in_order
from apeagent_pipeline.defs.watcher import LogWatcher, Watcher
from apeagent_pipeline.settings import Settings

SYNC_JOB = "sync_swaps"


@dataclass(frozen=True)
class Graph:
    """The definitions that Dagster loads, and the parts that the command line uses."""

    runtime: Runtime
    assets: list[dg.AssetsDefinition]
    checks: list[dg.AssetChecksDefinition]
    definitions: dg.Definitions

    @property
    def daily(self) -> list[str]:
        """Names of the daily assets, in the order of the graph."""
        return [asset.key.to_user_string() for asset in in_order(self.assets) if asset.partitions_def]

    @property
    def synced(self) -> list[str]:
        """Names of the daily assets that a sync of some days builds, in the order of the graph."""
        return [asset.key.to_user_string() for asset in in_order(self.assets) if is_synced(asset)]

    def downstream_of(self, names: Collection[str]) -> list[str]:
        """Names of the other assets that depend on any of these, directly or not, in the order of the graph."""
        found = set(names)
        for asset in in_order(self.assets):
            if found.intersection(key.to_user_string() for key in asset.dependency_keys):
                found.add(asset.key.to_user_string())
        return [name for asset in in_order(self.assets) if (name := asset.key.to_user_string()) in found - {*names}]

    def upstream_of(self, name: str) -> set[str]:
        """Names of all assets that an asset depends on, directly or not, without the external ones."""
        by_name = {asset.key.to_user_string(): asset for asset in self.assets}
        found: set[str] = set()
        asked = [name]
        while asked:
            for key in by_name[asked.pop()].dependency_keys:
                each = key.to_user_string()
                if each in by_name and each not in found:
                    found.add(each)
                    asked.append(each)
        return found


def build_graph(settings: Settings, watcher: Watcher | None = None, profile: Profile | None = None) -> Graph:
    """A fresh graph: assets, checks, jobs and the IO manager. Opens and reads nothing.

    Args:
        settings: What to build it for.
        watcher: Receives the progress of long work; by default the run's log.
        profile: The options of all assets, instead of those of the profile that the settings name.

    Raises:
        SettingsError: The settings name no known profile.
    """
    runtime = Runtime(settings, watcher or LogWatcher(), profile)
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
            *service_assets(runtime),
        ]
    checks = asset_checks(runtime)
    runtime.artifacts.gates = Gates((key for check in checks for key in check.check_keys), judges)
    warning = service_checks(runtime)
    assets = [asset for asset in declared if isinstance(asset, dg.AssetsDefinition)]
    automatic = automation(runtime, SYNC_JOB, [asset.key for asset in assets if is_synced(asset)], warning)
    definitions = dg.Definitions(
        assets=declared,
        asset_checks=[*checks, *warning, *automatic.checks],
        jobs=[
            dg.define_asset_job(
                SYNC_JOB,
                selection=DAYS_SYNCED,
                description="Swaps and features of the selected days",
            ),
            dg.define_asset_job(
                "model",
                selection=WHOLE,
                description="From the stored days to the canary report, backtest and export",
            ),
        ],
        schedules=automatic.schedules,
        sensors=automatic.sensors,
        resources={"io_manager": _artifacts(runtime)},
        executor=dg.in_process_executor,
    )
    return Graph(runtime, assets, checks, definitions)


def _artifacts(runtime: Runtime) -> dg.ResourceDefinition:
    """The IO manager. A run's process opens it first, so it also tags the run with its host."""

    @dg.io_manager
    def artifacts(context: dg.InitResourceContext) -> ArtifactIOManager:
        if context.instance and context.run_id:
            tag_host(context.instance, context.run_id)
        return runtime.artifacts

    return artifacts
