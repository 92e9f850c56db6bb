"""Numbers as people, the source document and its agent print them, and the values that a reader gets back.

A prompt of numbers alone is decided by what it prints, never by decimals that it does not show: every number of a row
is replaced by the printed one before its words are chosen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.distillation.market_states import TRENDS, StateWords
from apeagent_pipeline.distillation.portfolios import portfolio_word

_FAR_FACTORS = (0.2, 25.0)
_FAR_PRICES = (0.3, 3.0)
_FIXED_SHARE = 0.5


@dataclass(frozen=True)
class VolatilityFormat:
    """A way to print a volatility.

    Attributes:
        bps: Basis points in its unit.
        decimals: How many decimals are printed, drawn at random.
        name: Of the unit.
        units: What stands behind the number, drawn at random.
        copied: How many decimals and which unit a draft copies; without the point they are whole basis points.
    """

    bps: float
    decimals: tuple[int, ...]
    name: str
    units: tuple[str, ...] = ("",)
    copied: tuple[int, str] = (2, "%")

    def copy(self, text: str) -> str:
        """The printed volatility as a draft copies it; a unit behind the number is left out."""
        decimals, unit = self.copied
        return cut_off(text.split(maxsplit=1)[0].rstrip("%bps"), decimals) + unit


FRACTION = VolatilityFormat(1e4, (3, 4, 4, 4, 5, 6), "fraction", copied=(4, ""))
PER_CENT = VolatilityFormat(100.0, (1, 2, 2, 3), "percent", ("%", "%", " %", " %", " per cent"))
BASIS_POINTS = VolatilityFormat(1.0, (0, 0, 1), "bps", (" bps", " bps", "bps", " basis points"), (0, "bps"))
BARE_PER_CENT = VolatilityFormat(100.0, (2, 2, 3, 4), "percent")
"""The agent's: per cent without a sign."""
_DRAWN_FORMATS = (FRACTION, FRACTION, FRACTION, PER_CENT, PER_CENT, BASIS_POINTS, BASIS_POINTS)

AGENT_TICK_BPS = 10.0
"""A tick of the agent's sentence is a tenth of a per cent; a tick of the pool is one basis point."""


def token_text(amount: float) -> str:
    """An amount of a token as people write it: no exponent, no trailing zeros."""
    return np.format_float_positional(amount, trim="-")


def cut_off(text: str, decimals: int) -> str:
    """A printed number with that many decimals: the others cut off, missing ones filled with zeros."""
    whole, _, digits = text.replace(",", "").partition(".")
    return f"{whole}.{digits[:decimals]:0<{decimals}}" if decimals else whole


def stretch(states: pl.DataFrame, share: float, rng: np.random.Generator) -> pl.DataFrame:
    """Multiply price, change and volatility of a share of the rows by drawn factors: far-out numbers occur too."""
    far = rng.uniform(size=states.height) < share
    low, high = np.log([_FAR_FACTORS, _FAR_FACTORS, _FAR_PRICES]).T
    factors = np.where(far[:, None], np.exp(rng.uniform(low, high, (states.height, 3))), 1.0)
    return states.with_columns(
        price=pl.col("price") * factors[:, 2],
        change_bps=pl.col("change_bps") * factors[:, 0],
        change_ticks=pl.col("change_ticks") * factors[:, 0],
        volatility_bps=pl.col("volatility_bps") * factors[:, 1],
    )


def print_row(row: Mapping[str, float], is_agent: bool, rng: np.random.Generator | None) -> dict[str, object]:
    """The texts of one row's numbers, and the values that a reader of them gets.

    Args:
        row: price, volume_usdc, volatility_bps, change_ticks, eth, usdc.
        is_agent: Whether the agent's units are printed.
        rng: Draws the formats; None: those of the source document (two decimals, four for fraction and ticks).

    Returns:
        ``price_text`` and so on, and the values under the names of ``row``; ``change_bps`` too.
    """
    draw: Callable[..., int] = (
        (lambda first, *_: first) if rng is None else (lambda *options: options[rng.integers(len(options))])
    )
    commas = rng is not None and rng.uniform() < 0.2
    unit = AGENT_TICK_BPS if is_agent else 1.0
    style = (
        BARE_PER_CENT if is_agent else FRACTION if rng is None else _DRAWN_FORMATS[rng.integers(len(_DRAWN_FORMATS))]
    )
    price = _fixed(row["price"], draw(2, 2, 1, 0), commas)
    volatility = _volatility_text(row["volatility_bps"] / style.bps, style, rng)
    change = _fixed(row["change_ticks"] / unit, draw(4, 4, 2, 1, *([] if is_agent else [0])))
    if rng is not None and rng.uniform() < 0.15 and not change.startswith("-"):
        change = f"+{change}"
    if is_agent:
        eth, usdc = _fixed(row["eth"], 1), _fixed(row["usdc"], 1)
    else:
        eth, usdc = token_text(row["eth"]), f"{row['usdc']:,.2f}" if commas else token_text(row["usdc"])
    return {
        "price_text": price,
        "volume_text": _fixed(row["volume_usdc"], draw(2, 0), commas),
        "vol_text": volatility + style.units[draw(*range(len(style.units)))],
        "vol_bare": volatility,
        "vol_unit": style.name,
        "change_text": change,
        "copied_volatility": style.copy(volatility),
        "copied_change": cut_off(change, 1) + " tenths" if is_agent else cut_off(change, 0),
        "eth_text": eth,
        "usdc_text": usdc,
        "price": _read(price),
        "volatility_bps": round(_read(volatility) * style.bps, 6),
        "change_ticks": round(_read(change) * unit, 6),
        "change_bps": round(_read(change) * unit, 6),
        "eth": _read(eth),
        "usdc": _read(usdc),
    }


def printed_places(row: Mapping[str, Any]) -> dict[str, str]:
    """What fills a template's places for numbers: the texts of `print_row`, and as programs print them, ``_bare``."""
    texts = {name: row[f"{name}_text"] for name in ("price", "volume", "vol", "change", "eth", "usdc")}
    bare = {f"{name}_bare": text.replace(",", "").lstrip("+") for name, text in texts.items()}
    return {**texts, **bare, "vol_bare": row["vol_bare"], "vol_unit": row["vol_unit"]}


def _volatility_text(value: float, style: VolatilityFormat, rng: np.random.Generator | None) -> str:
    """With fixed decimals, as programs print, or with two or three significant digits, as people write: 0.045, 0.12."""
    if rng is None:
        return _fixed(value, 4)
    if rng.uniform() < _FIXED_SHARE:
        return _fixed(value, style.decimals[rng.integers(len(style.decimals))])
    return token_text(float(f"{value:.{rng.integers(2, 4)}g}"))


def _fixed(value: float, decimals: int, commas: bool = False) -> str:
    return f"{value:{',' if commas else ''}.{decimals}f}"


def _read(text: str) -> float:
    return float(text.replace(",", ""))


def words_of_printed(states: pl.DataFrame, words: StateWords) -> pl.DataFrame:
    """The words and the worked numbers that follow from printed numbers.

    Ticks and basis points are compared in whole numbers, ETH in two significant digits, everything else cut off: so a
    reader can work with them in the head. USDC and price are copied first: they are whole from 100 on.

    Args:
        states: change_ticks, volatility_bps, price, eth and usdc, as printed.
        words: Edges between the words.

    Returns:
        The rows with ``trend``, ``volatility``, ``portfolio``, and what a draft works out: ``rough_change`` (whole
        ticks), ``rough_volatility`` (whole basis points), ``rough_eth`` (two significant digits), ``rough_usdc``,
        ``rough_price``, and ``rough_bought`` (ETH that the ones buy at the other, see `one_digit`).
    """
    change, level = pl.col("change_ticks").round(6), pl.col("volatility_bps").round(6)
    rough_price, rough_usdc = (
        pl.when(pl.col(name) < 100).then(two_digits(pl.col(name))).otherwise(pl.col(name).floor())
        for name in ("price", "usdc")
    )
    states = states.with_columns(
        rough_change=change.abs().floor().cast(pl.Int64) * change.sign().cast(pl.Int64),
        rough_volatility=level.floor().cast(pl.Int64),
        rough_usdc=rough_usdc,
        rough_price=rough_price,
        rough_eth=two_digits(pl.col("eth")),
    )
    # Step by step: one expression of all of them would hold hundreds of copies of its inputs.
    states = states.with_columns(rough_bought=two_digits(pl.col("rough_usdc")) / two_digits(pl.col("rough_price")))
    states = states.with_columns(rough_bought=one_digit(pl.col("rough_bought")))
    down_strong, down_weak, flat, up_weak, up_strong = (pl.lit(word) for word in TRENDS)
    size, level = pl.col("rough_change").abs(), pl.col("rough_volatility")
    is_strong = size >= words.strong_from * level
    return states.with_columns(
        trend=pl.when((size < level) | (size < words.least_move_bps) | (size == 0))
        .then(flat)
        .when(pl.col("rough_change") > 0)
        .then(pl.when(is_strong).then(up_strong).otherwise(up_weak))
        .otherwise(pl.when(is_strong).then(down_strong).otherwise(down_weak)),
        volatility=words.volatility_word(level),
        portfolio=portfolio_word(
            pl.col("rough_eth"), pl.col("rough_bought") * pl.col("rough_price"), pl.col("rough_price")
        ),
    )


def one_digit(value: pl.Expr) -> pl.Expr:
    """A number to the nearest of 1, 1.2, 1.5, 2, 2.5, 3, 4, ... 9 times a power of ten, a seventh away; 0 stays 0."""
    step = 10.0 ** (value.log10() + 1e-9).floor()
    digit = value / step + 1e-9
    nearest = (
        pl.when(digit < 1.1).then(1.0)
        .when(digit < 1.35).then(1.2)
        .when(digit < 1.75).then(1.5)
        .when(digit < 2.25).then(2.0)
        .when(digit < 2.75).then(2.5)
        .otherwise(digit.round())
    )  # fmt: skip
    return pl.when(value > 0).then((nearest * step).round_sig_figs(2)).otherwise(0.0)


def two_digits(value: pl.Expr) -> pl.Expr:
    """A number cut off after two significant digits; 0 stays 0."""
    step = 10.0 ** (value.log10().floor() - 1)
    return pl.when(value > 0).then(((value / step + 1e-9).floor() * step).round_sig_figs(2)).otherwise(0.0)
