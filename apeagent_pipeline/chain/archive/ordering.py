"""Each swap once, and in the order of the chain.

Archives repeat rows, overlap and are not sorted. Equal swaps are merged. The order inside a block follows the log
index, else the transaction index, else the arithmetic: a swap comes after the one at whose price it starts. File order
decides only where arithmetic has proven it elsewhere in the archive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from apeagent_pipeline.chain.archive import arithmetic
from apeagent_pipeline.chain.archive.normalise import FILE, NORMAL_SCHEMA
from apeagent_pipeline.chain.archive.streams import LINE

_ORDER = "_order"
_IDENTITY = [
    "block_number",
    "transaction_hash",
    "sender",
    "amount0",
    "amount1",
    "sqrt_price_x96",
    "liquidity",
    "tick",
    "fee",
]
"""What no two swaps of a pool share: the price moves with each, so that even equal trades differ in it."""
_LARGEST_GROUP = 256
_FILE_ROWS = 1 << 44


@dataclass
class OrderEvidence:
    """How often the arithmetic confirms the order of the file inside a block without log index.

    Attributes:
        confirmed: Blocks whose order in the file is the proven one.
        contradicted: Blocks whose proven order is another; they were put in it.
        open: Rows of blocks whose order nothing proves.
        first_open: One of them: file, line.
    """

    confirmed: int = 0
    contradicted: int = 0
    open: int = 0
    first_open: tuple[int, int] | None = None


@dataclass
class Ordered:
    """The rows of a day, each once and in order, and the rows that cannot be used.

    Attributes:
        rows: NORMAL_SCHEMA, sorted by (block_number, log_index).
        duplicates: Rows that were merged into equal ones.
        transactions: How many different transactions there are.
        wrong: Cause of refusal -> the rows that it concerns.
    """

    rows: pl.DataFrame
    duplicates: int = 0
    transactions: int = 0
    wrong: dict[str, pl.DataFrame] = field(default_factory=dict)

    def refuse(self, rows: pl.DataFrame, cause: str) -> None:
        """Note rows that cannot be ordered or told apart."""
        if rows.height:
            self.wrong[cause] = rows.select(FILE, LINE)


def in_order(rows: pl.DataFrame, ranks: Mapping[int, tuple[int, bool]], evidence: OrderEvidence) -> Ordered:
    """Merge and sort the rows of a day.

    Args:
        rows: NORMAL_SCHEMA, in any order.
        ranks: File -> (its place among the files, whether its rows run backwards in time).
        evidence: Counts over all days; added to.
    """
    ordered = Ordered(rows)
    _merge(ordered, ranks)
    table = ordered.rows
    if not ascends(table):
        table = ordered.rows = _with_order(table, ranks)
        table = table.sort("block_number", "log_index", "transaction_index", _ORDER)
    _check_blocks(ordered, table)
    unknown = table["log_index"].null_count()
    if 0 < unknown < table.height:
        mixed = (pl.col("log_index").is_null().any() & pl.col("log_index").is_not_null().any()).over("block_number")
        ordered.refuse(
            table.filter(mixed & pl.col("log_index").is_null()),
            "has no log_index although other rows of its block have one. Export log_index for all rows",
        )
    table = _by_price(table, ordered, evidence)
    if unknown:
        positions = pl.int_range(pl.len(), dtype=pl.Int64()).over("block_number")
        table = table.with_columns(pl.coalesce("log_index", positions).alias("log_index"))
    ordered.rows = table.select(NORMAL_SCHEMA.names())
    return ordered


def _merge(ordered: Ordered, ranks: Mapping[int, tuple[int, bool]]) -> None:
    rows = ordered.rows
    # Most rows are told apart by few columns; the others are compared in all of them.
    transaction = rows["transaction_hash"].hash(1)
    ordered.transactions = transaction.n_unique()
    if ordered.transactions == rows.height:
        return
    trade = transaction ^ rows["sqrt_price_x96"].hash(2)
    if trade.n_unique() == rows.height:
        return
    rows = _with_order(rows, ranks)
    repeated = trade.is_duplicated()
    several = rows.filter(repeated)
    nothing = (pl.col("amount0") == "0") & (pl.col("amount1") == "0")
    keys: list[str | pl.Expr] = [*_IDENTITY, pl.when(nothing).then("log_index").alias("_empty_swap")]
    others = [name for name in several.columns if name not in _IDENTITY]
    counted = several.with_columns(
        pl.col("log_index").n_unique().over(keys).alias("_indexes")
        - pl.col("log_index").is_null().any().over(keys).cast(pl.UInt32())
    )
    ordered.refuse(
        counted.filter((pl.col("_indexes") > 1) & ~pl.struct(keys).is_first_distinct()),
        "repeats the swap of another row under another log_index, as after a reorganisation or where log_index "
        "counts rows. Remove the one that the chain does not have",
    )
    _refuse_differing(ordered, several, keys)
    merged = (
        several.sort(_ORDER)
        .group_by(keys, maintain_order=True)
        .agg(pl.col(name).drop_nulls().first() for name in others)
        .select(rows.columns)
    )
    ordered.duplicates = several.height - merged.height
    ordered.rows = pl.concat([rows.filter(~repeated), merged])


def _with_order(rows: pl.DataFrame, ranks: Mapping[int, tuple[int, bool]]) -> pl.DataFrame:
    """With the place of each row in the archive in `_ORDER`."""
    if _ORDER in rows.columns:
        return rows
    if rows.height and rows[FILE].min() == rows[FILE].max():
        rank, backwards = ranks[rows[FILE][0]]
        line = -pl.col(LINE) if backwards else pl.col(LINE)
        return rows.with_columns((line + rank * _FILE_ROWS).alias(_ORDER))
    frame = pl.DataFrame(
        {
            FILE: list(ranks),
            "_rank": [rank for rank, _ in ranks.values()],
            "_backwards": [backwards for _, backwards in ranks.values()],
        },
        schema={FILE: pl.Int32(), "_rank": pl.Int64(), "_backwards": pl.Boolean()},
    )
    line = pl.when(pl.col("_backwards")).then(-pl.col(LINE)).otherwise(pl.col(LINE))
    return (
        rows.join(frame, on=FILE, how="left", maintain_order="left")
        .with_columns((pl.col("_rank") * _FILE_ROWS + line).alias(_ORDER))
        .drop("_rank", "_backwards")
    )


def ascends(rows: pl.DataFrame, after: tuple[int, int] = (-1, -1)) -> bool:
    """Whether each row has a log index and a later place, (block_number, log_index), than the row before it.

    Args:
        rows: NORMAL_SCHEMA.
        after: Place before the first row.
    """
    if rows["log_index"].null_count():
        return False
    block, index = (rows[name].to_numpy() for name in ("block_number", "log_index"))
    if not len(block):
        return True
    step = np.diff(block)
    later = (step > 0) | ((step == 0) & (np.diff(index) > 0))
    return bool(later.all()) and after < (int(block[0]), int(index[0]))


def _refuse_differing(ordered: Ordered, several: pl.DataFrame, keys: list[str | pl.Expr]) -> None:
    for name in ("block_hash", "block_timestamp", "transaction_index", "tx_from", "tx_to"):
        values = pl.col(name).drop_nulls().n_unique().over(keys)
        ordered.refuse(
            several.filter((values > 1) & ~pl.struct(keys).is_first_distinct()),
            f"is the swap of another row with another {name}: two exports of it differ. Remove the wrong one",
        )


def _check_blocks(ordered: Ordered, table: pl.DataFrame) -> None:
    """Refuse rows that contradict others of their block or transaction.

    Args:
        ordered: Takes what is wrong; its rows are named in the order in which they were read.
        table: The same rows, sorted: in a right archive, a look at the row before each decides.
    """
    suspected = _suspected(table, ordered.transactions)
    rows = ordered.rows
    again = "two versions of a reorganised block, or two chains in one file. Keep the final one"
    for name in ("block_hash", "block_timestamp"):
        if suspected[name]:
            values = pl.col(name).drop_nulls().n_unique().over("block_number")
            first = pl.col(name).drop_nulls().first().over("block_number")
            ordered.refuse(
                rows.filter((values > 1) & (pl.col(name) != first)),
                f"has another time or hash ({name}) than other rows of the same block: {again}",
            )
    if suspected["transaction_hash"]:
        blocks = pl.col("block_number").n_unique().over("transaction_hash")
        ordered.refuse(
            rows.filter((blocks > 1) & ~pl.col("transaction_hash").is_first_distinct()),
            "has the transaction of another row in another block: a transaction is in one block only. Keep the "
            "final one",
        )
    if suspected["transaction_index"]:
        indexes = pl.col("transaction_index").drop_nulls().n_unique().over("transaction_hash")
        hashes = pl.col("transaction_hash").n_unique().over("block_number", "transaction_index")
        ordered.refuse(
            rows.filter((indexes > 1) | ((hashes > 1) & pl.col("transaction_index").is_not_null())),
            "has a transaction_index that does not belong to its transaction_hash: other rows of the block tell "
            "otherwise",
        )
    if suspected["log_index"]:
        twice = pl.struct("block_number", "log_index").is_duplicated() & pl.col("log_index").is_not_null()
        ordered.refuse(
            rows.filter(twice).sort(_ORDER).filter(~pl.struct("block_number", "log_index").is_first_distinct()),
            "has the block and log_index of another, different row. log_index must count the logs of the whole block",
        )


def _suspected(table: pl.DataFrame, transactions: int) -> dict[str, bool]:
    """Which columns may contradict each other; where none does, each row but the first of a run repeats the one before.

    Args:
        table: Rows sorted by (block_number, log_index, transaction_index).
        transactions: How many different transactions they have.
    """
    block = table["block_number"].to_numpy()
    at = np.flatnonzero(block[1:] == block[:-1]) + 1
    names = ("block_hash", "block_timestamp", "transaction_hash", "transaction_index", "log_index")
    rows, before = table.select(names)[at], table.select(names)[at - 1]
    other = {name: rows[name].ne_missing(before[name]) for name in names}
    rises = {name: (rows[name] > before[name]).fill_null(False) for name in ("transaction_index", "log_index")}
    starts = other["transaction_hash"]
    found = {
        "block_hash": other["block_hash"].any(),
        "block_timestamp": other["block_timestamp"].any(),
        # Each transaction is one run of rows: then it lies in one block.
        "transaction_hash": table.height - int((~starts).sum()) > transactions,
        "transaction_index": ((~starts & other["transaction_index"]) | (starts & ~rises["transaction_index"])).any(),
        "log_index": (~rises["log_index"]).any(),
    }
    found["transaction_index"] |= found["transaction_hash"]
    return {name: suspected and table[name].null_count() < table.height for name, suspected in found.items()}


def _by_price(table: pl.DataFrame, ordered: Ordered, evidence: OrderEvidence) -> pl.DataFrame:
    """Put rows of one block in the order that their prices prove."""
    block = table["block_number"].to_numpy()
    changes = np.r_[True, block[1:] != block[:-1]]
    if table["log_index"].null_count():
        elsewhere = pl.col("transaction_index").ne_missing(pl.col("transaction_index").shift(1))
        changes |= table.select(pl.col("log_index").is_null() & elsewhere).to_series().to_numpy()
    group = np.cumsum(changes)
    size = np.bincount(group)[group]
    at = np.flatnonzero((size > 1) & (size <= _LARGEST_GROUP))
    if not len(at):
        return table
    ties = table.select(FILE, LINE, "log_index", "fee", *arithmetic.INTEGERS)[at].with_columns(
        pl.Series("_group", group[at])
    )
    depth, proven = _depths(ties)
    given = ties.select(pl.int_range(pl.len()).over("_group")).to_series().to_numpy()
    agrees = pl.DataFrame({"_group": ties["_group"], "differs": depth != given, "proven": proven})
    groups = agrees.group_by("_group", maintain_order=True).agg(pl.col("differs").any(), pl.col("proven").all())
    other = agrees.select((pl.col("differs").any() & pl.col("proven").all()).over("_group"))["differs"].to_numpy()
    indexed = ties["log_index"].is_not_null().to_numpy()
    ordered.refuse(
        ties.filter(pl.Series(other & indexed)),
        "has a log_index that contradicts the prices: each swap of the block starts at the price at which another "
        "ended, in another order. Export log_index as the chain counts it",
    )
    free = groups.join(ties.filter(pl.Series(~indexed)).select("_group").unique(), on="_group", how="semi")
    evidence.confirmed += free.filter(pl.col("proven") & ~pl.col("differs")).height
    evidence.contradicted += free.filter(pl.col("proven") & pl.col("differs")).height
    left = ties.filter(pl.Series(~proven & ~indexed))
    evidence.open += left.height
    if left.height and evidence.first_open is None:
        evidence.first_open = left.select(FILE, LINE).row(0)
    place = np.where(proven & ~indexed, depth, given)
    if (place == given).all():
        return table
    order = np.arange(table.height)
    order[at] = at[np.lexsort((place, group[at]))]
    return table[order]


def _depths(ties: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Place of each row in its group by linked prices, and whether the links prove the order of the whole group."""
    swaps = arithmetic.Swaps.of(ties)
    reading = arithmetic.read(swaps)
    count = ties.height
    frame = pl.DataFrame({"_group": ties["_group"], "at": np.arange(count), "price": swaps.price})
    pairs = frame.join(frame.select("_group", pl.col("at").alias("by"), pl.col("price").alias("earlier")), on="_group")
    pairs = pairs.filter(pl.col("at") != pl.col("by"))
    later, sooner = pairs["at"].to_numpy(), pairs["by"].to_numpy()
    links = arithmetic.follows(reading, pairs["earlier"].to_numpy(), later) & reading.fits[later]
    later, sooner = later[links], sooner[links]
    before = np.arange(count)
    before[later] = sooner
    depth = np.zeros(count, dtype=np.int64)
    depth[later] = 1
    root = before.copy()
    for _ in range(_LARGEST_GROUP.bit_length()):
        depth = depth + np.where(root != np.arange(count), depth[root], 0)
        root = root[root]
    links_of = np.bincount(later, minlength=count)
    followers = np.bincount(sooner, minlength=count)
    check = pl.DataFrame(
        {"_group": ties["_group"], "links": links_of, "followers": followers, "depth": depth, "at": np.arange(count)}
    )
    proven = check.select(
        (
            (pl.col("links").max() <= 1)
            & (pl.col("followers").max() <= 1)
            & (pl.col("links").sum() == pl.len() - 1)
            & (pl.col("depth").max() == pl.len() - 1)
            & (pl.col("depth").n_unique() == pl.len())
        ).over("_group")
    ).to_series()
    return depth, proven.to_numpy()
