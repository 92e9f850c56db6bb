"""The IO manager: the only path between assets and the store, and the metadata that every asset shows."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.defs.declaration import code_version
from apeagent_pipeline.defs.gates import WHOLE_ARTIFACT, Gates
from apeagent_pipeline.defs.metadata import artifact_metadata, report_metadata, table_metadata
from apeagent_pipeline.defs.partitions import PreviousDays, days_read
from apeagent_pipeline.defs.watcher import Watcher
from apeagent_pipeline.reporting.report import Report


class ArtifactIOManager(dg.IOManager):
    """Tables, artifact folders and reports.

    What an asset returns decides how it is stored: a polars frame as ``{asset}.parquet``, a `Report` as
    ``report.json``, ``report.md`` and its figures, anything with ``save(folder)`` as the folder it writes, and a
    `Path` as the folder it names, which is moved.

    The annotation of a downstream asset's argument decides how its value is read: ``pl.DataFrame``, `Path` (the
    artifact's folder), or a class with ``load(folder)``. A daily upstream comes as a dict from day to lazy frame,
    without the days that are missing. The input's `partitions.DaysRead` says which days.
    """

    def __init__(
        self,
        store: ArtifactStore,
        externals: Mapping[str, Callable[[], str]],
        watcher: Watcher,
        recorded_options: Callable[[str, Mapping[str, Any]], dict[str, Any]] = lambda asset, options: dict(options),
        profile_options: Callable[[str], Mapping[str, Any]] = lambda asset: {},
    ) -> None:
        """Nothing is read yet.

        Args:
            store: Where the artifacts are.
            externals: External asset -> how to ask for its present data version.
            watcher: Is told about every stored artifact.
            recorded_options: Asset and the options that its run was launched with -> the options to record.
            profile_options: Asset -> the options that the profile gives it.
        """
        self.store = store
        self.externals = externals
        self.watcher = watcher
        self.recorded_options = recorded_options
        self.profile_options = profile_options
        self.gates = Gates()
        self._loaded: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._refused: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._experiments: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._days: dict[tuple[str, str], set[str]] = defaultdict(set)

    def load_input(self, context: dg.InputContext) -> Any:
        """Read an upstream artifact and record its data version as an input of this step.

        Raises:
            dg.Failure: if the artifact failed a blocking check; for a daily input of a daily asset see `refusal`.
        """
        asset = context.asset_key.to_user_string()
        loaded = self._loaded[_step(context)]
        refusals = self.gates.refusals(context.step_context.instance, asset)
        if context.has_asset_partitions:
            declared = days_read(context.definition_metadata)
            stored, rule = set(self.store.days(asset)), declared or PreviousDays()
            config = context.step_context.op_config or {}
            days = sorted({day for own in context.asset_partition_keys for day in rule.of(own, stored, config)})
            refused = self._refused_days(asset, days, refusals)
            if refused and not isinstance(declared, PreviousDays):
                raise _refusal(refused.values())
            self._refused[_step(context)].update({f"{asset}/{day}": why for day, why in refused.items()})
            return self.load_days(_step(context), asset, [day for day in days if day not in refused])
        manifest = self.store.whole(asset)
        version, why = refusals.get(WHOLE_ARTIFACT, ("", ""))
        if manifest.data_version == version:
            raise _refusal([why])
        loaded[asset] = manifest.data_version
        self._experiments[_step(context)] |= manifest.experiments
        self._days[_step(context)] |= set(manifest.days)
        kind = context.dagster_type.typing_type
        if kind is pl.DataFrame:
            return self.store.table(manifest).collect()
        folder = self.store.local(manifest)
        return folder if kind is Path else kind.load(folder)

    def _refused_days(self, asset: str, days: list[str], refusals: Mapping[str, tuple[str, str]]) -> dict[str, str]:
        manifests = self.store.manifests(asset, [day for day in days if day in refusals])
        return {
            day: refusals[day][1]
            for day, manifest in manifests.items()
            if day and manifest and manifest.data_version == refusals[day][0]
        }

    def refusal(self, step: tuple[str, str], inputs: Iterable[str]) -> dg.Failure | None:
        """Why a day must not be built: a day that it reads failed a blocking check; None if it can be built.

        Args:
            step: See `step_of`.
            inputs: What the day reads, as ``asset/day``.
        """
        reasons = [self._refused[step][name] for name in inputs if name in self._refused[step]]
        return _refusal(reasons) if reasons else None

    def load_days(self, step: tuple[str, str], asset: str, days: list[str]) -> dict[str, pl.LazyFrame]:
        """Read stored days of a daily asset, and record their data versions as inputs of a step (see `step_of`)."""
        manifests = self.store.whole_days(asset, days)
        self._loaded[step].update({f"{asset}/{day}": each.data_version for day, each in manifests.items()})
        for manifest in manifests.values():
            self._experiments[step] |= manifest.experiments
        if asset == "swap_features":
            self._days[step] |= set(manifests)
        return self.store.tables(manifests)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Publish the value of an unpartitioned asset and write the metadata that every asset has."""
        asset = context.asset_key.to_user_string()
        step = context.step_context
        made_from = self.made_from(context.asset_spec, step.op_config or {}, _step(context))
        made_from["days"] = sorted(self._days[_step(context)])
        if isinstance(obj, pl.DataFrame):
            manifest = self.store.publish_table(obj, **made_from)
            context.add_output_metadata(table_metadata(obj))
        elif isinstance(obj, Report):
            provenance = {key: made_from[key] for key in ("asset", "code_version", "inputs")}
            manifest = self.store.publish_bytes(obj.files(provenance), **made_from)
            context.add_output_metadata(report_metadata(obj))
        elif isinstance(obj, Path):
            manifest = self.store.publish_folder(obj, **made_from)
            shutil.rmtree(obj)
        else:
            work = self.store.cache / "saving" / f"{asset}-{step.run_id}"
            try:
                work.mkdir(parents=True, exist_ok=True)
                obj.save(work)
                manifest = self.store.publish_folder(work, **made_from)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        if not isinstance(obj, pl.DataFrame) and f"{asset}.parquet" in manifest.files:
            context.add_output_metadata(table_metadata(self.store.table(manifest)))
        step.set_data_version(context.asset_key, dg.DataVersion(manifest.data_version))
        context.add_output_metadata(artifact_metadata(manifest, self.store))
        self.watcher.stored(asset, None, manifest.rows)

    def made_from(self, spec: dg.AssetSpec, config: Mapping[str, Any], step: tuple[str, str]) -> dict[str, Any]:
        """The fields of a manifest that say what an artifact was built from."""
        upstream = [dep.asset_key.to_user_string() for dep in spec.deps]
        asset = spec.key.to_user_string()
        options = self.recorded_options(asset, config)
        other = _instead_of(self.profile_options(asset), options)
        return {
            "asset": asset,
            "config": options,
            "experiments": {**self._experiments[step], **({asset: other} if other else {})},
            "code_version": code_version((spec.code_version or "").split(".")[0], options),
            "inputs": {
                **self._loaded[step],
                **{name: self.externals[name]() for name in upstream if name in self.externals},
            },
        }


def _instead_of(profile: Mapping[str, Any], launched: Mapping[str, Any]) -> str:
    """In words, the options of a launch that are not those of the profile; empty if there are none."""
    other = [name for name in launched if launched[name] != profile.get(name, launched[name])]
    return ", ".join(f"{name} {launched[name]} instead of {profile[name]}" for name in other)


def _refusal(reasons: Iterable[str]) -> dg.Failure:
    return dg.Failure("not built, because " + "; ".join(reasons), allow_retries=False)


def _step(context: dg.InputContext | dg.OutputContext) -> tuple[str, str]:
    return context.step_context.run_id, context.step_context.step.key


def step_of(context: dg.AssetExecutionContext) -> tuple[str, str]:
    """The running step of an asset, as the IO manager knows it."""
    return context.run_id, context.op_execution_context.get_step_execution_context().step.key
