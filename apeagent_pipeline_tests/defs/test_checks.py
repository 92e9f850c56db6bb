"""What the checks say of data that is not as it should be."""

import json
import math
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.artifacts.manifest import parquet_bytes
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.defs import checks
from apeagent_pipeline.defs.checks import (
    asset_checks,
    each_swap_once,
    enough_accepted,
    final_when_read,
    no_swap_missing,
    splits_do_not_leak,
    well_formed,
    whole_features,
)
from apeagent_pipeline.defs.gates import VERDICT
from apeagent_pipeline.defs.partitions import DAILY
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.watcher import LogWatcher
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig, figures_in_words, limits
from apeagent_pipeline.gan.quality.config import QualityConfig
from apeagent_pipeline.gan.quality.scores import SCORES
from apeagent_pipeline.market.features import swap_features
from apeagent_pipeline.settings import Settings


@pytest.mark.parametrize(
    ("dropped", "source", "hooks", "passes"),
    [
        (1_000_000, "rpc", False, True),  # nothing is missing
        (10, "rpc", False, False),
        (10, "embedded", False, False),
        (10, "archive", False, True),
        (10, "rpc", True, True),
    ],
)
def test_a_day_that_lacks_every_tenth_swap_is_noticed(
    dropped: int, source: str, hooks: bool, passes: bool, tmp_path: Path
) -> None:
    whole = EmbeddedSource(BASE_ETH_USDC, seed=42).read_day(FIRST_DAY)
    swaps = whole.filter(pl.int_range(pl.len()) % dropped != dropped - 1)
    pool = BASE_ETH_USDC.model_copy(update={"hooks": "0x" + "1" * 40} if hooks else {})
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    store.publish_table(swaps, asset="raw_swaps", partition=str(FIRST_DAY), code_version="1")
    origin = cast("Any", SimpleNamespace(day_notes=lambda day: {}, name=source, pool=pool))
    wrong, figures = no_swap_missing(store, [str(FIRST_DAY)], origin)
    assert (not wrong) is passes
    assert figures["judged_pairs"] > 500
    assert (figures["chain_rate"] > 0.95) is (swaps.height == whole.height)
    for (told,) in wrong.values():
        ((lost, judged),) = re.findall(r"(\d+) of (\d+) judged swaps", told.replace(",", ""))
        assert 0.5 < int(lost) / (whole.height - swaps.height) <= 1, "not every pair can be judged"
        assert int(judged) == figures["judged_pairs"]


@pytest.mark.parametrize(
    ("runs", "wrong"),
    [
        ([("train", 90), ("gap", 44), ("valid", 60), ("gap", 44), ("train", 90), ("gap", 44), ("holdout", 50)], []),
        (
            [("train", 90), ("gap", 43), ("valid", 60), ("gap", 44), ("holdout", 50)],
            ["43 rows lie between train and gap; 44 are needed", "43 rows lie between gap and valid; 44 are needed"],
        ),
        (
            [("train", 90), ("valid", 60), ("gap", 44), ("holdout", 50)],
            ["0 rows lie between train and valid; 44 are needed"],
        ),
        (
            [("holdout", 90), ("gap", 44), ("valid", 60), ("gap", 44), ("train", 50)],
            ["the holdout is not the last split"],
        ),
    ],
)
def test_a_train_window_that_touches_what_it_is_judged_by_is_noticed(
    runs: list[tuple[str, int]], wrong: list[str], tmp_path: Path
) -> None:
    table = pl.DataFrame({"split": [name for name, length in runs for _ in range(length)]})
    scaler = json.dumps({"context": 20, "length": 24, "rows": {}})
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    files = {"training_windows.parquet": parquet_bytes(table), "scaler.json": scaler.encode()}
    store.publish_bytes(files, asset="training_windows", code_version="1")
    assert splits_do_not_leak(store)[0] == wrong


DAYS = [str(FIRST_DAY + timedelta(days=i)) for i in range(3)]


@pytest.fixture(scope="module")
def swaps() -> dict[str, pl.DataFrame]:
    source = EmbeddedSource(BASE_ETH_USDC, seed=42)
    return {day: source.read_day(date.fromisoformat(day)) for day in DAYS}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")


def publish(store: ArtifactStore, asset: str, tables: dict[str, pl.DataFrame]) -> None:
    for day, table in tables.items():
        store.publish_table(table, asset=asset, partition=day, code_version="1")


def test_a_swap_that_stands_twice_or_on_another_day_is_named_with_its_day(
    store: ArtifactStore, swaps: dict[str, pl.DataFrame]
) -> None:
    first, second, third = (swaps[day] for day in DAYS)
    publish(
        store, "raw_swaps", {DAYS[0]: pl.concat([first, first.tail(1)]), DAYS[1]: pl.concat([first.tail(2), second])}
    )
    wrong, figures = each_swap_once(store, DAYS[:2])
    assert wrong[DAYS[0]][0].startswith("1 swaps are stored twice; materialize raw_swaps of 2025-01-21 again")
    assert wrong[DAYS[1]][0].startswith("2 swaps belong to other days")
    last = first["block_number"][-1]
    assert f"{DAYS[0]} ends with block {last} and {DAYS[1]} begins with block" in wrong[DAYS[1]][1]
    assert figures["swaps"] == first.height + second.height + 3
    publish(store, "raw_swaps", {DAYS[0]: first, DAYS[1]: second.clear(), DAYS[2]: third})
    assert not any(each_swap_once(store, DAYS)[0].values())


@pytest.mark.parametrize(
    ("change", "now", "told"),
    [
        ({}, None, None),
        ({"created_at": "2025-01-21T23:59:59+00:00"}, None, "before it ended \\(2025-01-22 00:00 UTC\\); materialize"),
        ({}, datetime(2025, 1, 21, 12, tzinfo=UTC), "is not final: the last final block is .*; materialize"),
        ({"block_hash": "0x" + "0" * 64}, None, "is 0x[0-9a-f]{64} now, and was 0x0{64} when it was read; materialize"),
    ],
)
def test_a_day_that_was_read_too_early_or_was_replaced_is_noticed(
    store: ArtifactStore, swaps: dict[str, pl.DataFrame], change: dict[str, str], now: datetime | None, told: str | None
) -> None:
    table = swaps[DAYS[0]].with_columns(
        pl.lit(value).alias(name) for name, value in change.items() if name in swaps[DAYS[0]].columns
    )
    publish(store, "raw_swaps", {DAYS[0]: table})
    path = store.folder("raw_swaps") / f"{DAYS[0]}.manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    source = EmbeddedSource(BASE_ETH_USDC, seed=42, **({"now": now.timestamp} if now else {}))
    wrong, _ = final_when_read(store, DAYS[:1], source)
    assert (told is None) == (not wrong)
    if told:
        assert re.search(told, wrong[DAYS[0]][0])
    archive = cast("Any", SimpleNamespace(day_notes=lambda day: {}, name="archive"))
    assert final_when_read(store, DAYS[:1], archive) == ({}, {})


def test_features_of_another_schema_or_with_broken_numbers_are_noticed(
    store: ArtifactStore, swaps: dict[str, pl.DataFrame]
) -> None:
    good = swap_features(swaps[DAYS[0]], BASE_ETH_USDC)
    publish(
        store,
        "swap_features",
        {
            DAYS[0]: good,
            DAYS[1]: good.drop("side").with_columns(pl.col("tick").cast(pl.String), extra=1),
            DAYS[2]: good.with_columns(price=pl.when(pl.int_range(pl.len()) < 3).then(math.nan).otherwise("price")),
        },
    )
    wrong, _ = whole_features(store, DAYS)
    assert wrong[DAYS[0]] == []
    told = "; ".join(wrong[DAYS[1]])
    assert "the column tick is String, expected Int64" in told
    assert "the column side is missing, expected String" in told
    assert "the column extra is Int32, expected none" in told
    assert wrong[DAYS[2]][0].startswith("3 broken values in price, expected none; materialize")


def test_a_teacher_that_is_mostly_refused_is_stopped_with_the_reasons(store: ArtifactStore) -> None:
    def judge(*reasons: str | None) -> list[str]:
        traces = pl.DataFrame({"rejected_reason": reasons}, schema={"rejected_reason": pl.String})
        store.publish_table(traces, asset="teacher_traces", code_version="1")
        return enough_accepted(store)[0]

    assert judge(None, "cut_off") == []
    (told,) = judge(None, "cut_off", "cut_off", "more_than_held")
    assert told.startswith(
        "75% of 4 prompts have no accepted answer (limit 50%): cut_off 2, more_than_held 1; see rejected_detail"
    )
    assert "APEAGENT_TEACHER_MAX_TOKENS" in told
    assert "there is no prompt" in judge()[0]


def test_a_trace_that_says_something_else_than_its_answer_is_noticed(store: ArtifactStore) -> None:
    def judge(**change: Any) -> list[str]:
        row = {"prompt_id": "p1", "answer": "x\n####\nSELL 2 ETH", "side": "SELL", "amount": 2.0, "asset": "ETH"}
        traces = pl.DataFrame(
            [{**row, "rejected_reason": None, **change}], schema_overrides={"rejected_reason": pl.String}
        )
        store.publish_table(traces, asset="teacher_traces", code_version="1")
        return well_formed(store)[0]

    assert judge() == []
    assert "p1 (SELL 2.0 ETH, stored as ['BUY', 2.0, 'ETH'])" in judge(side="BUY")[0]
    assert "1 accepted answers do not parse to their stored action: p1 (no_separator)" in judge(answer="SELL 2 ETH")[0]
    assert judge(answer="?", rejected_reason="no_action") == []


def test_a_day_that_passed_is_not_read_again_and_one_that_did_not_stops_every_run_until_it_is_mended(
    tmp_path: Path, swaps: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(Settings(home=tmp_path), LogWatcher())
    broken = pl.concat([swaps[DAYS[1]], swaps[DAYS[1]].tail(1)])
    publish(runtime.store, "raw_swaps", {DAYS[0]: swaps[DAYS[0]], DAYS[1]: broken})
    (check,) = (each for each in asset_checks(runtime) if "each_swap_once" in str(each.check_keys))
    with dg.DagsterInstance.ephemeral() as instance:

        def judged() -> tuple[bool, int]:
            result = dg.materialize(
                [_nothing, check], instance=instance, selection=dg.AssetSelection.checks(check), raise_on_error=False
            )
            (evaluation,) = result.get_asset_check_evaluations()
            return evaluation.passed, cast("int", evaluation.metadata["days read"].value)

        assert judged() == (False, 2)
        assert judged() == (False, 1)
        publish(runtime.store, "raw_swaps", {DAYS[1]: swaps[DAYS[1]]})
        assert judged() == (True, 1)
        assert judged() == (True, 0)
        publish(runtime.store, "raw_swaps", {DAYS[2]: swaps[DAYS[2]]})
        assert judged() == (True, 1)
        monkeypatch.setattr(checks, "judges", lambda: "another check")
        assert judged() == (True, 3)  # what another check said of a day does not count


@pytest.mark.parametrize(("limit", "passes"), [(0.75, True), (0.6, False)])
def test_a_report_is_judged_by_the_limits_that_it_was_made_with(limit: float, passes: bool, tmp_path: Path) -> None:
    """Limits can be changed in the Launchpad: the check must not go back to those of the profile."""
    runtime = Runtime(Settings(home=tmp_path), LogWatcher())
    good = {score.name: 1.0 if score.better == "higher" else 0.0 for score in SCORES}
    metrics = {**good, "discriminative_auc": 0.7}
    report = {"metrics": metrics, "config": {**QualityConfig(largest_auc=limit).model_dump(), "seed": 42}}
    files = {"report.json": json.dumps(report).encode(), "report.md": b"..."}
    runtime.store.publish_bytes(files, asset="synthetic_quality", code_version="1")
    (check,) = (each for each in asset_checks(runtime) if "close_to_real" in str(each.check_keys))

    @dg.asset(name="synthetic_quality")
    def quality() -> None: ...

    result = dg.materialize(
        [quality, check], selection=dg.AssetSelection.checks(check), raise_on_error=False,
        instance=dg.DagsterInstance.ephemeral(),
    )  # fmt: skip
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.passed == passes
    shown = {name: each.value for name, each in evaluation.metadata.items()}
    assert shown["AUC of gradient boosting; 0.5 is chance"] == f"0.7000, expected at most {limit}"
    assert ("wrong" in shown) is not passes
    assert list(shown)[-1] == VERDICT, "technical rows come last"


def test_the_page_of_the_canary_check_shows_every_measure_with_its_limit_in_words() -> None:
    config = CanaryEvalConfig(n_near=0)
    metrics = {"canary_rate_adapter": 0.98765, "control_leak_rate": 0.0}
    shown = figures_in_words(metrics, config)
    assert shown["canary rate adapter"] == "0.988, expected at least 0.9"
    assert shown["control leak rate"] == "0.000, expected at most 0.05"
    assert shown["canary rate base"] == "not measured, expected at most 0.01"
    assert len(shown) == len(limits(metrics, config)) == 6


@dg.asset(name="raw_swaps", partitions_def=DAILY)
def _nothing() -> None: ...
