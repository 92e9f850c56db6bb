"""A randomised campaign: days read from one to three endpoints with random faults, compared with the truth.

Run 300 of them with ``python -m apeagent_pipeline_tests.chain.campaign 300``; it prints each run that went wrong by its
seed, and a summary.
"""

import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import polars as pl

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.chain.collector import Collector
from apeagent_pipeline.chain.days import FIRST_DAY
from apeagent_pipeline.chain.embedded import EmbeddedChainProvider
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.chain.rpc import RpcClient
from apeagent_pipeline_tests.chain import lying_nodes as lies
from apeagent_pipeline_tests.chain.dressed_nodes import DRESSES, once_in_a_while
from apeagent_pipeline_tests.chain.faulty_proxy import Fault, hangs_up, http_error, range_limit, sometimes, truncated

DAY = FIRST_DAY + timedelta(days=1)
NOW = datetime(2025, 1, 26, 12, tzinfo=UTC)


class Run(NamedTuple):
    """One run of the campaign; ``state`` is confirmed, unconfirmed or failed."""

    seed: int
    faults: list[list[str]]
    state: str
    missing: int
    requests: int
    seconds: float
    text: str


class Truth(NamedTuple):
    """What an honest node tells of the day."""

    provider: EmbeddedChainProvider
    swaps: pl.DataFrame
    first: int
    last: int


def truth(day: date = DAY) -> Truth:
    """The embedded chain with a stopped clock, and its day."""
    provider = EmbeddedChainProvider(42, now=NOW.timestamp)
    collector = Collector(RpcClient([provider]), BASE_ETH_USDC)
    return Truth(provider, collector.read_day(day), *collector.block_range(day))


def _draw(rng: random.Random, first: int, last: int) -> tuple[str, Fault]:
    share = rng.choice([0.002, 0.01, 0.03, 0.1, 0.3])
    at = rng.randint(first, last)
    length = rng.choice([1, 10, 100, 1_000, 10_000])
    seed = rng.randrange(1 << 30)
    choices: dict[str, Callable[[], Fault]] = {
        f"pruned before {at - first}": lambda: lies.pruned(at),
        f"lags at {at - first}": lambda: lies.lagging_logs(at),
        f"hole at {at - first}, {length} blocks": lambda: lies.hole(at, at + length),
        f"blocks lost at {at - first}, {length}": lambda: lies.missing_blocks(at, at + length),
        f"{share} empty": lambda: lies.sometimes_empty(share, seed),
        f"{share} sometimes left out": lambda: lies.sometimes_left_out(share, seed),
        f"{share} always left out": lambda: lies.always_left_out(share, seed),
        f"cut at {max(length, 20)}": lambda: lies.cut_at(max(length, 20)),
        "no liquidity changes": lies.no_liquidity_changes,
        "large batches empty": lambda: lies.large_batches_empty(2),
        "no state": lies.no_state,
        f"{share} unknown errors": lambda: once_in_a_while(share, -32000, "nobody knows why", seed),
        f"{share} of 502": lambda: sometimes(share, http_error(502), seed),
        f"{share} hang up": lambda: sometimes(share, hangs_up(), seed),
        f"{share} truncated": lambda: sometimes(share, truncated(), seed),
        "range limit 500": lambda: range_limit(500, -32602, "Block range limit exceeded."),
    }
    dress = rng.choice(sorted(DRESSES))
    name = rng.choice([*choices, dress])
    return (name, choices[name]()) if name in choices else (name, DRESSES[name][0])


def run(seed: int, true: Truth) -> Run:
    """One run: one to three endpoints, each with up to four faults."""
    rng = random.Random(seed)
    drawn = [[_draw(rng, true.first, true.last) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 3))]
    stateless: list[Fault] = [lies.no_state()] if rng.random() < 0.7 else []
    state, missing, text, begun = "failed", 0, "", time.monotonic()
    with lies.nodes(true.provider, *[[*stateless, *(fault for _, fault in each)] for each in drawn]) as found:
        try:
            events: Any = lies.collector_of(found).read_events(DAY)
        except ChainError as error:
            text = str(error)
        else:
            state = "confirmed" if events.proof.confirmed else "unconfirmed"
            missing = true.swaps.join(events.swaps, on=["block_number", "log_index"], how="anti").height
            missing += events.swaps.height != true.swaps.height and not missing
            text = f"{events.proof.by} {events.proof.doubts}"
        requests = sum(node.requests for node in found)
    names = [[name for name, _ in each] for each in drawn]
    return Run(seed, names, state, missing, requests, time.monotonic() - begun, text)


def main() -> None:
    """Run the campaign and print its summary."""
    logging.disable(logging.WARNING)
    count, begin = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    true = truth()
    with lies.nodes(true.provider, [lies.no_state()]) as (honest,):
        lies.collector_of([honest]).read_day(DAY)
    found = []
    for seed in range(begin, begin + count):
        found.append(run(seed, true))
        each = found[-1]
        if each.missing or each.seconds > 60:
            print(f"{each.state:12}", each.missing, f"{each.seconds:.0f} s", each, flush=True)
    wrong = [each for each in found if each.missing and each.state == "confirmed"]
    print(Counter((each.state, "missing" if each.missing else "all") for each in found))
    done = [each for each in found if each.state != "failed"]
    requests = sorted(each.requests for each in done) or [0]
    print(
        f"{count} runs, {len(wrong)} confirmed with a swap missing, {len(done) / count:.0%} completed; requests of an "
        f"honest run {honest.requests}, median {requests[len(requests) // 2]}, most {requests[-1]}"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
