"""Telling somebody that a run failed: one message to a Slack-compatible webhook."""

import dagster as dg
import requests
from pydantic import SecretStr
from tenacity import Retrying, stop_after_attempt, wait_exponential

_TIMEOUT_S = 10.0
_LONGEST_REASON = 500


def failure_alert(webhook: SecretStr) -> dg.SensorDefinition:
    """A sensor that posts job, run and reason of every failed run to ``webhook``; its address is told to nobody."""

    @dg.run_failure_sensor(
        name="failure_alert",
        default_status=dg.DefaultSensorStatus.RUNNING,
        monitor_all_code_locations=True,
        description="Posts failed runs to the webhook of APEAGENT_ALERT_WEBHOOK",
    )
    def alert(context: dg.RunFailureSensorContext) -> None:
        reason = (context.failure_event.message or "no reason was recorded")[:_LONGEST_REASON]
        post(webhook, f"apeagent: run {context.dagster_run.run_id} of {context.dagster_run.job_name} failed. {reason}")

    return alert


def post(webhook: SecretStr, text: str) -> None:
    """Send one message; three attempts.

    Raises:
        RuntimeError: if it could not be delivered; the message does not name the address, which is a secret.
    """
    try:
        for attempt in Retrying(stop=stop_after_attempt(3), wait=wait_exponential(max=4), reraise=True):
            with attempt:
                requests.post(webhook.get_secret_value(), json={"text": text}, timeout=_TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        status = error.response.status_code if error.response is not None else type(error).__name__
        # "from None": the cause repeats the address.
        raise RuntimeError(f"the alert could not be delivered to APEAGENT_ALERT_WEBHOOK ({status})") from None
