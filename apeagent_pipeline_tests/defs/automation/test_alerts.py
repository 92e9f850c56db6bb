"""Somebody is told of a failed run, and nobody of the address that was used."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest
from pydantic import SecretStr

from apeagent_pipeline.defs.automation.alerts import failure_alert, post, warning_alert
from apeagent_pipeline_tests.defs.webhook import Webhook
from apeagent_pipeline_tests.servers import stopped_afterwards


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
    return failure_alert(SecretStr(address)).evaluate_tick(context)


def test_a_failed_run_is_told_with_job_run_and_reason_and_calls_nobody(webhook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(instance, webhook.address, None).cursor
        run_id = doomed.execute_in_process(instance=instance, raise_on_error=False).run_id
        tick(instance, f"{webhook.address}/services/secret", cursor)
    reason = "breaks: no such luck &lt;!channel&gt;\N{REPLACEMENT CHARACTER}[31m"
    assert webhook.told == [f"apeagent: run {run_id} of doomed failed. {reason}"]


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
    assert told.endswith("failed. check whole of day failed: 2025-01-26: swaps are missing; materialize it again")


def test_a_check_that_begins_to_warn_is_told_once_and_a_passing_one_never(webhook: Webhook) -> None:
    says = {"passed": True, "description": "well"}

    @dg.asset
    def score() -> None: ...

    @dg.asset_check(asset=score)
    def still_good() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(severity=dg.AssetCheckSeverity.WARN, **says)  # type: ignore[arg-type]

    key = dg.AssetCheckKey(dg.AssetKey("score"), "still_good")
    sensor, cursor = warning_alert(SecretStr(webhook.address), [key]), None
    with dg.DagsterInstance.ephemeral() as instance:
        for passed, why in [(True, "well"), (False, "drift of day 1"), (False, "drift of day 1"), (True, "well")]:
            says.update(passed=passed, description=why)
            assert dg.materialize([score, still_good], instance=instance).success
            cursor = sensor.evaluate_tick(dg.build_sensor_context(instance, cursor=cursor)).cursor
    assert webhook.told == ["apeagent: check score:still_good warns. drift of day 1"]
