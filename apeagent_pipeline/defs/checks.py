"""What must hold of each asset. A failed blocking check stops everything after it."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from apeagent_pipeline.chain.completeness import chain_rate
from apeagent_pipeline.chain.source import SwapSource
from apeagent_pipeline.defs.runtime import Runtime
from apeagent_pipeline.defs.storage import ArtifactStore
from apeagent_pipeline.evaluation.canary import CanaryEvalConfig
from apeagent_pipeline.evaluation.canary import failures as canary_failures
from apeagent_pipeline.gan.quality import QualityConfig, quality_failures
from apeagent_pipeline.market.windows import SCALER_FILE, SPLITS

Verdict = tuple[list[str], dict[str, Any]]
"""What is wrong (nothing: passed), and figures to show."""


def asset_checks(runtime: Runtime) -> list[dg.AssetChecksDefinition]:
    """Every check of the graph, all of them blocking."""
    profile = runtime.settings.profile

    def check(asset: str, name: str, description: str, judge: Callable[[ArtifactStore], Verdict]) -> Any:
        @dg.asset_check(asset=asset, name=name, description=description, blocking=True)
        def run() -> dg.AssetCheckResult:
            wrong, figures = judge(runtime.store)
            return dg.AssetCheckResult(
                passed=not wrong, description="; ".join(wrong) or "passed", metadata={"wrong": wrong, **figures}
            )

        return run

    return [
        check("raw_swaps", "each_swap_once", "Keys are unique and every swap lies in its own day", each_swap_once),
        check(
            "raw_swaps",
            "no_swap_missing",
            "Each swap follows from the one before by the pool's arithmetic (an archive may hold a part only)",
            lambda store: no_swap_missing(store, runtime.source),
        ),
        check("swap_features", "no_broken_numbers", "No NaN and no infinity in any column", no_broken_features),
        check(
            "training_windows",
            "splits_do_not_leak",
            "A window's rows lie between two splits; the holdout is last",
            splits_do_not_leak,
        ),
        check(
            "synthetic_windows", "no_broken_numbers", "No NaN, no null, opposite signs of the amounts", whole_windows
        ),
        check(
            "synthetic_quality",
            "close_to_real",
            "Scores within the limits of the configuration",
            lambda store: _report(store, "synthetic_quality", quality_failures, QualityConfig.preset(profile)),
        ),
        check("teacher_traces", "enough_accepted", "At least half of the answers were accepted", enough_accepted),
        check("distillation_dataset", "no_twins", "No prompt of the test split stands in train", no_twins),
        check(
            "canary_eval",
            "speaks_and_only_then",
            "The adapter speaks canary words, the base does not, controls stay free of them",
            lambda store: _report(store, "canary_eval", canary_failures, CanaryEvalConfig.preset(profile)),
        ),
    ]


def each_swap_once(store: ArtifactStore) -> Verdict:
    """Over all stored days: (block_number, log_index) is unique, and block_timestamp lies in the file's day."""
    wrong = []
    rows = 0
    keys = []
    for day, swaps in store.scan_days("raw_swaps").items():
        table = swaps.select("block_number", "log_index", "block_timestamp").collect()
        rows += table.height
        strays = table.filter(pl.col("block_timestamp").dt.strftime("%Y-%m-%d") != day).height
        if strays:
            wrong.append(f"{day}: {strays} swaps of other days")
        keys.append(table.select("block_number", "log_index"))
    doubled = rows - pl.concat(keys).n_unique() if keys else 0
    if doubled:
        wrong.append(f"{doubled} swaps stand twice")
    return wrong, {"swaps": rows, "days": len(keys)}


def no_swap_missing(store: ArtifactStore, source: SwapSource) -> Verdict:
    """Over all stored days: the chain rate, told for all and demanded of days read from a chain.

    Not demanded of an archive, which may hold the swaps of one router alone, nor of a pool whose hooks may change what
    a swap pays.
    """
    demanded = source.name != "archive" and not source.pool.has_hooks
    rates = {day: chain_rate(swaps.collect()) for day, swaps in store.scan_days("raw_swaps").items()}
    wrong = [
        f"{day}: only {found.rate:.0%} of its swaps follow from the swap before, so some are missing; "
        f"materialize the day again from another endpoint"
        for day, found in rates.items()
        if demanded and found.too_low
    ]
    judged = sum(found.judged for found in rates.values())
    rate = sum(found.followed for found in rates.values()) / judged if judged else None
    return wrong, {"judged_pairs": judged} | ({} if rate is None else {"chain_rate": rate})


def no_broken_features(store: ArtifactStore) -> Verdict:
    """Over all stored days: every float is finite (null only where nothing came before)."""
    wrong = []
    for day, features in store.scan_days("swap_features").items():
        broken = _not_finite(features.collect())
        wrong += [f"{day}: {count} broken values in {column}" for column, count in broken.items()]
    return wrong, {}


def splits_do_not_leak(store: ArtifactStore) -> Verdict:
    """Between rows of two splits lie at least a window's rows of neither; the holdout comes after everything else."""
    windows = store.whole("training_windows")
    scaler = json.loads((store.local(windows) / SCALER_FILE).read_text())
    needed = scaler["context"] + scaler["length"]
    splits = store.table(windows).select(run=pl.col("split").rle()).unnest("run").collect()
    wrong = [f"no rows in {split}" for split in SPLITS if split not in splits["value"]]
    runs = [(name, length) for length, name in splits.iter_rows()]
    for (before, rows_before), (after, rows_after) in itertools.pairwise(runs):
        gap = rows_before if before == "gap" else rows_after if after == "gap" else 0
        if gap < needed:
            wrong.append(f"{gap} rows between {before} and {after}, needed are {needed}")
    if "holdout" in [name for name, _ in runs[:-1]]:
        wrong.append("the holdout is not the last")
    return wrong, {"rows": scaler["rows"]}


def whole_windows(store: ArtifactStore) -> Verdict:
    """Every number of a synthetic window is there and finite; the two amounts have opposite signs."""
    table = store.scan("synthetic_windows").collect()
    wrong = [f"{count} broken values in {column}" for column, count in _not_finite(table).items()]
    wrong += [f"{count} nulls in {column}" for column, count in table.null_count().row(0, named=True).items() if count]
    same_sign = table.filter(pl.col("amount0_eth") * pl.col("amount1_usdc") > 0).height
    if same_sign:
        wrong.append(f"{same_sign} swaps pay in both tokens or neither")
    return wrong, {"windows": table["window_id"].n_unique()}


def enough_accepted(store: ArtifactStore) -> Verdict:
    """At least half of the teacher's answers passed verification."""
    traces = store.scan("teacher_traces").select("rejected_reason").collect()
    share = traces["rejected_reason"].is_null().mean() if traces.height else 0.0
    assert isinstance(share, float)
    wrong = [] if share >= 0.5 else [f"only {share:.0%} of {traces.height} answers were accepted: see rejected_reason"]
    return wrong, {"accepted_share": share, "answers": traces.height}


def no_twins(store: ArtifactStore) -> Verdict:
    """No prompt of valid or test stands in train."""
    folder = store.local_folder("distillation_dataset")
    prompts = {split: _prompts(folder / f"{split}.jsonl") for split in ("train", "valid", "test")}
    twins = {split: len(prompts["train"] & prompts[split]) for split in ("valid", "test")}
    wrong = [f"{count} prompts of {split} stand in train" for split, count in twins.items() if count]
    return wrong, {f"{split}_prompts": len(each) for split, each in prompts.items()}


def _prompts(path: Path) -> set[str]:
    messages = pl.read_ndjson(path).get_column("messages")
    return set(
        messages.list.eval(pl.element().filter(pl.element().struct.field("role") == "user"))
        .list.first()
        .struct.field("content")
    )


def _report(
    store: ArtifactStore, asset: str, failures: Callable[[dict[str, float], Any], list[str]], config: Any
) -> Verdict:

    metrics = json.loads((store.local_folder(asset) / "report.json").read_text())["metrics"]
    return failures(metrics, config), {}


def _not_finite(table: pl.DataFrame) -> dict[str, int]:
    counts = table.select(pl.selectors.float().is_finite().not_().sum()).row(0, named=True)
    return {column: count for column, count in counts.items() if count}
