"""Alerts: one message to a Slack-compatible webhook for every failed run, and for every check that begins to warn."""

import json
from collections.abc import Sequence
from html import escape

import dagster as dg
import requests
from pydantic import SecretStr
from tenacity import Retrying, stop_after_attempt, wait_exponential

from apeagent_pipeline.defs.partitions import RANGE_END, RANGE_START
from apeagent_pipeline.reporting.foreign_text import printable

_TIMEOUT_S = 3.0
"""Dagster stops a sensor after a minute; five alerts with three attempts each must fit in."""
_LONGEST_REASON, _LONGEST_WARNING = 500, 1_500
_ASSETS_SHOWN = 5
_CHECK_FAILED = "blocking asset check"
"""Part of Dagster's message for a step that only counts the checks that failed."""


def failure_alert(webhook: SecretStr, ui_url: str) -> dg.SensorDefinition:
    """A sensor that posts assets, reason and page of every failed run to ``webhook``; its address is never shown.

    Args:
        webhook: Where to post.
        ui_url: Where the UI is.
    """

    @dg.run_failure_sensor(
        name="failure_alert",
        default_status=dg.DefaultSensorStatus.RUNNING,
        monitor_all_code_locations=True,
        description="Posts failed runs to the webhook of APEAGENT_ALERT_WEBHOOK",
    )
    def alert(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        steps = [(event.step_key, cause_of(event)) for event in context.get_step_failure_events()]
        causes = [f"{step}: {cause}" for step, cause in steps if _CHECK_FAILED not in cause]
        causes = [*_failed_checks(context.instance, run.run_id), *causes]
        causes = causes or [f"{step}: {cause}" for step, cause in steps]
        reason = "; ".join(causes) or context.failure_event.message or "no reason was recorded"
        page = f"{ui_url.rstrip('/')}/runs/{run.run_id}"
        post(webhook, f"apeagent: run {run.run_id} of {_what(run)} failed. {reason[:_LONGEST_REASON]}\n{page}")

    return alert


def _what(run: dg.DagsterRun) -> str:
    """The assets and days that a run was asked for; the name of its job if it was asked for all of the job."""
    names = sorted(key.to_user_string() for key in run.asset_selection or [])
    shown = ", ".join(names[:_ASSETS_SHOWN]) or run.job_name
    more = f" and {len(names) - _ASSETS_SHOWN} more" if len(names) > _ASSETS_SHOWN else ""
    first, last = run.tags.get(RANGE_START, ""), run.tags.get(RANGE_END, "")
    day = run.tags.get("dagster/partition", first)
    days = f"{first} to {last}" if first != last else day
    return f"{shown}{more}{f' ({days})' if days else ''}"


def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """The blocking checks that failed in a run, each with what it found: Dagster's own error only counts them."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]
    return [
        f"check {each.check_name} of {each.asset_key.to_user_string()} failed: {each.description}"
        for each in found
        if not each.passed and each.blocking
    ]


def warning_alert(webhook: SecretStr, ui_url: str, checks: Sequence[dg.AssetCheckKey]) -> dg.SensorDefinition:
    """A sensor that posts what checks warn about: once for each new text, and not again when a check passes.

    Args:
        webhook: Where to post.
        ui_url: Where the UI is.
        checks: The checks to look at.
    """

    @dg.sensor(
        name="warning_alert",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Posts the warnings of checks to the webhook of APEAGENT_ALERT_WEBHOOK",
    )
    def alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        told = json.loads(context.cursor or "{}")
        warned = {key.to_user_string(): _warning(context.instance, key) for key in checks}
        for name, why in warned.items():
            if why and told.get(name) != why:
                asset, _, check = name.rpartition(":")
                page = f"{ui_url.rstrip('/')}/assets/{asset}?view=checks"
                post(webhook, f"apeagent: check {check} of {asset} warns. {why[:_LONGEST_WARNING]}\n{page}")
        context.update_cursor(json.dumps(warned))
        return dg.SkipReason(f"{sum(map(bool, warned.values()))} of {len(checks)} checks warn")

    return alert


def _warning(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> str:
    """What the last evaluation of a check warned about; empty if it passed or never ran."""
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=1):
        event = record.event.dagster_event if record.event else None
        if event and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            return "" if evaluation.passed else evaluation.description or "no reason was given"
    return ""


def post(webhook: SecretStr, text: str) -> None:
    """Send one message in up to three attempts. Links and mentions in it are escaped.

    Raises:
        RuntimeError: if it could not be delivered; the message does not name the address, which is a secret.
    """
    try:
        for attempt in Retrying(stop=stop_after_attempt(3), wait=wait_exponential(max=1), reraise=True):
            with attempt:
                _send(webhook.get_secret_value(), {"text": escape(printable(text), quote=False)})
    except requests.RequestException as error:
        status = error.response.status_code if error.response is not None else type(error).__name__
        # "from None": the cause repeats the address.
        raise RuntimeError(f"the alert could not be delivered to APEAGENT_ALERT_WEBHOOK ({status})") from None


def _send(address: str, message: dict[str, str]) -> None:
    # Neither the message nor the address goes where a redirect points; what else is answered is not read.
    with requests.post(address, json=message, timeout=_TIMEOUT_S, allow_redirects=False, stream=True) as answer:
        answer.raise_for_status()
        if answer.is_redirect:
            raise requests.HTTPError(response=answer)


def cause_of(event: dg.DagsterEvent) -> str:
    """The innermost message of a step's failure, as the domain code raised it."""
    error = event.step_failure_data.error
    while error and error.cause:
        error = error.cause
    if error is None:
        return "failed"
    # Dagster puts the class before the message; who reads this wants the message.
    _, _, message = error.message.strip().partition(": ")
    return message or error.message.strip()
