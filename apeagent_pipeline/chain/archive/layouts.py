"""The table layouts that are understood. A new one is a few lines of data here.

A header is compared by its `key`: lower case, letters and digits only. ``evt_tx_hash``, ``evtTxHash`` and
``EVT_TX_HASH`` are one key.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

COLUMN_KEYS: dict[str, tuple[str, ...]] = {
    "chain_id": ("chainid", "network", "chain", "blockchain"),
    "pool_id": ("poolid", "poolidhex", "poolkeyhash", "pool"),
    "block_number": (
        "blocknumber",
        "evtblocknumber",
        "txatblocknumber",
        "blocknum",
        "blocknumberdec",
        "blockheight",
        "block",
        "blockid",
    ),
    "block_hash": ("blockhash", "evtblockhash"),
    "block_timestamp": (
        "blocktimestamp",
        "blocktime",
        "evtblocktime",
        "txattimestamp",
        "blocktimestamputc",
        "blockts",
        "blockunixtime",
        "timestamp",
        "unixtimestamp",
        "blockdatetime",
        "datetime",
        "time",
        "ts",
    ),
    "transaction_hash": (
        "transactionhash",
        "txhash",
        "evttxhash",
        "hash",
        "txid",
        "transactionid",
        "transaction",
        "tx",
    ),
    "transaction_index": ("transactionindex", "txindex", "evttxindex", "txposition", "transactionposition"),
    "log_index": ("logindex", "evtindex", "eventindex", "logposition", "eventlogindex", "evtlogindex"),
    "sender": ("sender", "eventsender", "routeraddress", "senderid", "senderaddress", "swapsender"),
    "amount0": ("amount0", "eventamount0", "eventamount0string", "eventamount0binary", "amount0raw", "rawamount0"),
    "amount1": ("amount1", "eventamount1", "eventamount1string", "eventamount1binary", "amount1raw", "rawamount1"),
    "sqrt_price_x96": (
        "sqrtpricex96",
        "eventsqrtpricex96",
        "eventsqrtpricex96string",
        "eventsqrtpricex96binary",
        "sqrtprice",
    ),
    "liquidity": ("liquidity", "eventliquidity", "eventliquiditystring", "eventliquiditybinary"),
    "tick": ("tick", "eventtick"),
    "fee": ("fee", "eventfee", "swapfee", "lpfee", "feepips"),
    "tx_from": (
        "txfrom",
        "evttxfrom",
        "transactionfrom",
        "transactionfromaddress",
        "originfromaddress",
        "txfromaddress",
        "fromaddress",
        "originalsender",
        "origin",
        "from",
    ),
    "tx_to": (
        "txto",
        "evttxto",
        "transactionto",
        "transactiontoaddress",
        "origintoaddress",
        "txtoaddress",
        "toaddress",
        "to",
    ),
    "removed": ("removed",),
    "contract": ("address", "contractaddress", "srcaddress", "logaddress", "emitter"),
    "event": ("eventname", "event", "eventtype", "name", "evtname"),
    "data": ("data", "logdata"),
    "topics": ("topics", "logtopics"),
    "topic0": ("topic0", "eventhash"),
    "topic1": ("topic1",),
    "topic2": ("topic2",),
}
"""Column -> keys of headers that hold it, the most specific first."""

NESTED_KEYS = frozenset(
    {
        "args",
        "params",
        "decodedlog",
        "decoded",
        "eventparams",
        "eventargs",
        "parameters",
        "returnvalues",
        "inputs",
        "event",
        "log",
        "transactionfields",
        "blockfields",
    }
)
"""Headers of objects (structs, JSON text, dotted names) whose members are columns of the event."""

SWAP_COLUMNS = ("pool_id", "sender", "amount0", "amount1", "sqrt_price_x96", "liquidity", "tick", "fee")
"""What a decoded event brings; a raw log has them in its topics and data."""
REQUIRED_COLUMNS = ("block_number", "transaction_hash", *SWAP_COLUMNS)

CHAIN_NAMES = {
    "ethereum": 1,
    "mainnet": 1,
    "eth": 1,
    "optimism": 10,
    "bnb": 56,
    "unichain": 130,
    "polygon": 137,
    "world": 480,
    "worldchain": 480,
    "soneium": 1868,
    "base": 8453,
    "arbitrum": 42161,
    "arbitrumone": 42161,
    "avalanche": 43114,
    "celo": 42220,
    "ink": 57073,
    "blast": 81457,
    "zora": 7777777,
}


@dataclass(frozen=True)
class Layout:
    """A layout that is recognised by the keys of its headers.

    Attributes:
        name: As users know it.
        keys: All of them are there.
        extra: Further keys of columns that are too general to be trusted elsewhere: column -> key.
    """

    name: str
    keys: frozenset[str]
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unusable:
    """A layout that cannot become swaps, or a file that goes with swaps but holds none."""

    name: str
    keys: frozenset[str]
    without: frozenset[str]
    reason: str
    instead: str


def _keys(words: str) -> frozenset[str]:
    return frozenset(words.split())


LAYOUTS = (
    Layout("cryo events (--event-signature)", _keys("eventid eventsender"), {"pool_id": "eventid"}),
    Layout("cryo logs", _keys("topic0 topic1 topic2 data ndatabytes")),
    Layout("Dune raw logs", _keys("topic0 topic1 topic2 data contractaddress blocktime"), {"log_index": "index"}),
    Layout("HyperSync logs", _keys("topic0 topic1 topic2 data removed")),
    Layout("Etherscan getLogs", _keys("topics data timestamp gasprice")),
    Layout("eth_getLogs", _keys("topics data blocknumber transactionhash removed")),
    Layout("ethereum-etl logs", _keys("topics data blocknumber transactionhash")),
    Layout("raw logs", _keys("topics data")),
    Layout("raw logs", _keys("topic0 topic1 topic2 data")),
    Layout("Dune evt_Swap table", _keys("evttxhash evtindex sqrtpricex96"), {"pool_id": "id"}),
    Layout("rindexer", _keys("contractaddress id amount0 txhash network txindex"), {"pool_id": "id"}),
    Layout("Subsquid", _keys("hash txattimestamp txatblocknumber senderid")),
    Layout("Flipside decoded event logs", _keys("eventindex eventname decodedlog"), {"pool_id": "id"}),
    Layout("Allium decoded logs", _keys("name params topic0 transactionfromaddress"), {"pool_id": "id"}),
    Layout("Envio raw events", _keys("eventname contractname srcaddress params"), {"pool_id": "id"}),
    Layout("collector script", _keys("routeraddress originalsender sqrtpricex96")),
    Layout("decoded events", _keys("args"), {"pool_id": "id"}),
    Layout("decoded events", _keys("params"), {"pool_id": "id"}),
    Layout("decoded events", _keys("returnvalues"), {"pool_id": "id"}),
    Layout("decoded events", _keys("contractaddress id sqrtpricex96 liquidity"), {"pool_id": "id"}),
    Layout("apeagent's own columns", _keys("poolid blocktimestamp transactionhash sqrtpricex96 liquidity")),
)

_RAW_EXPORT = (
    "Export the Swap events themselves instead (for example the raw logs of the PoolManager with cryo, HyperSync or "
    "eth_getLogs, or Dune's uniswap_v4 PoolManager_evt_Swap table)"
)

UNUSABLE = (
    Unusable(
        "Dune dex.trades",
        _keys("tokenboughtamount tokensoldamount"),
        _keys("sqrtpricex96"),
        "it has no price, no liquidity and no tick",
        "Query uniswap_v4_<chain>.PoolManager_evt_Swap instead of dex.trades",
    ),
    Unusable(
        "a Uniswap subgraph answer",
        _keys("amount0 amount1 amountusd sqrtpricex96"),
        frozenset(),
        "its amounts are in human units with the pool's signs, and it has no liquidity of the swap",
        _RAW_EXPORT,
    ),
    Unusable(
        "a Uniswap V3 table",
        _keys("poolcontractaddress"),
        frozenset(),
        "a V3 pool is a contract; the swaps of a V4 pool come from the PoolManager and carry a pool id of 32 bytes",
        _RAW_EXPORT,
    ),
    Unusable(
        "a Uniswap V3 table",
        _keys("recipient sqrtpricex96"),
        _keys("poolid"),
        "only V3 swaps have a recipient; V4 events carry a pool id and a fee",
        _RAW_EXPORT,
    ),
    Unusable(
        "price candles",
        _keys("open high low close"),
        frozenset(),
        "candles are not swaps",
        _RAW_EXPORT,
    ),
    Unusable(
        "ModifyLiquidity events",
        _keys("ticklower tickupper liquiditydelta"),
        _keys("sqrtpricex96"),
        "these events change liquidity; they are not swaps",
        _RAW_EXPORT,
    ),
)

COMPANIONS = (
    Unusable("blocks", _keys("number timestamp"), _keys("amount0 data topic0 topics"), "", ""),
    Unusable(
        "blocks", _keys("blocknumber timestamp"), _keys("transactionhash txhash hash amount0 data topics"), "", ""
    ),
    Unusable(
        "blocks", _keys("blocknumber blocktimestamp"), _keys("transactionhash txhash hash amount0 data topics"), "", ""
    ),
    Unusable(
        "decoded logs without block numbers",
        _keys("id sender amount0 amount1 sqrtpricex96"),
        _keys("blocknumber block evtblocknumber txhash transactionhash hash transaction"),
        "",
        "",
    ),
    Unusable(
        "transactions",
        _keys("hash nonce gasprice"),
        _keys("amount0 data topics topic0"),
        "",
        "",
    ),
    Unusable("transactions", _keys("nonce gaslimit value"), _keys("amount0 topics topic0"), "", ""),
)
"""Files that tools write beside the swaps. Only blocks are used, and only where the swaps have no time."""


def key(header: str) -> str:
    """A header without case, underscores and other marks."""
    return re.sub(r"[^a-z0-9]", "", header.lower())


def layout_of(keys: Collection[str]) -> Layout | None:
    """The first layout all of whose keys are there."""
    return next((layout for layout in LAYOUTS if layout.keys <= set(keys)), None)


def unusable(keys: Collection[str], table: tuple[Unusable, ...]) -> Unusable | None:
    """The first entry of a table that describes these headers."""
    found = set(keys)
    return next((entry for entry in table if entry.keys <= found and not entry.without & found), None)
