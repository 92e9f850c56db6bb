"""What it costs to collect a pool's swaps: this collector, cryo and a plain web3 script, on the same node in one run.

Run it with ``python -m apeagent_pipeline_tests.benchmarks.collecting``. cryo comes from ``pip install cryo==0.3.2``;
where that is an environment of its own, ``--cryo`` names its interpreter. The node is the devnet; a proxy in front of
it counts everybody's requests alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from eth_abi import decode as abi_decode
from rich.console import Console
from rich.table import Table
from web3 import Web3

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.artifacts.manifest import parquet_bytes
from apeagent_pipeline.chain.days import FIRST_DAY, day_of, first_block_of
from apeagent_pipeline.chain.devnet import Devnet, start_devnet
from apeagent_pipeline.chain.events import SWAP_KEY, SWAP_TOPIC, check_raw_swaps, decode_swap_logs
from apeagent_pipeline_tests.benchmarks import contenders
from apeagent_pipeline_tests.chain.faulty_proxy import FaultyProxy, running

DAYS = 3
RUNS = 5
OURS, UNPROVEN = "this collector", "this collector without proofs"
EACH, TOGETHER = "web3, calls for each event", "decode, validate, write"
VALUE_TYPES = ["int128", "int128", "uint160", "uint128", "int24", "uint24"]
VALUES = ["sender", "amount0", "amount1", "sqrt_price_x96", "liquidity", "tick", "fee"]
COLUMNS = [*SWAP_KEY, "transaction_hash", *VALUES, "timestamp", "tx_from"]

Found = Callable[[Path], pl.DataFrame]
"""Reads what a contender wrote, as COLUMNS."""

console = Console(width=150)


class Result(NamedTuple):
    """What one way to read cost and found."""

    requests: int
    calls: int
    wall: float
    reading: float
    cpu: float
    swaps: pl.DataFrame
    shows_key: bool

    def cells(self, truth: pl.DataFrame) -> list[str]:
        """Of the first table."""
        known = [name for name in COLUMNS if self.swaps[name].null_count() < self.swaps.height]
        exact = self.swaps.sort(SWAP_KEY).select(known).equals(truth.select(known))
        figures = [f"{self.requests:,}", f"{self.calls:,}"]
        figures += [f"{seconds:.2f}" for seconds in (self.wall, self.reading, self.cpu)]
        marks = [exact, "timestamp" in known, "tx_from" in known, self.shows_key]
        return [*figures, f"{self.swaps.height:,}", *("yes" if mark else "no" for mark in marks)]


class Reading(NamedTuple):
    """A way to read the days of the devnet."""

    name: str
    contender: str
    found: Found
    options: dict[str, Any]
    runs: int


def measured(reading: Reading, proxy: FaultyProxy, python: str) -> Result:
    """Run it so many times, each time in a fresh process; counts of the last run, the least of each time."""
    times = []
    for _ in range(reading.runs):
        proxy.requests = 0
        proxy.calls.clear()
        with tempfile.TemporaryDirectory() as folder:
            arguments = {"url": proxy.url, "folder": folder, **reading.options}
            begun = time.perf_counter()
            spent, output = run_contender(python, reading.contender, arguments)
            times.append((time.perf_counter() - begun, spent["reading"], spent["cpu"]))
            swaps = reading.found(Path(folder))
    wall, seconds, cpu = map(min, zip(*times, strict=True))
    shows_key = any(secret in output for secret in proxy.secrets.values())
    return Result(proxy.requests, proxy.calls.total(), wall, seconds, cpu, swaps, shows_key)


def run_contender(python: str, name: str, arguments: dict[str, Any]) -> tuple[dict[str, float], str]:
    """A contender's own figures, and all it printed.

    Raises:
        RuntimeError: if it failed.
    """
    command = [python, contenders.__file__, name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def found_by_collector(folder: Path) -> pl.DataFrame:
    """From its daily tables."""
    swaps = pl.read_parquet(folder / "*.parquet")
    return swaps.with_columns(timestamp=pl.col("block_timestamp").dt.epoch("s"), tick="tick", fee="fee").select(
        pl.col(SWAP_KEY), "transaction_hash", pl.col(VALUES).cast(pl.String()), "timestamp", "tx_from"
    )


def found_by_cryo(folder: Path) -> pl.DataFrame:
    """From its tables of logs; it leaves decoding to the reader."""
    logs = pl.read_parquet(folder / "*.parquet").select(*SWAP_KEY, "transaction_hash", "topic2", "data")
    return table([(*row[:3], *decoded(*row[3:]), None, None) for row in logs.iter_rows()])


def found_by_script(folder: Path) -> pl.DataFrame:
    """From its lines of JSON."""
    rows = [json.loads(line) for line in (folder / "swaps.jsonl").read_text().splitlines()]
    names = [*SWAP_KEY, "transaction_hash", *(each["name"] for each in contenders.ABI[0]["inputs"][1:])]
    names += ["timestamp", "tx_from"]
    return table([tuple(row.get(name) for name in names) for row in rows]).with_columns(
        pl.col("sender", "tx_from").str.to_lowercase()
    )


def decoded(topic2: str, data: str) -> tuple[str, ...]:
    """Sender and the six values of a Swap event by the ABI library, as decimal strings."""
    return "0x" + topic2[-40:], *map(str, abi_decode(VALUE_TYPES, bytes.fromhex(data[2:])))


def table(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows of COLUMNS."""
    integers = {*SWAP_KEY, "timestamp"}
    schema = {name: pl.Int64() if name in integers else pl.String() for name in COLUMNS}
    return pl.DataFrame(rows, schema=schema, orient="row")


def receipts(devnet: Devnet, first: int, last: int) -> tuple[list[dict[str, Any]], pl.DataFrame]:
    """The pool's logs of some blocks, and the truth about them from receipts and headers, which nobody else reads."""
    query = {"address": devnet.pool.pool_manager, "topics": [SWAP_TOPIC, devnet.pool.pool_id]}
    logs = devnet.rpc("eth_getLogs", query | {"fromBlock": hex(first), "toBlock": hex(last)})
    rows = []
    for transaction in dict.fromkeys(log["transactionHash"] for log in logs):
        receipt = devnet.rpc("eth_getTransactionReceipt", transaction)
        header = devnet.rpc("eth_getBlockByNumber", receipt["blockNumber"], False)
        for log in receipt["logs"]:
            if log["topics"][:2] == query["topics"]:
                place = int(log["blockNumber"], 16), int(log["logIndex"], 16), transaction
                values = decoded(log["topics"][2], log["data"])
                rows.append((*place, *values, int(header["timestamp"], 16), receipt["from"].lower()))
    return logs, table(rows).sort(SWAP_KEY)


def compare(devnet: Devnet, cryo: str | None, first: int, last: int, truth: pl.DataFrame) -> dict[str, Result]:
    """Everybody reads the same days; prints the table."""
    days = [str(day) for day in devnet.days]
    blocks_a_day = (last - first + 1) // len(days)
    ours: dict[str, Any] = {"days": days, "rate": 0.0}
    theirs = {"first": first, "last": last, "topic": SWAP_TOPIC}
    # One of its chunks a day, as we make one file a day; it never asks across the border of two chunks.
    daily = theirs | {"chunk_size": blocks_a_day}
    script = theirs | {"range_blocks": 1_000}

    def reading(name: str, contender: str, found: Found, options: dict[str, Any], runs: int = 1) -> Reading:
        return Reading(name, contender, found, options | {"pool": devnet.pool.model_dump()}, runs)

    readings = []
    for blocks in (10_000, 1_000):
        ranges, inner = ours | {"range_blocks": blocks}, daily | {"inner_request_size": blocks}
        readings += [
            reading(f"{OURS}, {blocks:,} blocks", "collector", found_by_collector, ranges, RUNS),
            reading(
                f"{UNPROVEN}, {blocks:,} blocks", "collector", found_by_collector, ranges | {"proofs": False}, RUNS
            ),
            reading(f"cryo, {blocks:,} blocks", "cryo", found_by_cryo, inner, RUNS),
        ]
    senders = ours | {"range_blocks": 10_000, "transactions": True}
    readings += [
        reading(f"{OURS}, 10,000 blocks, tx senders", "collector", found_by_collector, senders, RUNS),
        reading(f"{OURS}, defaults (25 calls/s)", "collector", found_by_collector, ours | {"rate": 25.0}),
        reading("cryo, defaults", "cryo", found_by_cryo, theirs),
        reading("web3 loop, 1,000 blocks", "web3_loop", found_by_script, script | {"each": False}, RUNS),
        reading(EACH, "web3_loop", found_by_script, script | {"each": True}),
    ]
    names = "what|requests|calls|wall s|reading s|CPU s|swaps|exact|time|tx from|shows key"
    shown = Table(
        *names.split("|"),
        title=f"{truth.height:,} swaps of {len(days)} days, {last - first + 1:,} blocks; least times of {RUNS} runs",
        caption="wall: of a fresh process; reading: without its imports. Defaults and calls for each event: one run.",
    )
    results = {}
    with running(devnet.url) as proxy:
        for each in readings:
            python = cryo if each.contender == "cryo" else sys.executable
            if python is None:
                shown.add_row(each.name, "not installed")
                continue
            results[each.name] = measured(each, proxy, python)
            shown.add_row(each.name, *results[each.name].cells(truth))
    console.print(shown)
    return results


def cpu_microseconds(work: Callable[[], object], swaps: int, runs: int = 7) -> float:
    """Least CPU time of this process, all threads together, for one swap."""
    times = []
    for _ in range(runs):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times) / swaps * 1e6


def decode(devnet: Devnet, logs: list[dict[str, Any]]) -> float:
    """Decode, validate and write the logs day by day, beside libraries that decode one by one; prints the table.

    Returns:
        CPU microseconds a swap, all together.
    """
    days: dict[date, list[dict[str, Any]]] = {}
    for log in logs:
        days.setdefault(day_of(int(log["blockTimestamp"], 16)), []).append(log)
    answers = [json.dumps(each) for each in days.values()]
    decoded_days = {day: decode_swap_logs(each, devnet.pool) for day, each in days.items()}
    swaps = {day: each.unique(maintain_order=True).sort(SWAP_KEY) for day, each in decoded_days.items()}

    def decode_days() -> None:
        for each in days.values():
            decode_swap_logs(each, devnet.pool)

    def validate_days() -> None:
        for day, each in decoded_days.items():
            check_raw_swaps(each.unique(maintain_order=True).sort(SWAP_KEY), day)

    def write_days() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for day, each in swaps.items():
                (Path(folder) / f"{day}.parquet").write_bytes(parquet_bytes(each))

    def whole() -> None:
        decode_days()
        validate_days()
        write_days()

    manager = Web3.to_checksum_address(devnet.pool.pool_manager)
    event = Web3().eth.contract(manager, abi=contenders.ABI).events.Swap()
    entries: list[Any] = [
        entry
        for each in days.values()
        for entry in devnet.web3.eth.get_logs(
            {
                "address": manager,
                "topics": [SWAP_TOPIC, devnet.pool.pool_id],
                "fromBlock": int(each[0]["blockNumber"], 16),
                "toBlock": int(each[-1]["blockNumber"], 16),
            }
        )
    ]
    works: dict[str, Callable[[], object]] = {
        "json.loads of the answers": lambda: [json.loads(answer) for answer in answers],
        "decode": decode_days,
        "validate": validate_days,
        "write (Parquet)": write_days,
        TOGETHER: whole,
        "eth_abi, data only": lambda: [decoded(log["topics"][2], log["data"]) for log in logs],
        "web3 process_log": lambda: [event.process_log(entry) for entry in entries],
    }
    figures = {name: cpu_microseconds(work, len(logs)) for name, work in works.items()}
    shown = Table("what", "CPU µs a swap", title=f"The same {len(logs):,} logs in {len(days)} days; least of 7")
    for name, figure in figures.items():
        shown.add_row(name, f"{figure:.1f}")
    console.print(shown)
    return figures[TOGETHER]


def crowd(swaps: int) -> float:
    """One day of so many swaps, from a node until the Parquet file is written; prints the table.

    Returns:
        Highest resident memory of the process in MiB.
    """
    shown = Table(*("blocks a request", "swaps", "reading s", "CPU s", "peak MiB"), title=f"One day of {swaps:,} swaps")
    peaks = []
    command = [sys.executable, "-m", "apeagent_pipeline_tests.benchmarks.crowded_chain", str(swaps)]
    # In a process of its own: where processes are forked, a child's peak counts what its parent holds.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin and node.stdout
        url = node.stdout.readline().strip()
        pool = BASE_ETH_USDC.model_dump()
        for blocks in (5_000, 10_000, 1_000):
            with tempfile.TemporaryDirectory() as folder:
                ours = {"pool": pool, "days": [str(FIRST_DAY)], "rate": 0.0, "range_blocks": blocks}
                spent, _ = run_contender(sys.executable, "collector", {"url": url, "folder": folder, **ours})
                rows = pl.scan_parquet(Path(folder) / "*.parquet").select(pl.len()).collect().item()
            peaks.append(spent["peak_kib"] / 1024)
            shown.add_row(
                f"{blocks:,}", f"{rows:,}", f"{spent['reading']:.1f}", f"{spent['cpu']:.1f}", f"{peaks[-1]:.0f}"
            )
        node.stdin.close()
    console.print(shown)
    return max(peaks)


def judge(results: dict[str, Result], microseconds: float | None, peak: float | None) -> None:
    """What was asked for beside what was measured."""
    shown = Table("target", "asked for", "measured", "met")

    def row(target: str, most: float, measured: float, unit: str = "") -> None:
        shown.add_row(target, f"≤ {most:.4g}{unit}", f"{measured:.4g}{unit}", "yes" if measured <= most else "MISSED")

    for blocks in ("10,000", "1,000"):
        ours, theirs = (results.get(f"{who}, {blocks} blocks") for who in (OURS, "cryo"))
        if ours and theirs:
            row(f"requests, {blocks} blocks: 1.2 x cryo's", 1.2 * theirs.requests, ours.requests)
            row(f"wall, {blocks} blocks: cryo's", theirs.wall, ours.wall, " s")
            row(f"wall without imports, {blocks} blocks: cryo's", theirs.reading, ours.reading, " s")
        unproven = results.get(f"{UNPROVEN}, {blocks} blocks")
        if ours and unproven:
            row(f"requests with proofs, {blocks} blocks: 1.3 x those without", 1.3 * unproven.requests, ours.requests)
            row(
                f"seconds with proofs, {blocks} blocks: 1.3 x those without", 1.3 * unproven.reading, ours.reading, " s"
            )
        if ours:
            row(f"requests, {blocks} blocks: a 50th of one for each event", ours.swaps.height / 50, ours.requests)
    if microseconds is not None:
        row("CPU a swap: decode, validate, write", 20, microseconds, " µs")
    if peak is not None:
        row("memory of a day of a million swaps", 1024, peak, " MiB")
    console.print(shown)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cryo", help="interpreter of an environment with cryo; default: this one, if it has cryo")
    parser.add_argument("--swaps", type=int, default=5_000, help="on three days of the devnet; 0 leaves it out")
    parser.add_argument("--crowd", type=int, default=1_000_000, help="swaps of the crowded day; 0 leaves it out")
    arguments = parser.parse_args()
    cryo = arguments.cryo or (sys.executable if find_spec("cryo") else None)
    results: dict[str, Result] = {}
    microseconds = peak = None
    if arguments.swaps:
        with start_devnet(Path(".apeagent/cache/devnet").absolute()) as devnet:
            devnet.trade(days=DAYS, swaps=arguments.swaps)
            first, last = first_block_of(devnet.days[0]), first_block_of(devnet.days[-1] + timedelta(days=1)) - 1
            logs, truth = receipts(devnet, first, last)
            microseconds = decode(devnet, logs)
            results = compare(devnet, cryo, first, last, truth)
    if arguments.crowd:
        peak = crowd(arguments.crowd)
    judge(results, microseconds, peak)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    console.print(f"{os.cpu_count()} cores; load average at the end {load}")


if __name__ == "__main__":
    main()
