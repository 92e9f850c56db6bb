"""A devnet: Anvil with Uniswap V4 at Base's own addresses, and its operations."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import requests
from web3 import HTTPProvider, Web3
from web3.types import RPCEndpoint

from apeagent_pipeline.amm.pool_id import pool_id
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, NATIVE_CURRENCY, PoolSpec, Token
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.amm.ticks import MAX_SQRT_PRICE, MIN_SQRT_PRICE, tick_at_sqrt_price
from apeagent_pipeline.chain.days import BLOCK_SECONDS, FIRST_DAY, day_of, first_block_of, timestamp_of
from apeagent_pipeline.chain.devnet import packages
from apeagent_pipeline.chain.devnet.anvil import AnvilProcess
from apeagent_pipeline.chain.devnet.errors import DevnetError
from apeagent_pipeline.chain.devnet.traffic import OPENING_LIQUIDITY, OPENING_PRICE, LiquidityChange, Swap, Traffic
from apeagent_pipeline.chain.events import SWAP_TOPIC
from apeagent_pipeline.reporting.progress import Progress, silent

ROUTERS = (
    "0x6fF5693b99212Da76ad316178A184AB56D299b43",  # where Base has the Universal Router
    "0x111111125421cA6dc452d289314280a0f8842A65",
)
"""The swap routers, which are the ``sender`` of their swaps."""

LIQUIDITY_ROUTER = "0x7C5f5A4bBd8fD63184577525326123B519429bDc"
"""Where Base has the PositionManager."""

ACCOUNTS = 5
FINALITY_BLOCKS = 64
"""How far Anvil's finalized block lies below the head."""

_REACH = 40_000
_SETUP_BLOCKS = 300
_GAS = 200_000_000  # enough for a swap through all words of the tick bitmap
_GAS_PRICE = 1_000_000_000
_UINT256_MAX = (1 << 256) - 1
_FUNDS = 1 << 200
_MOST_ETHER = 1 << 127

_KEY = "(address,address,uint24,int24,address)"

Transaction = dict[str, str]


class PoolState(NamedTuple):
    """What the PoolManager stores of a pool."""

    sqrt_price_x96: int
    tick: int
    liquidity: int


class Devnet:
    """A running devnet. Only `mine` and the methods that say so make blocks.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        pool: The preset pool, at Base's own addresses and with Base's pool id.
        web3: Client for all other requests to the node.
        accounts: Unlocked accounts with ether, USDC and allowances for all routers.
        days: The UTC days on which `trade` has made swaps.
    """

    def __init__(self, url: str, artifacts: Path) -> None:
        self.url = url
        self.pool: PoolSpec = BASE_ETH_USDC
        session = requests.Session()
        session.trust_env = False  # no proxy stands before this machine, and requests looks for one each time
        self.web3 = Web3(HTTPProvider(url, request_kwargs={"timeout": 600}, session=session))
        self.accounts: list[str] = [str(account) for account in self.web3.eth.accounts]
        self.days: list[date] = []
        self._artifacts = artifacts

    @property
    def opening_position(self) -> tuple[int, int, int]:
        """Lower tick, upper tick and liquidity of the position that the pool opens with; the first account's."""
        return self._centre() - _REACH, self._centre() + _REACH, OPENING_LIQUIDITY

    def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call.

        Raises:
            DevnetError: if the node answers with an error.
        """
        answer = self.web3.provider.make_request(RPCEndpoint(method), list(params))
        if "error" in answer:
            raise DevnetError(f"Anvil refused {method}: {answer['error']}")
        return answer["result"]

    def mine(self, blocks: int = 1) -> None:
        """Make empty blocks."""
        self.rpc("anvil_mine", hex(blocks))

    def head(self) -> int:
        """Number of the newest block."""
        return int(self.rpc("eth_blockNumber"), 16)

    def send(self, transactions: Sequence[Transaction], blocks: int = 1) -> list[str]:
        """Send transactions and make blocks, in one request; the first block holds all of them in this order.

        Returns:
            The transactions' hashes.

        Raises:
            DevnetError: if the node refuses one. A transaction that reverts is not refused.
        """
        requests: list[tuple[str, Any]] = [("eth_sendTransaction", [transaction]) for transaction in transactions]
        return self._batch([*requests, ("anvil_mine", [hex(blocks)])])[:-1]

    def swap_transaction(
        self,
        zero_for_one: bool,
        amount_specified: int,
        *,
        sqrt_price_limit_x96: int | None = None,
        account: int = 0,
        router: int = 0,
        pool: PoolSpec | None = None,
    ) -> Transaction:
        """A swap to be sent.

        Args:
            zero_for_one: True if token0 is paid.
            amount_specified: Negative: exact input. Positive: exact output.
            sqrt_price_limit_x96: Price at which the swap stops at the latest; None: no limit.
            account: Index into `accounts`.
            router: Index into ROUTERS.
            pool: None: the preset pool.
        """
        pool = pool or self.pool
        limit = sqrt_price_limit_x96
        if limit is None:
            limit = MIN_SQRT_PRICE + 1 if zero_for_one else MAX_SQRT_PRICE - 1
        data = self._encode(
            "swap",
            [_KEY, "(bool,int256,uint160)", "(bool,bool)", "bytes"],
            [_key(pool), (zero_for_one, amount_specified, limit), (False, False), b""],
        )
        pays_ether = zero_for_one and pool.token0.address == NATIVE_CURRENCY
        value = min(-amount_specified, _MOST_ETHER) if amount_specified < 0 else _MOST_ETHER
        return self._transaction(account, ROUTERS[router], data, value if pays_ether else 0)

    def liquidity_transaction(
        self,
        tick_lower: int,
        tick_upper: int,
        liquidity_delta: int,
        *,
        account: int = 0,
        salt: int = 0,
        pool: PoolSpec | None = None,
    ) -> Transaction:
        """A change of a position to be sent; positions of the same ticks are told apart by ``salt``."""
        pool = pool or self.pool
        data = self._encode(
            "modifyLiquidity",
            [_KEY, "(int24,int24,int256,bytes32)", "bytes"],
            [_key(pool), (tick_lower, tick_upper, liquidity_delta, salt.to_bytes(32, "big")), b""],
        )
        pays_ether = liquidity_delta > 0 and pool.token0.address == NATIVE_CURRENCY
        return self._transaction(account, LIQUIDITY_ROUTER, data, _MOST_ETHER if pays_ether else 0)

    def receipts(self, transactions: Sequence[str]) -> list[dict[str, Any]]:
        """Receipts as the node gives them, hex strings and all."""
        return self._batch([("eth_getTransactionReceipt", [each]) for each in transactions])

    def swap(self, zero_for_one: bool, amount_specified: int, **options: Any) -> dict[str, Any]:
        """Swap in a new block; arguments as of `swap_transaction`.

        Returns:
            The transaction's receipt as the node gives it, hex strings and all.

        Raises:
            DevnetError: if the contract reverted.
        """
        return self._execute(self.swap_transaction(zero_for_one, amount_specified, **options))

    def modify_liquidity(
        self, tick_lower: int, tick_upper: int, liquidity_delta: int, **options: Any
    ) -> dict[str, Any]:
        """Change a position in a new block; arguments as of `liquidity_transaction`, the rest as of `swap`."""
        return self._execute(self.liquidity_transaction(tick_lower, tick_upper, liquidity_delta, **options))

    def initialize(self, pool: PoolSpec, sqrt_price_x96: int) -> None:
        """Open a pool in a new block."""
        data = self._encode("initialize", [_KEY, "uint160"], [_key(pool), sqrt_price_x96])
        self._execute(self._transaction(0, self.pool.pool_manager, data))

    def open_pool(self, fee: int, tick_spacing: int, sqrt_price_x96: int) -> PoolSpec:
        """Another pool of ether and USDC without hooks; empty of liquidity."""
        spec = self.pool.model_copy(update={"fee": fee, "tick_spacing": tick_spacing})
        spec = spec.model_copy(update={"pool_id": pool_id(spec.key)})
        self.initialize(spec, sqrt_price_x96)
        return spec

    def state(self, pool: PoolSpec | None = None) -> PoolState:
        """Price, tick and liquidity as the PoolManager stores them (``StateLibrary.sol``)."""
        spec = pool or self.pool
        slot = int(self.web3.keccak(bytes.fromhex(spec.pool_id[2:]) + (6).to_bytes(32, "big")).hex(), 16)
        words = [
            int(self.rpc("eth_getStorageAt", spec.pool_manager, hex(slot + offset), "latest"), 16) for offset in (0, 3)
        ]
        tick = words[0] >> 160 & 0xFFFFFF
        return PoolState(words[0] & ((1 << 160) - 1), tick - (1 << 24) if tick >> 23 else tick, words[1])

    def trade(self, days: int, swaps: int, seed: int = 42, progress: Progress = silent) -> list[date]:
        """Seeded traffic on the next whole UTC days, and blocks enough after them to make them final.

        People of all accounts swap through all routers, in both directions, by exact input and exact output,
        sometimes several in one block; now and then a position is added or taken away.

        Args:
            days: How many.
            swaps: On all days together.
            seed: The same seed on a fresh devnet gives the same swaps.
            progress: Told swaps made of all.

        Returns:
            The days.

        Raises:
            DevnetError: if a swap failed.
        """
        first = day_of(timestamp_of(self.head())) + timedelta(days=1)
        token0, token1 = self.pool.token0, self.pool.token1
        traffic = Traffic(seed, len(self.accounts), 10**token0.decimals, 10**token1.decimals)
        made: list[int] = []
        planned: list[tuple[int, list[Swap | LiquidityChange]]] = [
            (first_block_of(first + timedelta(days=i)) + block, actions)
            for i in range(days)
            for block, actions in traffic.day(swaps * (i + 1) // days - swaps * i // days)
        ]
        after = first_block_of(first + timedelta(days=days))
        planned = [(self.head() + 1, []), *planned, (after + FINALITY_BLOCKS + 1, [])]
        # Each request makes the block of its transactions and the empty blocks up to the next one. The last request
        # also makes the first block after the days final, from which a reader knows that the days are over.
        for (block, actions), (next_block, _) in pairwise(planned):
            self.send([self._action(action) for action in actions], blocks=next_block - block)
            made += [block for action in actions if isinstance(action, Swap)]
            progress(len(made), swaps)
        query = {"address": self.pool.pool_manager, "topics": [SWAP_TOPIC, self.pool.pool_id]}
        query |= {"fromBlock": hex(first_block_of(first)), "toBlock": hex(after - 1)}
        found = [int(log["blockNumber"], 16) for log in self.rpc("eth_getLogs", query)]
        if found != made:
            raise DevnetError(f"{len(set(made) - set(found))} blocks of the traffic lack a swap; start a fresh devnet")
        traded = [first + timedelta(days=i) for i in range(days)]
        self.days += traded
        return traded

    def setup(self) -> None:
        """Put the contracts where Base has them, open the pool and fund the accounts. Done once by `start_devnet`."""
        self.rpc("anvil_setLoggingEnabled", False)  # five lines a block otherwise
        self.rpc("anvil_setBlockTimestampInterval", BLOCK_SECONDS)
        for account in self.accounts:
            self.rpc("anvil_setBalance", account, hex(_FUNDS))
        usdc, manager = self.pool.token1, self.pool.pool_manager
        self._place(packages.POOL_MANAGER, manager, ["address"], [self.accounts[0]])
        self._place(
            packages.ERC20, usdc.address, ["string", "string", "uint8"], ["USD Coin", usdc.symbol, usdc.decimals]
        )
        for router in ROUTERS:
            self._place(packages.SWAP_ROUTER, router, ["address"], [manager])
        self._place(packages.LIQUIDITY_ROUTER, LIQUIDITY_ROUTER, ["address"], [manager])
        self.fund(usdc)
        self.initialize(self.pool, sqrt_price_x96_from_price(OPENING_PRICE, self.pool))
        self.modify_liquidity(*self.opening_position)

    def fund(self, token: Token) -> None:
        """Give every account the token, and every router leave to take it, in a new block."""
        mint = [(["address", "uint256"], [account, _FUNDS]) for account in self.accounts]
        approve = [(["address", "uint256"], [spender, _UINT256_MAX]) for spender in (*ROUTERS, LIQUIDITY_ROUTER)]
        self.send(
            [
                self._transaction(i, token.address, self._encode(function, *call))
                for i in range(len(self.accounts))
                for function, call in [("mint", mint[i]), *(("approve", each) for each in approve)]
            ]
        )

    def _place(self, artifact: str, address: str, types: list[str], arguments: list[Any]) -> None:
        # The init code is stored at the address and called there, so that it writes its state and its immutables hold
        # that address. The code that it returns then replaces it.
        init_code = json.loads((self._artifacts / artifact).read_text())["bytecode"]["object"]
        self.rpc("anvil_setCode", address, init_code + self.web3.codec.encode(types, arguments).hex())
        runtime = self.rpc("eth_call", {"to": address, "gas": hex(_GAS)}, "latest")
        self._execute(self._transaction(0, address, "0x"))
        self.rpc("anvil_setCode", address, runtime)

    def _batch(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        provider = self.web3.provider
        assert isinstance(provider, HTTPProvider)
        answers: Any = provider.make_batch_request([(RPCEndpoint(method), params) for method, params in requests])
        for (method, _), answer in zip(requests, answers, strict=True):
            if "error" in answer:
                raise DevnetError(f"Anvil refused {method}: {answer['error']}")
        return [answer["result"] for answer in answers]

    def _action(self, action: Swap | LiquidityChange) -> Transaction:
        if isinstance(action, Swap):
            return self.swap_transaction(
                action.zero_for_one, action.amount_specified, account=action.account, router=action.router
            )
        spacing = self.pool.tick_spacing
        centre = self._centre()
        return self.liquidity_transaction(
            centre + action.lower * spacing,
            centre + action.upper * spacing,
            action.liquidity_delta,
            account=action.account,
        )

    def _centre(self) -> int:
        tick = tick_at_sqrt_price(sqrt_price_x96_from_price(OPENING_PRICE, self.pool))
        return tick // self.pool.tick_spacing * self.pool.tick_spacing

    def _execute(self, transaction: Transaction) -> dict[str, Any]:
        (sent,) = self.send([transaction])
        (receipt,) = self.receipts([sent])
        if receipt["status"] != "0x1":
            raise DevnetError(f"the contract reverted: transaction {sent}")
        return receipt

    def _transaction(self, account: int, to: str, data: str, value: int = 0) -> Transaction:
        return {
            "from": self.accounts[account],
            "to": to,
            "data": data,
            "value": hex(value),
            "gas": hex(_GAS),
            "gasPrice": hex(_GAS_PRICE),
        }

    def _encode(self, function: str, types: list[str], arguments: list[Any]) -> str:
        selector = self.web3.keccak(text=f"{function}({','.join(types)})")[:4]
        return "0x" + (selector + self.web3.codec.encode(types, arguments)).hex()


@contextmanager
def start_devnet(cache: Path, first_day: date = FIRST_DAY, port: int = 0, kept_states: int = 0) -> Iterator[Devnet]:
    """A fresh devnet that ends with the context, and with this process at the latest.

    Args:
        cache: Folder for Anvil and the contracts; fetched on first use.
        first_day: The UTC day before which the chain begins, and on which `Devnet.trade` begins.
        port: Of 127.0.0.1; 0 for any free one.
        kept_states: States of past blocks that are kept: as many blocks can be undone with ``anvil_reorg`` or asked
            for storage. Each makes mining slower, ten about tenfold.

    Raises:
        DevnetError: if Anvil or the contracts cannot be had, or Anvil does not start.
    """
    program = packages.anvil_program(cache)
    artifacts = packages.fetch(packages.V4_CORE, cache)
    genesis = first_block_of(first_day) - _SETUP_BLOCKS
    # Cancun: from Prague on, each block writes its predecessor's hash into the state. Pruned: every kept state holds
    # the hashes of all blocks, and many empty blocks take quadratic time. Logs and receipts are kept in any case.
    options = ["--chain-id", str(BASE_ETH_USDC.chain_id), "--hardfork", "cancun", "--accounts", str(ACCOUNTS)]
    options += ["--number", str(genesis), "--timestamp", str(timestamp_of(genesis))]
    options += ["--no-mining", "--order", "fifo", "--block-base-fee-per-gas", "0", "--disable-block-gas-limit"]
    options += [f"--prune-history={kept_states}" if kept_states else "--prune-history", "--no-request-size-limit"]
    with AnvilProcess(program, port, options) as anvil:
        devnet = Devnet(anvil.url, artifacts)
        devnet.setup()
        yield devnet


def _key(pool: PoolSpec) -> tuple[str, str, int, int, str]:
    return pool.token0.address, pool.token1.address, pool.fee, pool.tick_spacing, pool.hooks
