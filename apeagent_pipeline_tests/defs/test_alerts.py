"""Somebody is told of a failed run, and nobody of the address that was used."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import dagster as dg
import pytest
from pydantic import SecretStr

from apeagent_pipeline.defs.alerts import failure_alert, post


@pytest.fixture
def webhook():
    told: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500 if "broken" in self.path else 302 if "moved" in self.path else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()
    server.server_close()


def test_a_failed_run_is_told_with_job_run_and_reason(webhook) -> None:
    address, told = webhook

    @dg.op
    def breaks() -> None:
        raise ValueError("no such luck")

    @dg.job
    def doomed() -> None:
        breaks()

    with dg.DagsterInstance.ephemeral() as instance:
        result = doomed.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            "failure_alert", result.get_run_failure_event(), instance, result.dagster_run
        ).for_run_failure()
        failure_alert(SecretStr(f"{address}/services/secret"))(context)
    assert result.run_id.encode() in told[0]
    assert b"doomed" in told[0]
    assert b"breaks: no such luck" in told[0]


def test_an_alert_that_cannot_be_delivered_keeps_the_address_secret(webhook, monkeypatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    address, told = webhook
    with pytest.raises(RuntimeError, match=r"could not be delivered to APEAGENT_ALERT_WEBHOOK \(500\)") as failed:
        post(SecretStr(f"{address}/broken/secret"), "hello")
    assert len(told) == 3
    assert failed.value.__suppress_context__
    assert "secret" not in str(failed.value)


def test_an_alert_goes_where_it_was_sent_and_nowhere_else(webhook, monkeypatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    address, told = webhook
    with pytest.raises(RuntimeError, match=r"\(302\)"):
        post(SecretStr(f"{address}/moved/secret"), "hello")
    assert told == [b'{"text": "hello"}'] * 3


def test_nothing_in_an_alert_is_a_link_or_calls_anybody(webhook) -> None:
    address, told = webhook
    post(SecretStr(address), "<!channel> & \x1b[31m")
    assert json.loads(told[0]) == {"text": "&lt;!channel&gt; &amp; \N{REPLACEMENT CHARACTER}[31m"}
