"""No part of a node's URL in anything that a user may show, send or store, with every logger on its lowest level."""

import base64
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._serdes import serialize_value
from pydantic import SecretStr

from apeagent_pipeline.chain import rpc
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.settings import Settings, SettingsError, load_settings
from apeagent_pipeline_tests.chain.conftest import Node
from apeagent_pipeline_tests.chain.faulty_proxy import (
    Ask,
    Fault,
    FaultyProxy,
    Reply,
    changed_logs,
    hangs_up,
    html,
    http_error,
    running,
)
from apeagent_pipeline_tests.defs.postgres_server import PASSWORD, QUOTED_PASSWORD, dump, postgres_server
from apeagent_pipeline_tests.defs.webhook import Webhook
from apeagent_pipeline_tests.servers import stopped_afterwards

DAY = "2025-01-21"
# The command with all of its loggers on DEBUG, the root handler prints what reaches it, and no waiting in backoffs.
TALKATIVE = """
import functools, logging
logging.basicConfig(level=logging.DEBUG)
import dagster, requests, urllib3, web3
for name in list(logging.root.manager.loggerDict):
    logging.getLogger(name).setLevel(logging.DEBUG)
from apeagent_pipeline.chain import rpc
rpc.RpcClient = functools.partial(rpc.RpcClient, sleep=lambda seconds: None)
from apeagent_pipeline.cli import main
main()
"""
# Doctor would fetch a model otherwise.
NO_MODEL = {"APEAGENT_STUDENT": "./no-model"}


@pytest.fixture
def proxy(node: Node) -> Iterator[FaultyProxy]:
    with running(f"http://127.0.0.1:{node.server.server_port}") as proxy:
        yield proxy


def forms(proxy: FaultyProxy) -> dict[str, str]:
    """Every secret of the URL, as it is, as it stands in a URL, and as HTTP sends a login."""
    secret = proxy.secrets
    login = f"{secret['user']}:{secret['password']}"
    return {
        **secret,
        "quoted password": proxy.url.split(":")[2].split("@")[0],
        "login in base64": base64.b64encode(login.encode()).decode(),
    }


def assert_free_of(proxy: FaultyProxy, content: str | bytes, where: object) -> None:
    data = content.encode() if isinstance(content, str) else content
    looked_for = {**forms(proxy), "a piece of a secret": "s3cr3t"}
    shown = {part: data.find(form.encode()) for part, form in looked_for.items()}
    found = {part: data[max(at - 200, 0) : at + 60] for part, at in shown.items() if at >= 0}
    assert not found, f"{where} shows {found}"


def assert_files_free_of(proxy: FaultyProxy, folder: Path) -> None:
    """Every file as bytes, SQLite's included, and Parquet also uncompressed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert_free_of(proxy, str(path), "a path")
        assert_free_of(proxy, path.read_bytes(), path)
        if path.suffix == ".parquet":
            assert_free_of(proxy, pl.read_parquet(path).cast(pl.String).write_csv(), path)


def echoes(proxy: FaultyProxy, status: int) -> Fault:
    """A server that repeats the URL, whole and in parts, in a body and a redirect."""
    text = f"bad key {proxy.url} {' '.join(forms(proxy).values())}"
    return http_error(status, text.encode(), {"Location": proxy.url, "Server": proxy.secrets["key"]})


def echoes_in_errors(proxy: FaultyProxy) -> Fault:
    def fault(payload: Any, ask: Ask) -> Reply:
        message = f"no such project: {' '.join(forms(proxy).values())} {proxy.url}"
        calls = payload if isinstance(payload, list) else [payload]
        answers = [
            {"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32601, "message": message}} for call in calls
        ]
        return Reply(answers if isinstance(payload, list) else answers[0])

    return fault


def echoes_in_logs(proxy: FaultyProxy) -> Fault:
    return changed_logs(lambda logs: [{**logs[0], "data": proxy.url, "blockHash": proxy.url}, *logs[1:]])


FAULTS: dict[str, Callable[[FaultyProxy], Fault]] = {
    "HTTP 401": lambda proxy: echoes(proxy, 401),
    "HTTP 500": lambda proxy: echoes(proxy, 500),
    "HTTP 429": lambda proxy: echoes(proxy, 429),
    "a redirect": lambda proxy: echoes(proxy, 307),
    "HTTP 200 with text": lambda proxy: echoes(proxy, 200),
    "a JSON-RPC error": echoes_in_errors,
    "a log": echoes_in_logs,
    "no answer": lambda proxy: hangs_up(),
    "HTML": lambda proxy: html(),
}


def apeagent(home: Path, arguments: list[str], **settings: str) -> tuple[int, str]:
    environment = {**os.environ, "APEAGENT_HOME": str(home), "COLUMNS": "1000", **settings}
    done = subprocess.run(
        [sys.executable, "-c", TALKATIVE, *arguments],
        env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_no_command_shows_or_stores_a_part_of_the_url(proxy: FaultyProxy, tmp_path: Path) -> None:
    sync = ["sync", "--from", DAY, "--to", DAY]
    with running(proxy.upstream.geturl()) as refused:
        refused.secrets = proxy.secrets
        refused.close()
        urls = f"{refused.url},{proxy.url}"
        for arguments, settings, told in [
            (["config"], {"APEAGENT_RPC_URLS": urls}, "APEAGENT_RPC_URLS"),
            (["config"], {"APEAGENT_RPC_URLS": urls, "APEAGENT_SEED": "none"}, "APEAGENT_SEED"),
            (["doctor"], {"APEAGENT_RPC_URLS": f"ftp://{urls.removeprefix('http://')}", **NO_MODEL}, "entry 1"),
            (["doctor"], {"APEAGENT_RPC_URLS": refused.url, **NO_MODEL}, "no answer"),
            (sync, {"APEAGENT_RPC_URLS": urls}, ""),
        ]:
            code, output = apeagent(tmp_path, arguments, **settings)
            assert told in output, output
            assert "Traceback" not in output
            assert_free_of(proxy, output, arguments)
    assert code == 0, output
    assert (tmp_path / "storage" / "raw_swaps" / f"{DAY}.parquet").exists()
    proxy.faults = [echoes(proxy, 401)]
    (tmp_path / "storage" / "raw_swaps" / f"{DAY}.manifest.json").unlink()
    code, output = apeagent(tmp_path, sync, APEAGENT_RPC_URLS=proxy.url)
    assert code != 0
    assert "HTTP 401" in output
    assert_free_of(proxy, output, "a failed sync")
    assert list(tmp_path.rglob("*.db")), "the event log is among the files"
    assert_files_free_of(proxy, tmp_path)


@pytest.mark.parametrize("name", FAULTS)
def test_no_error_event_or_debug_record_shows_a_part_of_the_url(
    name: str, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    for logger in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, logger)
    monkeypatch.setattr(rpc, "RpcClient", partial(rpc.RpcClient, sleep=lambda seconds: None))
    proxy.faults = [FAULTS[name](proxy)]
    graph = build_graph(Settings(home=tmp_path, rpc_urls=proxy.url))  # type: ignore[arg-type]
    job = graph.definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("raw_swaps")], partition_key=DAY, raise_on_error=False
        )
        events = [serialize_value(event) for event in instance.all_logs(result.run_id)]
    assert not result.success
    assert_free_of(proxy, "\n".join(events), "Dagster's event log")
    with pytest.raises(ChainError) as caught:
        graph.runtime.source.days()
        graph.runtime.source.read_day(date.fromisoformat(DAY))
    for text in texts_of(caught.value):
        assert_free_of(proxy, text, "an exception")
    assert caplog.records
    assert_free_of(proxy, caplog.text, "a logger")


def test_neither_a_dump_of_the_database_nor_an_alert_shows_a_secret_of_any_setting(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")  # open_instance sets both
    monkeypatch.setenv("APEAGENT_POSTGRES_URL", "")
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    with postgres_server() as database:
        for webhook in stopped_afterwards(Webhook):
            server = webhook()
            planted = {
                "postgres_url": database,
                "rpc_urls": proxy.url,
                "teacher_api_key": "s3cr3t-key",
                "teacher_base_url": "https://s3cr3t:s3cr3t@teacher.example/s3cr3t/v1?key=s3cr3t",
                "ray_address": "http://s3cr3t:s3cr3t@127.0.0.1:8265/s3cr3t",
                "alert_webhook": f"{server.address}/s3cr3t",
            }
            secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
            assert secret <= planted.keys(), "another setting holds a secret: plant one there too"
            settings = Settings(home=tmp_path, teacher="openai", **planted)  # type: ignore[arg-type]
            definitions = build_graph(settings).definitions
            job = definitions.resolve_implicit_global_asset_job_def()
            alerts = next(each for each in definitions.sensors or [] if each.name == "failure_alert")
            swaps = [dg.AssetKey("raw_swaps")]
            with open_instance(settings) as instance:
                asked = {"cursor": None, "repository_name": "__repository__"}
                asked["cursor"] = alerts.evaluate_tick(dg.build_sensor_context(instance, **asked)).cursor
                for fault in ([], [echoes(proxy, 401)], [echoes_in_errors(proxy)]):
                    proxy.faults = fault
                    job.execute_in_process(
                        instance=instance, asset_selection=swaps, partition_key=DAY, raise_on_error=False
                    )
                alerts.evaluate_tick(dg.build_sensor_context(instance, **asked))
                found = dump(database)
        assert len(server.told) == 2
        assert "raw_swaps: RPC endpoint 1 of 1 answered HTTP 401" in server.told[0], server.told
        assert b"raw_swaps" in found
        for where, content in {"an alert": "".join(server.told).encode(), "the dump": found}.items():
            assert_free_of(proxy, content, where)
            assert PASSWORD.encode() not in content, where
            assert QUOTED_PASSWORD.encode() not in content, where
        assert_files_free_of(proxy, tmp_path)


def texts_of(error: BaseException | None) -> Iterator[str]:
    """An exception in all ways in which one is shown, and those from which it came."""
    if error is not None:
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        yield "".join(traceback.format_exception(error))
        yield from texts_of(error.__cause__)
        yield from texts_of(error.__context__)


def test_what_holds_the_url_does_not_show_it(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = rpc.MaskedHTTPProvider(SecretStr(proxy.url), "RPC endpoint 1")
    settings = Settings(rpc_urls=proxy.url)  # type: ignore[arg-type]
    for thing in (provider, settings, settings.rpc_urls, settings.model_dump(), settings.model_dump_json()):
        for text in (str(thing), repr(thing), f"{thing}"):
            assert_free_of(proxy, text, type(thing))
    monkeypatch.setenv("APEAGENT_RPC_URLS", proxy.url)
    monkeypatch.setenv("APEAGENT_SEED", "many")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for text in texts_of(caught.value):
        assert_free_of(proxy, text, "an exception")


def test_dagster_stores_no_part_of_the_url_with_a_day(proxy: FaultyProxy, tmp_path: Path) -> None:
    graph = build_graph(Settings(home=tmp_path, rpc_urls=proxy.url, rpc_requests_per_second=0))  # type: ignore[arg-type]
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        result = graph.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("raw_swaps")], partition_key=DAY
        )
        (made,) = result.asset_materializations_for_node("raw_swaps")
        assert_free_of(proxy, f"{made!r} {serialize_value(made)}", "metadata")
    assert_free_of(proxy, graph.runtime.source.fingerprint(), "the fingerprint")
    assert_files_free_of(proxy, tmp_path)
