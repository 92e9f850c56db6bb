"""A true day of the devnet, and homes in which it is read again through a faulty node.

Everything real: settings, graph, storage, HTTP, and the node behind the proxy.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.chain import rpc
from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline_tests.chain.faults.true_day import Chain, materialize, settings


@pytest.fixture(scope="session")
def chain(devnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    home, day = tmp_path_factory.mktemp("clean"), str(devnet.days[0])
    materialize(home, day, devnet.url)
    path = home / "storage" / "raw_swaps" / f"{day}.parquet"
    return Chain(devnet.url, day, path.read_bytes(), pl.read_parquet(path))


@pytest.fixture
def home(chain: Chain, tmp_path: Path) -> Path:
    """A home with an older file of the day that lacks a swap, so that a file written anew can be told from it."""
    store = build_graph(settings(tmp_path, chain.url)).runtime.store
    store.publish_table(chain.swaps.head(-1), asset="raw_swaps", partition=chain.day, code_version="0.older")
    return tmp_path


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Backoff without the waiting, except where time is the fault."""
    if "real_waits" not in request.fixturenames:
        monkeypatch.setattr(rpc, "RpcClient", partial(rpc.RpcClient, sleep=lambda seconds: time.sleep(0.001)))


@pytest.fixture
def real_waits() -> None:
    """The client really waits."""
