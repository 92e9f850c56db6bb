"""Gates between runs: nothing is built from an artifact that failed a blocking check, whatever starts the run.

Dagster stops the assets downstream of a failed check only within the check's own run. Here each check records which
data version of its artifact it judged, and the IO manager refuses that version to every later run. A check knows its
days by name, so a bad day stops only the artifacts that read it. The gate opens when the artifact is built again, when
its check passes, or when the check's source changes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import dagster as dg

from apeagent_pipeline.artifacts.store import ArtifactStore

VERDICT = "judged"
"""Key of the verdict in the metadata of a check's evaluation."""
WHOLE_ARTIFACT = ""
"""The place of a day in the verdict on an asset without partitions."""

_LOOKED_BACK = 10


class Verdicts(NamedTuple):
    """What one evaluation of a check said of each artifact.

    Attributes:
        passed: Day (or `WHOLE_ARTIFACT`) -> the data version that passed.
        failed: Day (or `WHOLE_ARTIFACT`) -> the data version that failed, and why.
    """

    passed: dict[str, str]
    failed: dict[str, tuple[str, str]]

    def metadata(self, by: str) -> dg.MetadataValue:
        """For the evaluation's metadata; ``by`` identifies the source of the check."""
        return dg.MetadataValue.json({"by": by, "passed": self.passed, "failed": self.failed})


class Gates:
    """The blocking checks of a graph.

    Args:
        checks: Their keys.
        judges: The present source of the checks, as `Verdicts.metadata` recorded it.
    """

    def __init__(self, checks: Iterable[dg.AssetCheckKey] = (), judges: Callable[[], str] = str) -> None:
        """Nothing is read yet."""
        self._checks = list(checks)
        self._judges = judges

    def refusals(self, instance: dg.DagsterInstance, asset: str) -> dict[str, tuple[str, str]]:
        """What failed a check of an asset: day (or `WHOLE_ARTIFACT`) -> its data version, and why in words."""
        found: dict[str, tuple[str, str]] = {}
        for key in self._checks:
            if key.asset_key.to_user_string() == asset:
                for part, (version, why) in last_verdicts(instance, key, self._judges()).failed.items():
                    name = f"{asset} of {part}" if part else asset
                    found[part] = (version, f"check {key.name} of {name} failed: {why}")
        return found

    def closed(self, instance: dg.DagsterInstance, store: ArtifactStore) -> dict[str, str]:
        """Stored artifacts (``asset`` or ``asset/day``) that failed a check in their present version, each with why."""
        found = {}
        for asset in dict.fromkeys(key.asset_key.to_user_string() for key in self._checks):
            for part, (version, why) in self.refusals(instance, asset).items():
                manifest = store.manifest(asset, part or None)
                if manifest and manifest.data_version == version:
                    found[f"{asset}/{part}" if part else asset] = why
        return found


def last_verdicts(instance: dg.DagsterInstance, key: dg.AssetCheckKey, by: str) -> Verdicts:
    """What the last evaluation of a check said; nothing if the source of the check has changed since."""
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=_LOOKED_BACK):
        event = record.event.dagster_event if record.event else None  # None: the check is planned, but has not run
        if event and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            judged = event.asset_check_evaluation_data.metadata.get(VERDICT)
            told: Mapping[str, Any] = judged.value if isinstance(judged, dg.JsonMetadataValue) else {}  # type: ignore[assignment]
            if told.get("by") == by:
                failed = {part: (version, why) for part, (version, why) in told.get("failed", {}).items()}
                return Verdicts(dict(told["passed"]), failed)
            break
    return Verdicts({}, {})
