"""Somebody is told of a failed run, and nobody of the address that was used."""

import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from apeagent_pipeline.defs.automation.alerts import failure_alert, post, warning_alert
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.defs.partitions import DAILY, RANGE_END, RANGE_START
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.defs.webhook import Webhook
from apeagent_pipeline_tests.servers import stopped_afterwards

UI = "http://127.0.0.1:3123"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    for start in stopped_afterwards(Webhook):
        yield start()


@dg.op
def breaks() -> None:
    raise ValueError("no such luck <!channel>\x1b[31m")


@dg.job
def doomed() -> None:
    breaks()


def tick(instance: dg.DagsterInstance, address: str, cursor: str | None) -> "dg.SensorExecutionData":
    """One look of the daemon, with what the sensor remembers of the last."""
    context = dg.build_sensor_context(instance, cursor=cursor, repository_name="__repository__")
    return failure_alert(SecretStr(address), UI).evaluate_tick(context)


def test_a_failed_run_is_told_with_job_run_and_reason_and_calls_nobody(webhook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(instance, webhook.address, None).cursor
        run_id = doomed.execute_in_process(instance=instance, raise_on_error=False).run_id
        tick(instance, f"{webhook.address}/services/secret", cursor)
    reason = "breaks: no such luck &lt;!channel&gt;\N{REPLACEMENT CHARACTER}[31m"
    assert webhook.told == [f"apeagent: run {run_id} of doomed failed. {reason}\n{UI}/runs/{run_id}"]


@pytest.mark.parametrize(("way", "told"), [("broken", "500"), ("moved", "307"), ("slow", "ReadTimeout")])
def test_an_alert_that_cannot_be_delivered_is_tried_again_goes_nowhere_else_and_keeps_the_address_secret(
    webhook: Webhook, way: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apeagent_pipeline.defs.automation.alerts._TIMEOUT_S", 0.2)
    with pytest.raises(RuntimeError, match=rf"could not be delivered to APEAGENT_ALERT_WEBHOOK \({told}\)") as failed:
        post(SecretStr(f"{webhook.address}/{way}/secret"), "hello")
    assert webhook.told == ["hello"] * 3
    assert webhook.elsewhere == []
    assert failed.value.__suppress_context__
    assert "secret" not in str(failed.value)


def test_an_answer_without_end_is_not_waited_for(webhook: Webhook) -> None:
    begun = time.monotonic()
    post(SecretStr(f"{webhook.address}/endless"), "hello")
    assert time.monotonic() - begun < 5


def test_a_webhook_that_fails_does_not_keep_the_next_failure_from_being_told(webhook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(instance, webhook.address, None).cursor
        doomed.execute_in_process(instance=instance, raise_on_error=False)
        missed = tick(instance, f"{webhook.address}/broken/secret", cursor)
        (reaction,) = missed.dagster_run_reactions
        assert "APEAGENT_ALERT_WEBHOOK (500)" in str(reaction.error)
        assert "secret" not in str(reaction.error)
        webhook.told.clear()
        second = doomed.execute_in_process(instance=instance, raise_on_error=False).run_id
        tick(instance, webhook.address, missed.cursor)
    assert [second in told for told in webhook.told] == [True]


def test_a_failed_blocking_check_is_told_with_what_it_found(webhook: Webhook) -> None:
    @dg.asset
    def day() -> None: ...

    @dg.asset_check(asset=day, blocking=True)
    def whole() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, description="2025-01-26: swaps are missing; materialize it again")

    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(instance, webhook.address, None).cursor
        dg.materialize([day, whole], instance=instance, raise_on_error=False)
        tick(instance, webhook.address, cursor)
    (told,) = webhook.told
    first, page = told.split("\n")
    assert first.endswith(" failed. check whole of day failed: 2025-01-26: swaps are missing; materialize it again")
    assert page.startswith(f"{UI}/runs/")


def test_a_check_that_begins_to_warn_is_told_once_and_a_passing_one_never(webhook: Webhook) -> None:
    says = {"passed": True, "description": "well"}

    @dg.asset
    def score() -> None: ...

    @dg.asset_check(asset=score)
    def still_good() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(severity=dg.AssetCheckSeverity.WARN, **says)  # type: ignore[arg-type]

    key = dg.AssetCheckKey(dg.AssetKey("score"), "still_good")
    sensor, cursor = warning_alert(SecretStr(webhook.address), UI, [key]), None
    with dg.DagsterInstance.ephemeral() as instance:
        for passed, why in [(True, "well"), (False, "drift of day 1"), (False, "drift of day 1"), (True, "well")]:
            says.update(passed=passed, description=why)
            assert dg.materialize([score, still_good], instance=instance).success
            cursor = sensor.evaluate_tick(dg.build_sensor_context(instance, cursor=cursor)).cursor
    page = f"{UI}/assets/score?view=checks"
    assert webhook.told == [f"apeagent: check still_good of score warns. drift of day 1\n{page}"]


def test_the_days_of_a_failed_range_and_at_most_five_assets_are_named(webhook: Webhook) -> None:
    def broken(name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
        def asset() -> None:
            raise ValueError("no such luck")

        return asset

    tags = {RANGE_START: "2025-01-21", RANGE_END: "2025-01-23"}
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(instance, webhook.address, None).cursor
        defs = dg.Definitions([broken(f"asset{number}") for number in range(7)])
        defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(f"asset{number}") for number in range(7)],
            tags=tags,
            raise_on_error=False,
        )
        tick(instance, webhook.address, cursor)
    (told,) = webhook.told
    assert "of asset0, asset1, asset2, asset3, asset4 and 2 more (2025-01-21 to 2025-01-23) failed." in told
    assert "no such luck" in told


def test_every_check_that_warns_is_told_freshness_drift_and_a_refused_promotion_too(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, rpc_urls="http://127.0.0.1:9", alert_webhook="http://127.0.0.1:9/hook")
    graph = build_graph(settings)
    kinds = {check.key.to_user_string() for each in graph.definitions.asset_checks for check in each.check_specs}
    blocking = {key.to_user_string() for each in graph.checks for key in each.check_keys}
    assert {
        "service_report:still_good",
        "promoted_adapter:newest_in_service",
        "raw_swaps:one_market",
    } <= kinds - blocking
    (sensor,) = [each for each in graph.definitions.sensors if each.name == "warning_alert"]
    with dg.DagsterInstance.ephemeral() as instance:
        told = sensor.evaluate_tick(dg.build_sensor_context(instance)).skip_message
    assert told == f"0 of {len(kinds - blocking)} checks warn"
