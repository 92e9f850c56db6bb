"""Which artifacts are out of date, and why.

An artifact is up to date if all its files are there, and if it was built by the present code and configuration from the
present data versions of all its inputs. The manifests alone decide, so it does not matter who materialized it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import dagster as dg

from apeagent_pipeline.artifacts.manifest import Manifest
from apeagent_pipeline.defs.partitions import PreviousDays, days_read, is_synced
from apeagent_pipeline.defs.resources import Runtime

MISSING = "missing"
_Stored = Callable[[str], Mapping[str | None, Manifest | None]]
"""Asset -> its manifests, as `ArtifactStore.manifests` gives them."""


@dataclass(frozen=True)
class Stale:
    """One artifact that is out of date."""

    asset: str
    day: str | None
    reason: str
    changed_inputs: tuple[str, ...] = ()
    present_inputs: Mapping[str, str | None] = field(default_factory=dict, compare=False)
    """Every input that making the artifact again would read, with its data version; None: it is not stored."""

    @property
    def name(self) -> str:
        """The artifact's name in the inputs of others: ``asset`` or ``asset/day``."""
        return artifact_name(self.asset, self.day)


def artifact_name(asset: str, day: str | None) -> str:
    """``asset``, or ``asset/day`` for a day of a daily one."""
    return f"{asset}/{day}" if day else asset


def stale_artifacts(assets: Iterable[dg.AssetsDefinition], runtime: Runtime, days: list[str]) -> list[Stale]:
    """Everything out of date, in the order of the graph.

    Args:
        assets: The graph's assets, each defining one key.
        runtime: Store and external assets.
        days: The days that daily assets should have.
    """
    external = {name: ask() for name, ask in _asked(assets, runtime).items()}
    stored = cache(runtime.store.manifests)  # each listing of a remote store is a request
    found: list[Stale] = []
    for asset in in_order(assets):
        name = asset.key.to_user_string()
        for day in days if asset.partitions_def else [None]:
            reason, changed, present = _judge(asset, day, stored, external)
            if reason == MISSING and day and not is_synced(asset):
                continue  # nobody asked for this day
            if reason:
                found.append(Stale(name, day, reason, changed, present))
    return found


def _judge(
    asset: dg.AssetsDefinition, day: str | None, stored: _Stored, external: Mapping[str, str]
) -> tuple[str, tuple[str, ...], Mapping[str, str | None]]:
    """Why an artifact is out of date (empty: it is not), which inputs changed, and the versions that they have now."""
    manifest = stored(asset.key.to_user_string()).get(day)
    if manifest is None:
        return MISSING, (), {}
    if manifest.code_version != asset.get_asset_spec(asset.key).code_version:
        other = manifest.experiments.get(manifest.asset)
        return f"launched with {other}" if other else "code or settings changed", (), {}
    now, then = _inputs(asset, manifest, stored, external), manifest.inputs
    changed = tuple(sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name)))
    return (f"{', '.join(changed[:3])} changed", changed, now) if changed else ("", (), {})


def _inputs(
    asset: dg.AssetsDefinition, made: Manifest, stored: _Stored, external: Mapping[str, str]
) -> dict[str, str | None]:
    """The inputs that rebuilding the artifact would record, with their present data versions."""
    keys = {key.to_user_string() for key in asset.keys_by_input_name.values()}
    versions: dict[str, str | None] = {name: external[name] for name in keys if name in external}
    for name in inputs_read(asset, made.partition, lambda key: {day for day in stored(key) if day}, made.config):
        key, _, day = name.partition("/")
        manifest = stored(key).get(day or None)
        versions[name] = manifest.data_version if manifest else None
    return versions


def inputs_read(
    asset: dg.AssetsDefinition, day: str | None, days: Callable[[str], Collection[str]], config: Mapping[str, Any]
) -> list[str]:
    """The artifacts that building an artifact reads: ``asset`` or ``asset/day``.

    Args:
        asset: The artifact's asset.
        day: The artifact's day; None for an asset without partitions.
        days: Daily asset -> its days that are stored.
        config: Options of the artifact.
    """
    names: list[str] = []
    for input_def in asset.op.input_defs:
        key = asset.keys_by_input_name[input_def.name].to_user_string()
        if input_def.dagster_type.is_nothing:
            continue  # the dependency only orders the runs, or it is an external asset
        if rule := days_read(input_def.metadata) or (PreviousDays() if day else None):
            names += [artifact_name(key, each) for each in rule.of(day, days(key), config)]
        else:
            names.append(key)
    return names


def _asked(assets: Iterable[dg.AssetsDefinition], runtime: Runtime) -> dict[str, Callable[[], str]]:
    used = {key.to_user_string() for asset in assets for key in asset.dependency_keys}
    return {name: ask for name, ask in runtime.externals.items() if name in used}


def in_order(assets: Iterable[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """The assets in topological order: each after its dependencies."""
    by_key = {asset.key: asset for asset in assets}
    ordered: dict[dg.AssetKey, dg.AssetsDefinition] = {}

    def visit(asset: dg.AssetsDefinition) -> None:
        for key in sorted(asset.dependency_keys):
            if key in by_key and key not in ordered:
                visit(by_key[key])
        ordered[asset.key] = asset

    for asset in by_key.values():
        visit(asset)
    return list(ordered.values())
