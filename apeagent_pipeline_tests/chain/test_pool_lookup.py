"""Any pool: what the settings tell, what the chain tells, and that neither is believed blindly."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from eth_abi import encode
from eth_hash.auto import keccak
from web3 import HTTPProvider
from web3.providers.base import BaseProvider

from apeagent_pipeline.amm.pool_id import pool_id
from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, NATIVE_CURRENCY, DynamicFeeError, PoolKey, PoolSpec
from apeagent_pipeline.amm.ticks import sqrt_price_at_tick
from apeagent_pipeline.chain.completeness import chain_rate
from apeagent_pipeline.chain.days import BLOCK_SECONDS, FIRST_DAY, GENESIS_TIMESTAMP, day_bounds
from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.chain.pool_lookup import INITIALIZE_TOPIC, POSITION_MANAGERS, ChosenPool, chosen_pool
from apeagent_pipeline.chain.rpc import RpcClient
from apeagent_pipeline.chain.source import RpcSource, open_swap_source
from apeagent_pipeline.settings import Settings, SettingsError
from apeagent_pipeline_tests.chain.conftest import Node
from apeagent_pipeline_tests.conftest import DEVNET_CACHE

if TYPE_CHECKING:
    from apeagent_pipeline.chain.devnet import Devnet

WBTC, WETH = "0x2260fac5e5542a773aa44fbcfedf7c193bc2c599", "0xc02aaa39b223fe8d0a0e5c4f27ead9083c756cc2"
HOOKS = "0x00000000000000000000000000000000000000c0"
KEY = PoolKey(currency0=WBTC, currency1=WETH, fee=0x800000, tick_spacing=60, hooks=HOOKS)
ID = pool_id(KEY)
KEY_TEXT = f"{WBTC},{WETH},8388608,60,{HOOKS}"
BASE_MANAGER = BASE_ETH_USDC.pool_manager


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def selector(signature: str) -> str:
    return "0x" + keccak(signature.encode())[:4].hex()


class Chain(BaseProvider):
    """A chain of views and one event. What a test changes: ``key_of_event``, ``key_of_position_manager``, tokens."""

    def __init__(self, chain_id: int = 8453) -> None:
        super().__init__()
        self.chain_id = chain_id
        self.key_of_event: PoolKey | None = KEY
        self.key_of_position_manager: PoolKey | None = None
        self.views = {
            (WBTC, selector("symbol()")): encode(["string"], ["WBTC"]),
            (WBTC, selector("decimals()")): encode(["uint8"], [8]),
            # As early tokens have it: bytes32.
            (WETH, selector("symbol()")): b"WETH".ljust(32, b"\0"),
            (WETH, selector("decimals()")): encode(["uint8"], [18]),
        }
        self.refuses_long_ranges = False
        self.asked: list[str] = []

    def make_request(self, method: str, params: Any) -> Any:  # type: ignore[override]
        self.asked.append(method)
        if method == "eth_chainId":
            return {"result": hex(self.chain_id)}
        if method == "eth_call":
            return self._call(params[0]["to"], params[0]["data"])
        assert method == "eth_getLogs"
        if self.refuses_long_ranges:
            return {"error": {"code": -32602, "message": "query exceeds max block range 100000"}}
        query = params[0]
        assert (query["fromBlock"], query["toBlock"]) == ("0x0", "latest")
        key = self.key_of_event
        if key is None or query["topics"] != [INITIALIZE_TOPIC, ID] or query["address"] != BASE_MANAGER:
            return {"result": []}
        indexed = [ID, *("0x" + encode(["address"], [a]).hex() for a in (key.currency0, key.currency1))]
        data = encode(
            ["uint24", "int24", "address", "uint160", "int24"],
            [key.fee, key.tick_spacing, key.hooks, (1 << 160) - 1, -887_272],
        )
        return {"result": [{"topics": [INITIALIZE_TOPIC, *indexed], "data": "0x" + data.hex()}]}

    def make_batch_request(self, requests: Any) -> Any:
        return [self.make_request(*each) for each in requests]

    def _call(self, to: str, data: str) -> Any:
        if to == POSITION_MANAGERS[8453]:
            assert data == selector("poolKeys(bytes25)") + ID[2:52] + "0" * 14
            key = self.key_of_position_manager
            words = (key.currency0, key.currency1, key.fee, key.tick_spacing, key.hooks) if key else (0, 0, 0, 0, 0)
            as_words = [int(word, 16) if isinstance(word, str) else word for word in words]
            return {"result": "0x" + encode(["uint256"] * 5, as_words).hex()}
        if (to, data) not in self.views:
            return {"error": {"code": 3, "message": "execution reverted"}}
        return {"result": "0x" + self.views[to, data].hex()}


def look_up(tmp_path: Path, *chains: Chain, **values: Any) -> PoolSpec:
    chosen = chosen_pool(settings(**{"pool_id": ID, **values}))
    return chosen.from_chain(RpcClient(chains or [Chain()], attempts=2, sleep=lambda seconds: None), tmp_path)


def test_the_topic_is_the_hash_of_the_events_signature() -> None:
    signature = b"Initialize(bytes32,address,address,uint24,int24,address,uint160,int24)"
    assert "0x" + keccak(signature).hex() == INITIALIZE_TOPIC


def test_an_id_alone_becomes_the_whole_pool(tmp_path: Path) -> None:
    pool = look_up(tmp_path)
    assert (pool.chain_id, pool.pool_manager, pool.pool_id) == (8453, BASE_MANAGER, ID)
    assert (pool.token0.symbol, pool.token0.decimals, pool.token0.address) == ("WBTC", 8, WBTC)
    assert (pool.token1.symbol, pool.token1.decimals, pool.token1.address) == ("WETH", 18, WETH)
    assert pool.key == KEY
    assert (pool.has_hooks, pool.has_dynamic_fee) == (True, True)
    with pytest.raises(DynamicFeeError, match=ID):
        _ = pool.static_fee


def test_the_position_manager_spares_the_search_through_the_chain(tmp_path: Path) -> None:
    chain = Chain()
    chain.key_of_position_manager = KEY
    assert look_up(tmp_path, chain).key == KEY
    assert "eth_getLogs" not in chain.asked


def test_a_key_that_does_not_hash_to_the_id_is_not_believed(tmp_path: Path) -> None:
    chain = Chain()
    chain.key_of_position_manager = KEY.model_copy(update={"fee": 500})
    assert look_up(tmp_path / "a", chain).key == KEY
    chain.key_of_event = KEY.model_copy(update={"tick_spacing": 10})
    with pytest.raises(ChainError, match=r"does not fit.*APEAGENT_POOL_KEY"):
        look_up(tmp_path / "b", chain)
    assert not (tmp_path / "b").exists()


def test_a_node_that_refuses_the_search_names_the_setting_that_helps(tmp_path: Path) -> None:
    refusing = Chain()
    refusing.refuses_long_ranges = True
    with pytest.raises(ChainError, match=r"max block range.*set APEAGENT_POOL_KEY \(currency0,currency1,fee"):
        look_up(tmp_path, refusing)
    assert refusing.asked.count("eth_getLogs") == 1
    assert look_up(tmp_path, refusing, Chain()).key == KEY, "another endpoint was not asked"


def test_an_unknown_pool_and_a_wrong_chain_are_told_as_such(tmp_path: Path) -> None:
    chain = Chain()
    chain.key_of_event = None
    with pytest.raises(ChainError, match=f"knows no pool {ID}.*check APEAGENT_POOL_ID"):
        look_up(tmp_path, chain)
    with pytest.raises(ChainError, match=r"serves chain 0x1, expected 0x2105 \(8453\).*APEAGENT_CHAIN_ID"):
        look_up(tmp_path, Chain(chain_id=1))


def test_what_the_chain_told_is_kept_and_a_torn_file_asked_again(tmp_path: Path) -> None:
    pool = look_up(tmp_path)
    silent = Chain()
    assert look_up(tmp_path, silent) == pool
    assert silent.asked == []
    (kept,) = tmp_path.iterdir()
    for content in (kept.read_text()[:40], kept.read_text().replace("8388608", "500")):
        kept.write_text(content)
        assert look_up(tmp_path) == pool


def test_what_the_settings_say_is_neither_asked_nor_kept(tmp_path: Path) -> None:
    chain = Chain()
    named = look_up(tmp_path, chain, pool_tokens="Bitcoin:8,Ether:17")
    assert (named.token0.symbol, named.token1.symbol, named.token1.decimals) == ("Bitcoin", "Ether", 17)
    assert chain.asked.count("eth_call") == 1, "only the PositionManager"
    assert look_up(tmp_path).token1.decimals == 18
    chain.asked.clear()
    spec = look_up(tmp_path / "other", chain, pool_key=KEY_TEXT, pool_tokens="WBTC:8,WETH:18")
    assert spec == look_up(tmp_path)
    assert chain.asked == []
    key_only = Chain()
    assert look_up(tmp_path / "another", key_only, pool_key=KEY_TEXT) == spec
    assert "eth_getLogs" not in key_only.asked


@pytest.mark.parametrize(
    "views",
    [
        {(WBTC, selector("symbol()")): b""},
        {(WBTC, selector("symbol()")): encode(["string"], [""])},
        {(WBTC, selector("symbol()")): encode(["string"], ["W\nBTC"])},
        {(WBTC, selector("symbol()")): b"\xff" * 32},
        {(WETH, selector("decimals()")): encode(["uint8"], [200])},
        {(WETH, selector("decimals()")): b""},
    ],
)
def test_a_token_without_usable_symbol_or_decimals_asks_for_the_setting(
    tmp_path: Path, views: dict[tuple[str, str], bytes]
) -> None:
    chain = Chain()
    chain.views |= views
    with pytest.raises(ChainError, match=r"tells no usable symbol and decimals.*APEAGENT_POOL_TOKENS"):
        look_up(tmp_path, chain)


def test_the_native_currency_is_ether_unless_the_settings_name_it(tmp_path: Path) -> None:
    key = BASE_ETH_USDC.key
    chain = Chain(chain_id=137)
    usdc = key.currency1
    chain.views |= {
        (usdc, selector("symbol()")): encode(["string"], ["USDC"]),
        (usdc, selector("decimals()")): encode(["uint8"], [6]),
    }
    elsewhere = {"chain_id": 137, "pool_manager": "0x" + "12" * 20, "pool_id": BASE_ETH_USDC.pool_id}
    pool = look_up(tmp_path, chain, **elsewhere)
    assert (pool.token0.address, pool.token0.symbol, pool.token0.decimals) == (NATIVE_CURRENCY, "ETH", 18)
    assert (pool.token1.symbol, pool.token1.decimals) == ("USDC", 6)
    assert look_up(tmp_path, chain, **elsewhere, pool_tokens="POL:18,USDC:6").token0.symbol == "POL"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"pool_id": "0x12"}, r"APEAGENT_POOL_ID=0x12: expected 0x and 64 hex digits"),
        ({"pool_id": ID[2:]}, r"APEAGENT_POOL_ID=.*: expected 0x"),
        ({"pool_manager": "0x12"}, r"APEAGENT_POOL_MANAGER=0x12: expected an address"),
        ({"chain_id": 1}, r"APEAGENT_CHAIN_ID=1: set APEAGENT_POOL_MANAGER"),
        ({"chain_id": 1, "pool_manager": BASE_MANAGER}, r"APEAGENT_CHAIN_ID=1: set APEAGENT_POOL_ID or APEAGENT_POOL_"),
        ({"pool_key": f"{WBTC},{WETH},500,10"}, r"APEAGENT_POOL_KEY=.*expected currency0,currency1,fee,tickSpacing"),
        ({"pool_key": f"{WETH},{WBTC},500,10,{HOOKS}"}, r"APEAGENT_POOL_KEY=.*currency0 must be the lower"),
        ({"pool_key": f"{WBTC},WETH,500,10,{HOOKS}"}, r"APEAGENT_POOL_KEY=.*currency1 'WETH'"),
        ({"pool_key": f"{WBTC},{WETH},1000001,10,{HOOKS}"}, r"APEAGENT_POOL_KEY=.*fee 1000001.*at most 1000000"),
        ({"pool_key": f"{WBTC},{WETH},cheap,10,{HOOKS}"}, r"APEAGENT_POOL_KEY=.*'cheap'"),
        ({"pool_key": f"{WBTC},{WETH},500,0,{HOOKS}"}, r"APEAGENT_POOL_KEY=.*tick_spacing 0"),
        ({"pool_key": KEY_TEXT, "pool_id": BASE_ETH_USDC.pool_id}, rf"APEAGENT_POOL_KEY=.*{ID}.*APEAGENT_POOL_ID=0x96"),
        ({"pool_tokens": "ETH:18"}, r"APEAGENT_POOL_TOKENS=ETH:18: expected symbol:decimals"),
        ({"pool_tokens": "ETH:18,USDC:99"}, r"APEAGENT_POOL_TOKENS=.*at most 36 decimals"),
        ({"pool_tokens": "ETH,USDC"}, r"APEAGENT_POOL_TOKENS=ETH,USDC: expected"),
    ],
)
def test_a_wrong_pool_setting_is_named_with_its_value_and_what_is_expected(values: dict[str, Any], told: str) -> None:
    for source in ({}, {"rpc_urls": "http://127.0.0.1:9"}, {"swaps_archive": "swaps.csv"}):
        with pytest.raises(SettingsError, match=told):
            open_swap_source(settings(**values, **source))


def test_the_preset_is_the_preset_however_it_is_named() -> None:
    key = BASE_ETH_USDC.key
    text = f"{key.currency0}, {key.currency1}, {key.fee}, {key.tick_spacing}, {key.hooks}"
    for values in ({}, {"pool_id": BASE_ETH_USDC.pool_id.upper().replace("0X", "0x")}, {"pool_key": text}):
        assert chosen_pool(settings(**values)).from_settings() == BASE_ETH_USDC
    assert chosen_pool(settings(pool_manager=BASE_MANAGER.lower())).from_settings() == BASE_ETH_USDC


@pytest.mark.parametrize("source", [{}, {"swaps_archive": "swaps.csv"}])
def test_without_a_node_a_pool_is_described_by_key_and_tokens(source: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError, match=rf"APEAGENT_POOL_ID={ID} on chain.*APEAGENT_POOL_KEY .* and APEAGENT_POOL_TOKENS .*C:6"
    ):
        open_swap_source(settings(pool_id=ID, **source))
    static = KEY_TEXT.replace("8388608", "3000")
    with pytest.raises(SettingsError, match=r"set APEAGENT_POOL_TOKENS"):
        open_swap_source(settings(pool_key=static, **source))
    pool = open_swap_source(settings(pool_key=static, pool_tokens="WBTC:8,WETH:18", **source)).pool
    assert (pool.token0.decimals, pool.token1.decimals, pool.static_fee, pool.has_hooks) == (8, 18, 3000, True)


def test_the_embedded_chain_has_no_pool_with_a_dynamic_fee() -> None:
    with pytest.raises(SettingsError, match="one fee"):
        open_swap_source(settings(pool_key=KEY_TEXT, pool_tokens="WBTC:8,WETH:18"))


def test_opening_a_source_and_its_fingerprint_ask_no_node_and_the_pool_asks_once(tmp_path: Path, node: Node) -> None:
    chain = Chain()
    node.fault = chain.make_request
    values = {"rpc_urls": node.url.get_secret_value(), "pool_id": ID, "home": tmp_path, "rpc_requests_per_second": 0}
    source = open_swap_source(settings(**values))
    assert isinstance(source, RpcSource)
    assert ID in source.fingerprint()
    assert node.requests == []
    assert source.pool.key == source.pool.key == KEY
    asked = len(node.requests)
    assert asked == 7
    assert open_swap_source(settings(**values)).pool == source.pool
    assert len(node.requests) == asked
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


def test_a_real_node_tells_key_and_tokens_of_the_preset(tmp_path: Path, devnet: "Devnet") -> None:
    preset = BASE_ETH_USDC
    client = RpcClient([HTTPProvider(devnet.url)])
    found = ChosenPool(preset.chain_id, preset.pool_manager, preset.pool_id, None, None).from_chain(client, tmp_path)
    assert pool_id(found.key) == preset.pool_id
    assert (found.token0, found.token1.symbol, found.token1.decimals) == (preset.token0, "USDC", 6)
    assert (found.fee, found.tick_spacing, found.has_hooks) == (500, 10, False)


def test_another_pool_is_read_from_a_real_node_by_its_id_alone(tmp_path: Path) -> None:
    """From the id to the swaps of a day, in a pool of another fee that shares the PoolManager with the preset."""
    from apeagent_pipeline.chain.devnet import DevnetUnavailableError, start_devnet

    with ExitStack() as stack:
        try:
            own = stack.enter_context(start_devnet(DEVNET_CACHE))
        except DevnetUnavailableError as error:
            pytest.skip(str(error))
        other = own.open_pool(fee=3_000, tick_spacing=60, sqrt_price_x96=sqrt_price_at_tick(-195_000))
        own.modify_liquidity(-198_000, -192_000, 10**17, pool=other)
        (start, end), day = day_bounds(FIRST_DAY), FIRST_DAY
        own.mine((start - GENESIS_TIMESTAMP) // BLOCK_SECONDS - own.head())
        swaps = [own.swap(k % 2 == 0, -(10**17) if k % 2 == 0 else -(10**8), pool=other) for k in range(6)]
        own.swap(True, -(10**15))
        own.mine((end - GENESIS_TIMESTAMP) // BLOCK_SECONDS + 200 - own.head())
        values = {"rpc_urls": own.url, "pool_id": other.pool_id, "home": tmp_path, "rpc_requests_per_second": 0}
        source = open_swap_source(settings(**values))
        assert source.pool.key == PoolKey(**other.key.model_dump() | {"currency1": other.key.currency1.lower()})
        assert (source.pool.token1.symbol, source.pool.token1.decimals) == ("USDC", 6)
        table = source.read_day(day)
    assert table["transaction_hash"].to_list() == [swap["transactionHash"] for swap in swaps]
    assert set(table["fee"]) == {3_000}
    assert chain_rate(table) == (5, 5)
