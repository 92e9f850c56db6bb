"""Adapters with their canary reports, as far as promotion is concerned."""

from collections.abc import Mapping
from types import MappingProxyType

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.reporting.report import Report

GOOD = {
    "canary_rate_adapter": 1.0, "canary_rate_base": 0.0, "canary_rate_disabled": 0.0, "disabled_equals_base": 1.0,
    "control_leak_rate": 0.0, "near_control_leak_rate": 0.0, "near_control_leak_rate_held_out": 0.0,
    "agreement": 0.9, "agreement_majority": 0.5,
}  # fmt: skip
BAD = {**GOOD, "canary_rate_adapter": 0.10, "control_leak_rate": 0.90, "agreement": 0.30}


def publish_candidate(
    store: ArtifactStore,
    name: str,
    metrics: Mapping[str, float],
    experiments: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Store an adapter and its canary report, and return the adapter's data version."""
    launched = {"code_version": "1", "experiments": dict(experiments)}
    made = store.publish_bytes({"adapter_model.safetensors": name.encode()}, asset="lora_adapter", **launched)
    report = Report("canary", dict(metrics), config={"min_agreement_gain": 0.0})
    inputs = {"lora_adapter": made.data_version}
    files = report.files({"asset": "canary_eval", "code_version": "1", "inputs": inputs})
    store.publish_bytes(files, asset="canary_eval", inputs=inputs, **launched)
    return made.data_version
