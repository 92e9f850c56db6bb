"""The devnet: is it Base's pool, and what happens where it cannot be had."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apeagent_pipeline.amm.pool_id import pool_id
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.days import FIRST_DAY, day_bounds, first_block_of
from apeagent_pipeline.chain.devnet import Devnet, DevnetError, DevnetUnavailableError, packages, start_devnet
from apeagent_pipeline.chain.devnet.devnet import ROUTERS
from apeagent_pipeline.chain.devnet.packages import V4_CORE
from apeagent_pipeline.chain.devnet.traffic import Traffic


@pytest.fixture(scope="module")
def fresh(devnet_cache: Path) -> Iterator[Devnet]:
    with start_devnet(devnet_cache) as running:
        yield running


def test_chain_contracts_and_tokens_are_those_of_base(fresh: Devnet) -> None:
    assert int(fresh.rpc("eth_chainId"), 16) == 8453
    assert fresh.pool == BASE_ETH_USDC
    for address in (fresh.pool.pool_manager, fresh.pool.token1.address, *ROUTERS):
        assert len(fresh.rpc("eth_getCode", address, "latest")) > 2_000
    contract = fresh.web3.eth.contract(
        address=fresh.web3.to_checksum_address(fresh.pool.token1.address),
        abi=[
            {"type": "function", "name": name, "inputs": [], "outputs": [{"type": kind}], "stateMutability": "view"}
            for name, kind in (("symbol", "string"), ("decimals", "uint8"))
        ],
    )
    assert contract.functions.symbol().call() == "USDC"
    assert contract.functions.decimals().call() == 6


def test_the_pool_id_of_the_contract_is_that_of_base(fresh: Devnet) -> None:
    swap = next(log for log in fresh.swap(True, -(10**15))["logs"] if len(log["topics"]) == 3)
    assert swap["topics"][1] == BASE_ETH_USDC.pool_id == pool_id(BASE_ETH_USDC.key)
    assert swap["address"] == BASE_ETH_USDC.pool_manager.lower()


def test_block_numbers_and_timestamps_are_those_of_base(fresh: Devnet) -> None:
    fresh.mine(7)
    head = fresh.head()
    for number in (head, head - 3):
        block = fresh.rpc("eth_getBlockByNumber", hex(number), False)
        assert int(block["timestamp"], 16) == 1_686_789_347 + 2 * number
    start, _ = day_bounds(FIRST_DAY)
    assert head < first_block_of(FIRST_DAY)
    assert 1_686_789_347 + 2 * (first_block_of(FIRST_DAY) - 1) < start <= 1_686_789_347 + 2 * first_block_of(FIRST_DAY)


def test_logs_carry_their_time_and_finality_lags_behind_the_head(fresh: Devnet) -> None:
    receipt = fresh.swap(False, -(10**9), router=1, account=2)
    query = {"fromBlock": receipt["blockNumber"], "toBlock": receipt["blockNumber"]}
    for log in fresh.rpc("eth_getLogs", query):
        assert int(log["blockTimestamp"], 16) == 1_686_789_347 + 2 * int(log["blockNumber"], 16)
    fresh.mine(64)
    assert int(fresh.rpc("eth_getBlockByNumber", "finalized", False)["number"], 16) == fresh.head() - 64


def test_a_swap_that_reverts_is_told(fresh: Devnet) -> None:
    with pytest.raises(DevnetError, match="reverted"):
        fresh.swap(True, 0)


@pytest.mark.slow
def test_traffic_is_the_same_for_a_seed_to_the_last_hash_and_its_days_are_final(devnet_cache: Path) -> None:
    def logs() -> list[dict[str, Any]]:
        with start_devnet(devnet_cache) as chain:
            told: list[tuple[int, int]] = []
            assert chain.trade(1, 120, 7, lambda done, total, **_: told.append((done, total))) == [FIRST_DAY]
            assert chain.days == [FIRST_DAY]
            assert told[-1] == (120, 120)
            _, end = day_bounds(FIRST_DAY)
            assert int(chain.rpc("eth_getBlockByNumber", "finalized", False)["timestamp"], 16) >= end
            query = {"address": chain.pool.pool_manager, "fromBlock": "0x0"}
            found: list[dict[str, Any]] = chain.rpc("eth_getLogs", query)
            return found

    assert logs() == logs()


def test_another_seed_is_another_crowd() -> None:
    days = [list(Traffic(seed, 5, 10**18, 10**6).day(100)) for seed in (7, 7, 8)]
    assert days[0] == days[1] != days[2]


def test_with_kept_states_blocks_can_be_replaced(devnet_cache: Path) -> None:
    with start_devnet(devnet_cache, kept_states=10) as chain:
        chain.swap(True, -(10**15))
        before = chain.rpc("eth_getBlockByNumber", "latest", False)
        chain.rpc("anvil_reorg", 3, [])
        after = chain.rpc("eth_getBlockByNumber", "latest", False)
        assert after["number"] == before["number"]
        assert after["hash"] != before["hash"]


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm whose registry gives another file under the name that was asked for."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text('#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\necho other > "$2/package.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=os.pathsep)
    return npm


def test_a_file_with_another_hash_is_refused_and_leaves_nothing_behind(tmp_path: Path, fake_npm: Path) -> None:
    with pytest.raises(DevnetError, match="do not use it"):
        packages.fetch(V4_CORE, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_npm_that_fails_is_quoted(tmp_path: Path, fake_npm: Path) -> None:
    fake_npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    with pytest.raises(DevnetUnavailableError, match=r"v4-core@1\.0\.2(.|\n)*npm error code E404"):
        packages.fetch(V4_CORE, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_npm_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DevnetUnavailableError, match=r"apeagent_pipeline\[devnet\]"):
        packages.fetch(V4_CORE, tmp_path / "cache")


def test_what_is_there_is_used_without_npm(devnet_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert packages.anvil_program(devnet_cache).is_file()
    assert (packages.fetch(V4_CORE, devnet_cache) / packages.POOL_MANAGER).is_file()


def test_a_machine_without_a_pinned_anvil_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DevnetUnavailableError, match="foundryup --install"):
        packages.anvil_program(tmp_path)


def test_a_taken_port_is_told_with_what_anvil_said(devnet_cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DevnetError, match="in use"), start_devnet(devnet_cache, port=port):
            pass


def test_anvil_ends_with_the_process_that_started_it_even_if_that_is_killed(devnet_cache: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from apeagent_pipeline.chain.devnet import start_devnet\n"
        f"with start_devnet(Path({str(devnet_cache)!r})) as chain: print(chain.url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().rsplit(":", 1)[1])
        socket.create_connection(("127.0.0.1", port)).close()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.05)
    pytest.fail("Anvil still listens")


@pytest.mark.slow
def test_the_command_runs_a_chain_and_the_line_it_prints_reads_it(devnet_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / "cache").mkdir(parents=True)
    (tmp_path / "home" / "cache" / "devnet").symlink_to(devnet_cache)
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "APEAGENT_HOME": str(tmp_path / "home"),
        "COLUMNS": "200",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["apeagent", "devnet", "--port", "0", "--from", "2025-02-03", "--days", "1", "--swaps", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as running:
        try:
            assert running.stdout is not None
            line = next(line for line in running.stdout if "apeagent sync" in line).strip()
            assert line.endswith("apeagent sync --from 2025-02-03 --to 2025-02-03")
            read = subprocess.run(
                line, shell=True, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            running.send_signal(signal.SIGINT)
            rest, _ = running.communicate(timeout=120)
        finally:
            running.kill()
    assert read.returncode == 0, read.stdout + read.stderr
    assert running.returncode == 0
    assert rest.strip() == "Stopped."
    assert pl.read_parquet(tmp_path / "home" / "storage" / "raw_swaps" / "2025-02-03.parquet").height == 60
