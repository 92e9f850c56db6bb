"""Ways to read the swaps of a pool from a node, each run as a process of its own by ``collecting.py``.

``python contenders.py NAME '{"url": ..., ...}'`` reads, writes what it found below a folder and prints the seconds that
it took without its imports. Nothing is imported before it is needed: cryo may live in another environment.
"""

import json
import resource
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ABI = [
    {
        "type": "event",
        "name": "Swap",
        "anonymous": False,
        "inputs": [
            {"name": "id", "type": "bytes32", "indexed": True},
            {"name": "sender", "type": "address", "indexed": True},
            {"name": "amount0", "type": "int128", "indexed": False},
            {"name": "amount1", "type": "int128", "indexed": False},
            {"name": "sqrtPriceX96", "type": "uint160", "indexed": False},
            {"name": "liquidity", "type": "uint128", "indexed": False},
            {"name": "tick", "type": "int24", "indexed": False},
            {"name": "fee", "type": "uint24", "indexed": False},
        ],
    }
]


def collector(
    url: str, pool: dict[str, Any], days: list[str], folder: str, rate: float, proofs: bool = True, **config: Any
) -> float:
    """This collector: a day read, judged and encoded as the asset ``raw_swaps`` does it, one Parquet file each.

    Without ``proofs``, the first answers of the node are believed.
    """
    from pydantic import SecretStr

    from apeagent_pipeline.amm.pool_spec import PoolSpec
    from apeagent_pipeline.artifacts.manifest import parquet_bytes
    from apeagent_pipeline.chain.collector import Collector, CollectorConfig
    from apeagent_pipeline.chain.completeness import chain_rate
    from apeagent_pipeline.chain.rpc import MaskedHTTPProvider, RpcClient

    if not proofs:
        from apeagent_pipeline.chain.proof import DayProof

        Collector._verify = lambda self, reading, events: (events, DayProof(()))  # type: ignore[method-assign]
    begun = time.perf_counter()
    client = RpcClient([MaskedHTTPProvider(SecretStr(url), "RPC endpoint 1")], requests_per_second=rate)
    reader = Collector(client, PoolSpec.model_validate(pool), CollectorConfig(**config), Path(folder) / "parts")
    for day in days:
        swaps = reader.read_day(date.fromisoformat(day))
        chain_rate(swaps)
        (Path(folder) / f"{day}.parquet").write_bytes(parquet_bytes(swaps))
    return time.perf_counter() - begun


def cryo(url: str, pool: dict[str, Any], first: int, last: int, topic: str, folder: str, **options: Any) -> float:
    """cryo's own Parquet files; it is given the block numbers of the days, which it does not find itself."""
    from cryo import freeze

    begun = time.perf_counter()
    freeze(
        "logs",
        rpc=url,
        blocks=[f"{first}:{last + 1}"],
        contract=[pool["pool_manager"]],
        topic0=[topic],
        topic1=[pool["pool_id"]],
        output_dir=folder,
        hex=True,
        **options,
    )
    return time.perf_counter() - begun


def web3_loop(
    url: str, pool: dict[str, Any], first: int, last: int, topic: str, folder: str, range_blocks: int, each: bool
) -> float:
    """A plain script: ``get_logs`` range after range, ``process_log`` for each log, a line of JSON for each swap.

    With ``each`` it also asks for the block and the transaction of every event, to know the time and who sent it.
    """
    from web3 import HTTPProvider, Web3

    begun = time.perf_counter()
    web3 = Web3(HTTPProvider(url))
    manager = Web3.to_checksum_address(pool["pool_manager"])
    event = web3.eth.contract(manager, abi=ABI).events.Swap()
    with (Path(folder) / "swaps.jsonl").open("w") as file:
        for start in range(first, last + 1, range_blocks):
            logs = web3.eth.get_logs(
                {
                    "address": manager,
                    "topics": [topic, pool["pool_id"]],
                    "fromBlock": start,
                    "toBlock": min(start + range_blocks - 1, last),
                }
            )
            for log in logs:
                swap = event.process_log(log)
                row = {
                    "block_number": swap["blockNumber"],
                    "log_index": swap["logIndex"],
                    "transaction_hash": swap["transactionHash"].to_0x_hex(),
                    **{name: str(value) for name, value in swap["args"].items() if name != "id"},
                }
                if each:
                    row["timestamp"] = web3.eth.get_block(swap["blockNumber"])["timestamp"]
                    row["tx_from"] = web3.eth.get_transaction(swap["transactionHash"])["from"]
                file.write(json.dumps(row) + "\n")
    return time.perf_counter() - begun


CONTENDERS = {read.__name__: read for read in (collector, cryo, web3_loop)}

if __name__ == "__main__":
    seconds = CONTENDERS[sys.argv[1]](**json.loads(sys.argv[2]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"reading": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_kib": used.ru_maxrss}))
