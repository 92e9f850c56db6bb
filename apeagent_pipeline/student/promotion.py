"""The adapter in service: the newest one that passed its checks, and the earlier ones for a rollback.

An adapter is promoted when the check of its canary report has passed and the report does not show it to be worse than
the one in service. The adapter in service is the artifact ``promoted_adapter`` (the adapter's files only), so that
its downstream assets are rebuilt only if it changes. ``promotions/`` keeps every promotion and rollback
(``history.json``), and the adapters that were in service with their provenance.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from apeagent_pipeline.artifacts.provenance import Origin
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.reporting.report import markdown_table

PROMOTED = "promoted_adapter"
KEPT = 5
"""How many adapters that were in service are kept."""

_ARCHIVE = "promotions"
_HISTORY = "history.json"
# Each form and each kind of control by itself: a mean hides the worse one.
_HIGHER_IS_BETTER = (
    "canary_rate_adapter",
    "canary_rate_plain",
    "canary_rate_digested",
    "agreement",
    "agreement_plain",
    "agreement_digested",
    "controls_preserved",
)
_LOWER_IS_BETTER = ("control_leak_rate", "near_control_leak_rate", "near_control_leak_rate_held_out")
_TOLD = ("canary_rate_adapter", "agreement", "control_leak_rate", "near_control_leak_rate")
"""The measures that a reason and the history show; the page of a promotion shows all."""


class Service(BaseModel):
    """One time an adapter went into service."""

    adapter: str = Field(description="Data version of its lora_adapter")
    why: Literal["promoted", "rollback"] = "promoted"
    reason: str = Field("", description="Reason in words; empty for adapters from before reasons were recorded")
    at: str = Field(description="Time, UTC")
    metrics: dict[str, float] = Field(description="Metrics of its canary report")
    withdrawn: list[str] = Field([], description="Adapters that a rollback withdrew; they are not promoted again")
    origins: list[Origin] = Field([], description="Everything that it was built from")

    @property
    def trained_on(self) -> list[str]:
        """The days that it was trained on.

        Its own manifest has them. For an adapter from before manifests had days, they are read from its origins, as far
        as these were still known when it went into service.
        """
        own = self.origins[0].manifest if self.origins else None
        return (own.days if own else []) or sorted(
            {each.day for each in self.origins if each.asset == "swap_features" and each.day}
        )


class PromotionError(ApeagentError, RuntimeError):
    """There is no adapter to promote or to roll back to; the message has the cause and the remedy."""


def history(store: ArtifactStore) -> list[Service]:
    """Every time an adapter went into service, the newest last; empty before the first."""
    manifest = store.manifest(_ARCHIVE)
    if manifest is None:
        return []
    return [Service.model_validate(each) for each in json.loads((store.local(manifest) / _HISTORY).read_text())]


def reasons_against(new: Mapping[str, Any], old: Mapping[str, float]) -> list[str]:
    """The reasons why a new adapter is worse than the one in service; empty if there are none.

    A measure is worse if even the favourable end of its exact 95 % interval is: with a hundred prompts two equally good
    adapters differ by several points.

    Args:
        new: ``report.json`` of the new adapter.
        old: The metrics of the one in service.
    """
    wrong = []
    for name in (*_HIGHER_IS_BETTER, *_LOWER_IS_BETTER):
        if name not in old or name not in new["intervals"]:
            continue
        low, high = new["intervals"][name]
        if (high < old[name]) if name in _HIGHER_IS_BETTER else (low > old[name]):
            wrong.append(f"{name} is {new['metrics'][name]:.3g} ({low:.3g} to {high:.3g}), in service {old[name]:.3g}")
    return wrong


def promote(
    store: ArtifactStore,
    adapter: Path,
    version: str,
    report: Mapping[str, Any],
    *,
    failures: Sequence[str],
    origins: list[Origin],
    out: Path,
) -> list[str]:
    """Write the adapter that is in service from now on into ``out``.

    A candidate that fails its own limits is refused, whoever started the run and whether its check ran or not.

    Args:
        store: Where the present one is.
        adapter: Folder of the candidate.
        version: Its data version.
        report: ``report.json`` of its canary evaluation.
        failures: Where that report is beyond the limits of its check; empty if it passes.
        origins: What it was made from.
        out: Gets the files of the candidate, or those of the present one.

    Returns:
        Why the candidate was not promoted; empty: it is in service.

    Raises:
        PromotionError: if the candidate is refused and no adapter is in service.
    """
    past = history(store)
    wrong: list[str] = []
    if not past or version != past[-1].adapter:
        judged = report.get("provenance", {}).get("inputs", {}).get("lora_adapter")
        if judged != version:
            wrong.append(f"its canary report is of adapter {judged}: evaluate {version} first")
        wrong += failures
    if past and version != past[-1].adapter:
        wrong += reasons_against(report, past[-1].metrics)
        if version in past[-1].withdrawn:
            wrong.append("it was withdrawn by a rollback")
    if wrong and not past:
        raise PromotionError(f"adapter {version} does not go into service: {'; '.join(wrong)}")
    if wrong:
        _copy(archived(store, past[-1].adapter), out)
        return wrong
    _copy(adapter, out)
    if not past or version != past[-1].adapter:
        metrics = {name: float(value) for name, value in report["metrics"].items()}
        withdrawn = past[-1].withdrawn if past else []
        reason = reason_for(version, report, past)
        service = Service(
            adapter=version, reason=reason, at=_now(), metrics=metrics, withdrawn=withdrawn, origins=origins
        )
        _record(store, [*past, service], adapter)
    return []


def roll_back(store: ArtifactStore, to: str = "") -> Service:
    """Put an earlier adapter into service again, and withdraw the present one.

    A rollback to an adapter that was withdrawn undoes that: then the present one is not withdrawn.

    Args:
        store: Where the history is.
        to: Data version of the adapter, or its first digits; empty: the one that was there before the present one.

    Raises:
        PromotionError: if there is no such adapter, it is no longer kept, or it is in service.
    """
    past, manifest = history(store), store.manifest(PROMOTED)
    if not past or manifest is None:
        raise PromotionError("no adapter is in service yet. Run `apeagent demo` first")
    given_up = {*past[-1].withdrawn, past[-1].adapter}
    earlier = find_service(store, to) if to else next((e for e in reversed(past) if e.adapter not in given_up), None)
    if earlier is None:
        raise PromotionError(
            f"{past[-1].adapter} is the first adapter in service: there is no earlier one to roll back to"
        )
    if earlier.adapter == past[-1].adapter:
        raise PromotionError(f"{earlier.adapter} is in service already")
    if earlier.adapter in given_up:
        given_up -= {earlier.adapter, past[-1].adapter}
    left = "was withdrawn" if past[-1].adapter in given_up else "can come back"
    reason = f"a rollback from {past[-1].adapter}, which {left}"
    service = earlier.model_copy(
        update={"why": "rollback", "reason": reason, "at": _now(), "withdrawn": sorted(given_up)}
    )
    folder = store.cache / "rollback"
    _copy(archived(store, earlier.adapter), folder)
    # With the inputs of before: nothing that was read has changed, so nothing makes the present one again. And before
    # the history: killed in between, the same command does the same again and does not go back one further.
    store.publish_folder(
        folder,
        asset=PROMOTED,
        code_version=manifest.code_version,
        config=manifest.config,
        inputs=manifest.inputs,
        days=earlier.trained_on,
    )
    _record(store, [*past, service], folder)
    shutil.rmtree(folder)
    return service


def find_service(store: ArtifactStore, version: str = "") -> Service:
    """The time an adapter last went into service.

    Args:
        store: Where the history is.
        version: Data version of the adapter, or its first digits; empty: the adapter in service.

    Raises:
        PromotionError: if no adapter, or more than one, has such a version.
    """
    past = history(store)
    if not past:
        raise PromotionError("no adapter is in service yet. Run `apeagent demo` first")
    found = [each for each in past if each.adapter.startswith(version)] if version else past[-1:]
    known = list(dict.fromkeys(each.adapter for each in past))
    if len({each.adapter for each in found}) != 1:
        how_many = "no adapter" if not found else "more than one adapter"
        raise PromotionError(f"{how_many} of the history has the version {version!r}: expected one of {known}")
    return found[-1]


def in_service(store: ArtifactStore) -> Path:
    """A local folder with the adapter in service.

    Raises:
        PromotionError: if there is none.
    """
    manifest = store.manifest(PROMOTED)
    if manifest is None:
        trained = store.manifest("lora_adapter") is not None
        why = "the trained one has not passed its canary evaluation" if trained else "none was trained"
        raise PromotionError(f"No adapter is in service: {why}. Run `apeagent demo`")
    return store.local(manifest)


def history_table(store: ArtifactStore) -> str:
    """Every promotion and rollback as a Markdown table, the newest first.

    Four measures, so that the table fits a page: see `_TOLD`.
    """
    rows = [
        [
            each.at[:16].replace("T", " "),
            each.adapter,
            each.why,
            *(f"{each.metrics[m]:.3f}" if m in each.metrics else "" for m in _TOLD),
        ]
        for each in reversed(history(store))
    ]
    return markdown_table(["at (UTC)", "adapter", "why", *(name.replace("_", " ") for name in _TOLD)], rows)


def history_page(store: ArtifactStore) -> str:
    """`history_table`, and below it the reason for each line as far as it was kept, the newest first."""
    reasons = [
        f"- {each.at[:16].replace('T', ' ')}, {each.adapter}: {each.reason}" for each in history(store) if each.reason
    ]
    return "\n".join([history_table(store), "", *reversed(reasons)])


def reason_for(version: str, report: Mapping[str, Any], before: Sequence[Service]) -> str:
    """Why a candidate that nothing speaks against is in service, in words.

    Args:
        version: Data version of the candidate.
        report: ``report.json`` of its canary evaluation.
        before: The history without the candidate's promotion.
    """
    if not before:
        return "within the limits of its check, and the first adapter"
    old = before[-1]
    if old.adapter == version:
        return "no other adapter was trained since"
    both = [name for name in _TOLD if name in report["metrics"] and name in old.metrics]
    measured = [
        f"{name.replace('_', ' ')} {report['metrics'][name]:.3f} after {old.metrics[name]:.3f}" for name in both
    ]
    told = f": {', '.join(measured)}" if measured else ""
    return f"within the limits of its check and not shown worse than {old.adapter}{told}"


def explanation(version: str, report: Mapping[str, Any], before: Sequence[Service], wrong: Sequence[str]) -> str:
    """A page in words on what happened to a candidate and why, with its measures beside those of the one in service.

    Args:
        version: Data version of the candidate.
        report: ``report.json`` of its canary evaluation.
        before: The history without the candidate's promotion.
        wrong: Why it was not promoted; empty: it is in service.
    """
    old = before[-1] if before else None
    if wrong:
        verdict = [f"**{version} was not promoted; {old.adapter if old else 'no adapter'} stays in service:**", ""]
        verdict += [f"- {reason}" for reason in wrong]
    else:
        stays = "stays" if old and old.adapter == version else "is"
        verdict = [f"**{version} {stays} in service:** {reason_for(version, report, before)}."]
    rows = []
    for name in (*_HIGHER_IS_BETTER, *_LOWER_IS_BETTER):
        if name in report["metrics"]:
            low, high = report["intervals"].get(name, ("", ""))
            interval = f"{low:.3f} to {high:.3f}" if name in report["intervals"] else ""
            was = f"{old.metrics[name]:.3f}" if old and name in old.metrics else ""
            better = "more" if name in _HIGHER_IS_BETTER else "less"
            rows.append([name.replace("_", " "), better, f"{report['metrics'][name]:.3f}", interval, was])
    header = ["measure", "better is", "the newest", "95 % interval", "in service before"]
    return "\n".join([*verdict, "", markdown_table(header, rows)])


def _record(store: ArtifactStore, services: list[Service], adapter: Path) -> None:
    """Write history and archive, with ``adapter`` as the newest."""
    folder = store.cache / "promoting"
    shutil.rmtree(folder, ignore_errors=True)
    kept = list(dict.fromkeys(each.adapter for each in reversed(services)))[:KEPT]
    _copy(adapter, folder / kept[0])
    for version in kept[1:]:
        try:
            _copy(archived(store, version), folder / version)
        except PromotionError:
            continue  # it was older than those that are kept
    lines = [each.model_dump() for each in services]
    (folder / _HISTORY).write_text(json.dumps(lines, indent=2) + "\n")
    store.publish_folder(folder, asset=_ARCHIVE, code_version="1")
    shutil.rmtree(folder)


def archived(store: ArtifactStore, version: str) -> Path:
    """A local folder with an adapter that was in service.

    Raises:
        PromotionError: if it is no longer kept.
    """
    folder = store.local_folder(_ARCHIVE) / version
    if not folder.is_dir():
        raise PromotionError(f"adapter {version} is no longer kept in {folder.parent}: only {KEPT} are")
    return folder


def _copy(adapter: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in adapter.iterdir():
        if file.is_file() and file.name != "manifest.json":
            shutil.copyfile(file, out / file.name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
