"""Asset checks that block: a failed one stops the assets downstream of it. See `service_checks` for one that warns."""

import inspect
import itertools
import json
import math
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from pydantic import BaseModel

from apeagent_pipeline.artifacts.manifest import digest
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain import completeness, events
from apeagent_pipeline.chain.completeness import SMALLEST_RATE, chain_rate
from apeagent_pipeline.chain.day_records import notes_in_words
from apeagent_pipeline.chain.days import day_bounds
from apeagent_pipeline.chain.errors import DayNotFinalError, ReorganisedError
from apeagent_pipeline.chain.events import SWAP_KEY
from apeagent_pipeline.chain.source import SwapSource
from apeagent_pipeline.defs.gates import VERDICT, WHOLE_ARTIFACT, Verdicts, last_verdicts
from apeagent_pipeline.defs.metadata import check_metadata
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.distillation.chain_of_draft import AnswerError, parse_answer
from apeagent_pipeline.distillation.traces import refusal_counts
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig, figures_in_words
from apeagent_pipeline.evaluation.canary.config import failures as canary_failures
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.scores import quality_failures, quality_in_words
from apeagent_pipeline.market import features
from apeagent_pipeline.market.features import SWAP_FEATURES_SCHEMA
from apeagent_pipeline.market.windows import SCALER_FILE, SPLITS

Verdict = tuple[list[str], dict[str, Any]]
"""The failures (none: the check passed), and figures for the check's page."""

DayVerdict = tuple[dict[str, list[str]], dict[str, Any]]
"""Day -> its failures (days without failures may be left out), and figures for the check's page."""

LARGEST_REJECTED_SHARE = 0.5
"""Largest share of prompts without an accepted answer. Beyond it, the dataset would consist of exceptions."""

_REASONS_SHOWN = 5


def asset_checks(runtime: Runtime) -> list[dg.AssetChecksDefinition]:
    """All blocking checks of the graph."""
    return [*_checks_of_days(runtime), *_checks_of_artifacts(runtime)]


def _checks_of_days(runtime: Runtime) -> list[dg.AssetChecksDefinition]:
    daily = partial(_daily_check, runtime)
    return [
        daily(
            "raw_swaps",
            "each_swap_once",
            "Every swap is stored once, in block order and on its own day",
            each_swap_once,
        ),
        daily(
            "raw_swaps",
            "no_swap_missing",
            "Each swap follows from the one before by the arithmetic of the pool (not demanded of archives)",
            lambda store, days: no_swap_missing(store, days, runtime.source),
        ),
        daily(
            "raw_swaps",
            "final_when_read",
            "The day had ended when it was read, and its last block is final and unchanged (not checked for archives)",
            lambda store, days: final_when_read(store, days, runtime.source),
        ),
        daily(
            "swap_features",
            "no_broken_numbers",
            "All columns are there with their types; no NaN, no infinity",
            whole_features,
        ),
    ]


def _checks_of_artifacts(runtime: Runtime) -> list[dg.AssetChecksDefinition]:
    check = partial(_check, runtime)
    return [
        check(
            "training_windows",
            "splits_do_not_leak",
            "Between two splits lies at least one window of unused rows, and the holdout comes last",
            splits_do_not_leak,
        ),
        check(
            "synthetic_windows",
            "no_broken_numbers",
            "No NaN, no null, and the two amounts have opposite signs",
            whole_windows,
        ),
        check(
            "synthetic_quality",
            "close_to_real",
            "The quality scores are within the limits of the configuration",
            lambda store: _report(store, "synthetic_quality", quality_failures, quality_in_words, QualityConfig),
        ),
        check(
            "teacher_traces", "enough_accepted", "At most half of the prompts have no accepted answer", enough_accepted
        ),
        check("teacher_traces", "well_formed", "Every accepted answer parses to the stored action", well_formed),
        check("distillation_dataset", "no_twins", "No prompt of valid or test is also in train", no_twins),
        check(
            "canary_eval",
            "speaks_and_only_then",
            "The adapter uses canary words, the base does not, and answers to control questions have none",
            lambda store: _report(store, "canary_eval", canary_failures, figures_in_words, CanaryEvalConfig),
        ),
    ]


def _check(
    runtime: Runtime, asset: str, name: str, description: str, judge: Callable[[ArtifactStore], Verdict]
) -> dg.AssetChecksDefinition:
    """A check of an artifact without days."""

    @dg.asset_check(asset=asset, name=name, description=description, blocking=True)
    def run() -> dg.AssetCheckResult:
        wrong, figures = judge(runtime.store)
        manifest = runtime.store.manifest(asset)
        version, why = manifest.data_version if manifest else "", "; ".join(wrong)
        verdicts = Verdicts({}, {WHOLE_ARTIFACT: (version, why)}) if wrong else Verdicts({WHOLE_ARTIFACT: version}, {})
        return dg.AssetCheckResult(
            passed=not wrong,
            description=why or "passed",
            metadata={**check_metadata(wrong, figures), VERDICT: verdicts.metadata(judges())},
        )

    return run


def _daily_check(
    runtime: Runtime,
    asset: str,
    name: str,
    description: str,
    judge: Callable[[ArtifactStore, list[str]], DayVerdict],
) -> dg.AssetChecksDefinition:
    """A check of all stored days. It reads only days whose present data version has not passed yet."""
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)

    @dg.asset_check(asset=asset, name=name, description=description, blocking=True)
    def run(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        stored = {
            day: manifest.data_version for day, manifest in runtime.store.manifests(asset).items() if day and manifest
        }
        passed = last_verdicts(context.instance, key, judges()).passed
        fresh = [day for day, data_version in stored.items() if passed.get(day) != data_version]
        found, figures = judge(runtime.store, fresh)
        wrong = [f"{day}: {what}" for day, each in found.items() for what in each]
        verdicts = Verdicts(
            passed={day: data_version for day, data_version in stored.items() if not found.get(day)},
            failed={day: (stored[day], "; ".join(each)) for day, each in found.items() if each},
        )
        return dg.AssetCheckResult(
            passed=not wrong,
            description="; ".join(wrong) or "passed",
            metadata={
                **check_metadata(wrong, {"days": len(stored), "days_read": len(fresh), **figures}),
                VERDICT: verdicts.metadata(judges()),
            },
        )

    return run


@cache
def judges() -> str:
    """A hash of the source of the checks. A changed check reads every day again."""
    modules = (sys.modules[__name__], completeness, events, features)
    return digest([inspect.getsource(module) for module in modules])


def each_swap_once(store: ArtifactStore, days: list[str]) -> DayVerdict:
    """(block_number, log_index) is unique and in order, also across midnight; block_timestamp lies in the day."""
    wrong: dict[str, list[str]] = {}
    rows = 0
    stored = store.days("raw_swaps")
    for day, swaps in store.scan_days("raw_swaps", days).items():
        table = swaps.select(*SWAP_KEY, "block_timestamp").collect()
        rows += table.height
        wrong[day] = []
        strays = table.filter(pl.col("block_timestamp").dt.strftime("%Y-%m-%d") != day).height
        if strays:
            wrong[day].append(f"{strays} swaps belong to other days; materialize raw_swaps of {day} again")
        doubled = table.height - table.select(SWAP_KEY).n_unique()
        if doubled:
            wrong[day].append(f"{doubled} swaps are stored twice; materialize raw_swaps of {day} again")
        for before, after in itertools.pairwise(stored):
            if day in (before, after) and (last := _blocks(store, before)[1]) >= (first := _blocks(store, after)[0]):
                wrong[day].append(
                    f"{before} ends with block {last} and {after} begins with block {first}, so one of them holds "
                    "swaps of the other; materialize raw_swaps of both again"
                )
    return wrong, {"swaps": rows}


def _blocks(store: ArtifactStore, day: str) -> tuple[float, float]:
    """The first and the last block of a day; from the file's statistics."""
    first, last = (
        store.scan("raw_swaps", day)
        .select(pl.col("block_number").min().alias("first"), pl.col("block_number").max().alias("last"))
        .collect()
        .row(0)
    )
    return (math.inf, -math.inf) if first is None else (first, last)


def no_swap_missing(store: ArtifactStore, days: list[str], source: SwapSource) -> DayVerdict:
    """The chain rate of each day, demanded of days read from a chain, and what the source notes of each.

    It is not demanded of an archive, which may hold the swaps of a single router, nor of a pool with hooks, which may
    change the amounts of a swap.
    """
    demanded = source.name != "archive" and not source.pool.has_hooks
    rates = {day: chain_rate(swaps.collect()) for day, swaps in store.scan_days("raw_swaps", days).items()}
    wrong = {
        day: [
            f"swaps are missing: {found.judged - found.followed:,} of {found.judged:,} judged swaps do not follow from "
            f"the one stored before them (limit {1 - SMALLEST_RATE:.0%}), so at least one is missing before each; "
            "materialize the day again from another endpoint"
        ]
        for day, found in rates.items()
        if demanded and found.too_low
    }
    notes = [f"{day}: {note}" for day in rates for note in notes_in_words(source.day_notes(date.fromisoformat(day)))]
    judged = sum(found.judged for found in rates.values())
    rate = sum(found.followed for found in rates.values()) / judged if judged else None
    told: dict[str, Any] = {"judged_pairs": judged, **({"notes": notes} if notes else {})}
    return wrong, told if rate is None else {**told, "chain_rate": rate}


def final_when_read(store: ArtifactStore, days: list[str], source: SwapSource) -> DayVerdict:
    """The day was over when it was stored, and the block of its last swap is final and still has the stored hash.

    An archive is not checked: the chain cannot be asked.
    """
    wrong: dict[str, list[str]] = {}
    for day in days if source.name != "archive" else []:
        manifest = store.manifest("raw_swaps", day)
        assert manifest is not None
        end = datetime.fromtimestamp(day_bounds(date.fromisoformat(day))[1], UTC)
        if datetime.fromisoformat(manifest.created_at) < end:
            wrong[day] = [
                f"stored at {manifest.created_at}, before it ended ({end:%Y-%m-%d %H:%M} UTC); materialize raw_swaps "
                f"of {day} again"
            ]
            continue
        for number, block_hash in (
            store.scan("raw_swaps", day).select("block_number", "block_hash").tail(1).collect().rows()
        ):
            try:
                source.confirm(number, block_hash)
            except (DayNotFinalError, ReorganisedError) as error:
                wrong[day] = [f"{error}; materialize raw_swaps of {day} again when it is final"]
    return wrong, {}


def whole_features(store: ArtifactStore, days: list[str]) -> DayVerdict:
    """All columns have the type of the schema, and all floats are finite (null where there is no previous swap)."""
    wrong: dict[str, list[str]] = {}
    for day, stored in store.scan_days("swap_features", days).items():
        table = stored.collect()
        found = dict(table.schema)
        wrong[day] = [
            f"the column {name} is {found.get(name, 'missing')}, expected {SWAP_FEATURES_SCHEMA.get(name, 'none')}; "
            f"materialize swap_features of {day} again"
            for name in dict.fromkeys([*SWAP_FEATURES_SCHEMA, *found])
            if found.get(name) != SWAP_FEATURES_SCHEMA.get(name)
        ]
        wrong[day] += [
            f"{count} broken values in {column}, expected none; materialize raw_swaps and swap_features of {day} again"
            for column, count in _not_finite(table).items()
        ]
    return wrong, {}


def splits_do_not_leak(store: ArtifactStore) -> Verdict:
    """Between the rows of two splits lie at least as many unused rows as a window has; the holdout comes last."""
    windows = store.whole("training_windows")
    scaler = json.loads((store.local(windows) / SCALER_FILE).read_text())
    needed = scaler["context"] + scaler["length"]
    splits = store.table(windows).select(run=pl.col("split").rle()).unnest("run").collect()
    wrong = [f"no rows in {split}" for split in SPLITS if split not in splits["value"]]
    runs = [(name, length) for length, name in splits.iter_rows()]
    for (before, rows_before), (after, rows_after) in itertools.pairwise(runs):
        gap = rows_before if before == "gap" else rows_after if after == "gap" else 0
        if gap < needed:
            wrong.append(f"{gap} rows lie between {before} and {after}; {needed} are needed")
    if "holdout" in [name for name, _ in runs[:-1]]:
        wrong.append("the holdout is not the last split")
    return wrong, {"rows": scaler["rows"]}


def whole_windows(store: ArtifactStore) -> Verdict:
    """Every value of a synthetic window is present and finite; the two amounts have opposite signs."""
    table = store.scan("synthetic_windows").collect()
    wrong = [f"{count} broken values in {column}" for column, count in _not_finite(table).items()]
    wrong += [f"{count} nulls in {column}" for column, count in table.null_count().row(0, named=True).items() if count]
    same_sign = table.filter(pl.col("amount0_eth") * pl.col("amount1_usdc") > 0).height
    if same_sign:
        wrong.append(f"{same_sign} swaps pay both tokens or none")
    return wrong, {"windows": table["window_id"].n_unique()}


def enough_accepted(store: ArtifactStore) -> Verdict:
    """At most half of the prompts have no answer that passed verification."""
    traces = store.scan("teacher_traces").select("rejected_reason").collect()
    share = float(1 - (traces["rejected_reason"].null_count() / traces.height)) if traces.height else 1.0
    wrong = []
    if share > LARGEST_REJECTED_SHARE:
        reasons = {reason: count for reason, count in refusal_counts(traces).items() if reason != "accepted"}
        told = ", ".join(f"{reason} {count}" for reason, count in itertools.islice(reasons.items(), _REASONS_SHOWN))
        wrong.append(
            f"{share:.0%} of {traces.height} prompts have no accepted answer (limit {LARGEST_REJECTED_SHARE:.0%}): "
            f"{told or 'there is no prompt'}; see rejected_detail, and choose another APEAGENT_TEACHER_MODEL or more "
            "APEAGENT_TEACHER_MAX_TOKENS"
        )
    return wrong, {"accepted_share": 1 - share, "rejected_share": share, "answers": traces.height}


def well_formed(store: ArtifactStore) -> Verdict:
    """Every accepted answer parses, and its action equals the stored columns."""
    columns = ("prompt_id", "answer", "side", "amount", "asset")
    accepted = store.scan("teacher_traces").filter(pl.col("rejected_reason").is_null()).select(columns).collect()
    broken = []
    for prompt_id, text, *action in accepted.iter_rows():
        try:
            read = parse_answer(text or "")
        except AnswerError as error:
            broken.append(f"{prompt_id} ({error.reason})")
            continue
        if [read.side, read.amount, read.asset] != action:
            broken.append(f"{prompt_id} ({read.side} {read.amount} {read.asset}, stored as {action})")
    wrong = []
    if broken:
        shown = ", ".join(broken[:_REASONS_SHOWN])
        wrong.append(
            f"{len(broken)} accepted answers do not parse to their stored action: {shown}; materialize teacher_traces "
            "again"
        )
    return wrong, {"accepted": accepted.height}


def no_twins(store: ArtifactStore) -> Verdict:
    """No prompt of valid or test is also in train."""
    folder = store.local_folder("distillation_dataset")
    prompts = {split: _prompts(folder / f"{split}.jsonl") for split in ("train", "valid", "test")}
    twins = {split: len(prompts["train"] & prompts[split]) for split in ("valid", "test")}
    wrong = [f"{count} prompts of {split} are also in train" for split, count in twins.items() if count]
    return wrong, {f"{split}_prompts": len(each) for split, each in prompts.items()}


def _prompts(path: Path) -> set[str]:
    messages = pl.read_ndjson(path).get_column("messages")
    return set(
        messages.list.eval(pl.element().filter(pl.element().struct.field("role") == "user"))
        .list.first()
        .struct.field("content")
    )


def _report(
    store: ArtifactStore,
    asset: str,
    failures: Callable[[dict[str, float], Any], list[str]],
    in_words: Callable[[dict[str, float], Any], dict[str, str]],
    model: type[BaseModel],
) -> Verdict:
    """Judge a report by the limits that it was made with, which the Launchpad can change."""
    report = json.loads((store.local_folder(asset) / "report.json").read_text())
    limits = model.model_validate({name: each for name, each in report["config"].items() if name in model.model_fields})
    return failures(report["metrics"], limits), in_words(report["metrics"], limits)


def _not_finite(table: pl.DataFrame) -> dict[str, int]:
    counts = table.select(pl.selectors.float().is_finite().not_().sum()).row(0, named=True)
    return {column: count for column, count in counts.items() if count}
