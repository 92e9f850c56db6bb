"""Which evidence refuses an archive, and the likeliest cause in words.

Three kinds of evidence. A row can be impossible by itself (amounts of one sign, a tick that is not that of the price).
A file or a day can be unlike swaps as a whole (the price column is that of the swap before). And in an archive without
gaps, each row must also follow from the row before. A complete, right archive shows none; a right archive with missing
swaps shows gaps, which are told and not refused.
"""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.chain.archive.clock import ChainClock
from apeagent_pipeline.chain.archive.evidence import ROUNDED_COLUMNS, Judged
from apeagent_pipeline.chain.archive.normalise import FILE
from apeagent_pipeline.chain.archive.streams import LINE

_FEWEST_ROWS = 20
_LEAST_FITTING = 0.5
_FEWEST_LINKS = 50
_MOSTLY = 0.9
_FEWEST_DOUBLES = 12
_SUSPICIOUS = (
    "other_fee",
    "flipped",
    "exchanged",
    "exchanged_flipped",
    "inverse",
    "price_before",
    "liquidity_before",
    "one_sign",
    "units",
    "worse",
    "tick",
    "fee",
    "rounded",
    "inexact",
)


def _groups(rows: pl.DataFrame) -> Iterator[tuple[int, date, slice | np.ndarray]]:
    """File, day and places of the rows of each, in the order in which they appear."""
    if not rows.height:
        return
    if rows[FILE].min() == rows[FILE].max() and rows["day"].min() == rows["day"].max():
        yield rows[FILE][0], rows["day"][0], slice(None)
        return
    places = rows.select(FILE, "day", at=pl.int_range(pl.len())).group_by(FILE, "day", maintain_order=True).agg("at")
    for file, day, at in zip(places[FILE], places["day"], places["at"], strict=True):
        yield file, day, at.to_numpy()


class Evidence:
    """The evidence of an archive, added up by file and day: its size does not grow with the rows."""

    def __init__(self) -> None:
        self._sums: list[dict[str, Any]] = []
        self._suspects: list[pl.DataFrame] = []
        self.exact = 0
        self.compared = 0

    def add(self, judged: Judged) -> None:
        """Count the rows of a day and keep those that may be denied."""
        self.exact += judged.exact
        self.compared += judged.compared
        rows, flags = judged.rows, judged.flags
        unfit = flags["informative"] & ~flags["fits"]
        for file, day, at in _groups(rows):
            places = np.arange(rows.height)[at]
            counts = {name: int(np.count_nonzero(values[at])) for name, values in flags.items()}
            lines = {
                "unfit_line": next((rows[LINE][int(place)] for place in places[unfit[at]][:1]), None),
                "first_line": rows[LINE][int(places[0])],
            }
            self._sums.append({FILE: file, "day": day, "rows": len(places)} | counts | lines)
        suspicious = np.logical_or.reduce([flags[name] for name in _SUSPICIOUS])
        if gapless(judged.count("linked"), judged.count("unlinked")):
            suspicious |= flags["broken"]
        places = np.flatnonzero(suspicious)
        if len(places) or not self._suspects:
            shown = {name: pl.Series(name, values[places]) for name, values in flags.items()}
            self._suspects.append(rows[places].with_columns(**shown))

    @property
    def sums(self) -> pl.DataFrame:
        """One row a file and day: the number of rows, and of rows that have each flag."""
        return pl.DataFrame(self._sums, infer_schema_length=None)

    @property
    def suspects(self) -> pl.DataFrame:
        """Rows that may be denied."""
        return pl.concat(self._suspects)


def gapless(linked: int, unlinked: int) -> bool:
    """Whether every swap that can tell starts at the price of the swap before it, silences aside."""
    return linked >= _FEWEST_LINKS and not unlinked


class Denial(NamedTuple):
    """Rows that arithmetic denies, and the likeliest cause in words.

    Attributes:
        rows: `FILE` and `LINE` of them.
        cause: What they are.
        remedy: What to do.
        detail: What the first row shows.
    """

    rows: pl.DataFrame
    cause: str
    remedy: str
    detail: str = ""


_ALTERNATIVES = {
    "flipped": (
        "amounts have the pool's signs: the importer expects the swapper's, negative for what is paid in",
        "Flip them with APEAGENT_SWAPS_SIGNS=pool",
    ),
    "unflipped": (
        "amounts already have the swapper's signs, and APEAGENT_SWAPS_SIGNS=pool flips them",
        "Unset APEAGENT_SWAPS_SIGNS",
    ),
    "exchanged": ("amount0 and amount1 are exchanged: the pool's token0 is {token0}", "Exchange the two columns"),
    "exchanged_flipped": (
        "amount0 and amount1 are exchanged and have the pool's signs: the pool's token0 is {token0}",
        "Exchange the two columns and set APEAGENT_SWAPS_SIGNS=pool",
    ),
    "inverse": (
        "sqrt_price_x96 is the price of the other direction: it must be token1 per token0 ({token1} per {token0})",
        "Export sqrt_price_x96 as it stands in the event",
    ),
    "other_fee": (
        "fee is not what the swaps paid: their amounts tell that it was {fee} hundredths of a basis point",
        "Export fee as it stands in the event",
    ),
    "price_before": (
        "sqrt_price_x96 and tick are those before the swap, or of the row before: the event gives them after it",
        "Export them from the Swap event, not from the state before it",
    ),
}


def denials(evidence: Evidence, pool: PoolSpec, flips: bool) -> list[Denial]:
    """All reasons to refuse an archive.

    Args:
        evidence: Of all its days.
        pool: Whose swaps these are.
        flips: Whether the settings flip the signs.
    """
    sums, judged = evidence.sums, evidence.suspects
    wholesale = _wholesale(sums, judged, pool, flips)
    if wholesale:
        return wholesale
    # A single row is held to be another reading only where it is impossible or unlikely as it stands.
    found = [Denial(judged.filter(mask), *words) for mask, words in _row_rules(pool, flips)]
    found.append(_digits(judged, evidence.exact, evidence.compared))
    found += _rounded_columns(sums)
    if gapless(int(sums["linked"].sum()), int(sums["unlinked"].sum())):
        cause = "contradicts the price of the row before, in an archive whose other rows all follow from each other"
        found.append(Denial(judged.filter("broken"), cause, "Export these rows again; a row may be missing or changed"))
    return [denial for denial in found if denial.rows.height]


def _row_rules(pool: PoolSpec, flips: bool) -> list[tuple[pl.Expr, tuple[str, str]]]:
    flipped = _ALTERNATIVES["unflipped" if flips else "flipped"]
    exchanged = tuple(words.format(token0=pool.token0.symbol) for words in _ALTERNATIVES["exchanged"])
    raw = "Export the amounts of the Swap event in raw units"
    return [
        (
            pl.col("one_sign"),
            ("amounts without opposite signs: one token is paid in (negative), the other received", raw),
        ),
        (pl.col("flipped"), flipped),
        (pl.col("exchanged"), (exchanged[0], exchanged[1])),
        (
            pl.col("units") & ~pl.col("exchanged"),
            (
                f"amounts whose ratio is far from the price: they are not raw units ({pool.token0.symbol} has "
                f"{pool.token0.decimals} decimals, {pool.token1.symbol} {pool.token1.decimals}), or the tokens are "
                "exchanged",
                raw,
            ),
        ),
        (
            pl.col("worse") & ~pl.col("units") & ~pl.col("one_sign") & ~pl.col("fee"),
            ("amounts that are worse than the worst price of the swap allows", "Export these rows again"),
        ),
        (
            pl.col("tick"),
            ("a tick that contradicts its sqrt_price_x96, or an impossible price", "Export both from the Swap event"),
        ),
        (
            pl.col("fee"),
            (
                f"a fee other than the pool's, {pool.fee} hundredths of a basis point",
                "Export fee as it stands in the event (500 is 0.05 %), and check APEAGENT_POOL_ID",
            ),
        ),
        (
            pl.col("rounded"),
            (
                "a sqrt_price_x96 whose last digits are lost: it went through a floating-point number or a spreadsheet",
                "Export it as text (SQL: CAST(... AS VARCHAR), pandas: dtype=str)",
            ),
        ),
    ]


def _wholesale(sums: pl.DataFrame, suspects: pl.DataFrame, pool: PoolSpec, flips: bool) -> list[Denial]:
    """Files and days that are, as a whole, something else than swaps as they should be."""
    for group in (FILE, "day"):
        found: list[Denial] = []
        flags = [
            name
            for name, kind in sums.schema.items()
            if kind.is_integer() and name not in {FILE, "unfit_line", "first_line"}
        ]
        grouped = sums.group_by(group, maintain_order=True).agg(
            pl.col(flags).sum(), pl.col(FILE).first().alias("file"), pl.col("unfit_line").drop_nulls().first()
        )
        for row in grouped.iter_rows(named=True):
            best = max((name for name in _ALTERNATIVES if name != "unflipped"), key=lambda name: row[name])
            if best == "exchanged" and row["inverse"] >= row[best] and row["unlikely"] * 2 > row["rows"]:
                best = "inverse"
            if row["fee"] * 2 > row["rows"]:
                continue  # The fee is wrong, and with it every test that counts with it.
            if row[best] > row["fits"] and row[best] * 2 > row["informative"]:
                words = _ALTERNATIVES["unflipped" if flips and best == "flipped" else best]
                cause, remedy = (
                    w.format(token0=pool.token0.symbol, token1=pool.token1.symbol, fee=pool.fee) for w in words
                )
                found.append(Denial(suspects.filter(pl.col(best) & (pl.col(group) == row[group])), cause, remedy))
            elif _is_incoherent(row):
                cause = (
                    "amounts, sqrt_price_x96, liquidity and fee do not belong together: within one range of liquidity "
                    "the amount paid less the fee must move the price to where it is "
                    f"({row['fits']} of {row['informative']} rows do)"
                )
                place = pl.DataFrame({FILE: [row["file"]], LINE: [row["unfit_line"]]})
                found.append(Denial(place, cause, "Check that the columns are those of one event, in raw units"))
        if found:
            return found
    if sums["liquidity_before"].sum() > max(sums["liquidity_given"].sum(), 2):
        cause = "liquidity is that of the row before"
        return [Denial(suspects.filter("liquidity_before"), cause, "Export it from the event of the same row")]
    return []


def _is_incoherent(row: dict[str, int]) -> bool:
    few = row["fits"] < _LEAST_FITTING * row["informative"]
    return row["informative"] >= _FEWEST_ROWS and few and row["units"] * 2 <= row["informative"]


def _digits(judged: pl.DataFrame, exact: int, compared: int) -> Denial:
    inexact = judged.filter("inexact")
    cause = (
        "amounts or liquidity that follow from the row before almost, but not to the last digit "
        f"({compared - exact} of {compared} pairs): digits were lost in a floating-point number or a spreadsheet"
    )
    enough = compared >= 5 and exact * 2 < compared
    return Denial(inexact if enough else inexact.clear(), cause, "Export all amounts as text")


class People:
    """Whether the columns for the calling contract and for the signer are what they should be.

    An account cannot call the PoolManager itself: ``sender`` is a router or another contract, of which there are few.
    """

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Count the senders and signers of a day."""
        first = rows.select(FILE, LINE).head(1)
        self._parts.append(
            rows.select(
                rows=pl.len(),
                signed=pl.col("tx_from").count(),
                same=(pl.col("sender") == pl.col("tx_from")).sum(),
                senders=pl.col("sender").n_unique(),
                signers=pl.col("tx_from").drop_nulls().hash(1).n_unique(),
            ).hstack(first)
        )

    def denial(self) -> Denial | None:
        """The reason to refuse the archive, if there is one."""
        days = pl.concat(self._parts)
        rows, signed, same, senders, signers = days.select("rows", "signed", "same", "senders", "signers").sum().row(0)
        remedy = "Export sender as it stands in the event, and the account that signed the transaction as tx_from"
        if signed >= 5 and same > _MOSTLY * signed:
            return Denial(days, "sender is the account that signed the transaction, not the caller of the pool", remedy)
        if signed >= _FEWEST_LINKS and senders > 3 * signers and senders * 5 > signed:
            return Denial(days, "sender and tx_from are exchanged: there are more senders than signers", remedy)
        if rows >= 2 * _FEWEST_LINKS and not signed and senders * 2 > rows and senders > len(self._parts):
            cause = f"sender differs in most rows ({senders} of {rows}), as signing accounts do; a pool has few callers"
            return Denial(days, cause, remedy)
        return None


def _rounded_columns(sums: pl.DataFrame) -> list[Denial]:
    return [
        Denial(
            sums.filter(pl.col(f"double_{name}") > 0).select(FILE, pl.col("first_line").alias(LINE)).head(1),
            f"{name} whose last digits are lost: all {sums[f'long_{name}'].sum()} large values that were looked at are "
            "floating-point numbers",
            "Export it as text (SQL: CAST(... AS VARCHAR), pandas: dtype=str)",
        )
        for name in ROUNDED_COLUMNS
        if sums[f"double_{name}"].sum() == sums[f"long_{name}"].sum() >= _FEWEST_DOUBLES
    ]


def off_clock(judged: Judged, rows: pl.DataFrame, clock: ChainClock, chain_id: int) -> Denial | None:
    """Block times that are not those of the chain, with the likeliest cause.

    Args:
        judged: Of the rows.
        rows: The rows themselves: ``block_number`` and ``block_timestamp``.
        clock: Of the chain.
        chain_id: Named in the cause.
    """
    wrong = pl.Series(judged.flags["clock"], dtype=pl.Boolean())
    if not wrong.any():
        return None
    off = rows.filter(wrong).select(
        pl.col("block_number"), pl.col("block_timestamp"), pl.col("block_timestamp").dt.epoch("s").alias("seconds")
    )
    difference = off["seconds"] - clock.seconds(off["block_number"])
    first = int(difference[0])
    right = off["block_timestamp"][0] - timedelta(seconds=first)
    same = difference.n_unique() == 1
    if same and first % 900 == 0 and abs(first) <= 50_400:
        sign = "+" if first > 0 else "-"
        zone = f"{sign}{abs(first) // 3600:02d}:{abs(first) % 3600 // 60:02d}"
        cause = f"times that are local time without a zone (UTC{zone}), not UTC"
        remedy = f"Export them in UTC, or append the offset {zone} to each"
    elif same and off.height > 1:
        cause = (
            f"times that are all {first:+d} seconds away from those of their blocks: of another source, or the block "
        )
        cause += "numbers are those of another chain"
        remedy = "Export the timestamp of the block itself and the block number of this chain"
    elif off["seconds"].n_unique() == 1 and off.height > 1:
        cause, remedy = (
            "one and the same time in every row: the time of collection, not of the block",
            "Leave the column out",
        )
    else:
        cause, remedy = "times that are not those of their blocks", "Export the timestamp of the block itself"
    detail = f": block {off['block_number'][0]} of chain {chain_id} is of {right:%Y-%m-%d %H:%M:%S} UTC"
    remedy += "; without a time column, times are computed from block numbers"
    return Denial(judged.rows.filter(wrong), cause, remedy, detail)
