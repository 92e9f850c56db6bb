"""Portfolios: what the asking person holds, drawn at random, the word for it, and the lots that it is traded in."""

from decimal import Decimal

import numpy as np
import polars as pl

PORTFOLIOS = ("dust", "all ETH", "mostly ETH", "balanced", "mostly USDC", "all USDC")

DUST_USDC = 1.0
"""A portfolio worth less than this, and a trade smaller than a hundredth of it, is not worth a transaction."""

COST_SHARE = 0.001
"""What a purchase costs beside the price (pool fee and price impact), as a share of it: USDC buy this much less ETH."""

_EMPTY_DUST = 1 / 3
"""Share of the dust portfolios that hold nothing."""

_WEIGHTS = {"dust": 0.06, "all ETH": 0.12, "mostly ETH": 0.2, "balanced": 0.3, "mostly USDC": 0.2, "all USDC": 0.12}
_ETH_SHARE = {
    "dust": (0.0, 1.0),
    "all ETH": (1.0, 1.0),
    "mostly ETH": (0.7, 0.95),
    "balanced": (0.38, 0.62),
    "mostly USDC": (0.05, 0.3),
    "all USDC": (0.0, 0.0),
}


def draw_portfolios(
    price: pl.Series, smallest_usdc: float, largest_usdc: float, rng: np.random.Generator
) -> pl.DataFrame:
    """One portfolio for each price: sizes log-uniform, the edge cases (all one token, dust) among them.

    Args:
        price: USDC an ETH, ``[n]``.
        smallest_usdc: Least worth of a portfolio that is not dust, in USDC.
        largest_usdc: Greatest worth, in USDC.
        rng: Source of all random choices.

    Returns:
        ``[n, 2]``: eth (four significant digits) and usdc (cents); a third of the dust is nothing at all.
    """
    kinds = rng.choice(len(PORTFOLIOS), size=len(price), p=[_WEIGHTS[kind] for kind in PORTFOLIOS])
    low, high = np.array([_ETH_SHARE[kind] for kind in PORTFOLIOS])[kinds].T
    share = rng.uniform(low, high)
    dust = kinds == PORTFOLIOS.index("dust")
    least = np.where(dust, DUST_USDC / 20, smallest_usdc)
    worth = least * np.exp(rng.uniform(size=len(price)) * np.log(np.where(dust, DUST_USDC * 0.9, largest_usdc) / least))
    worth = np.where(dust & (rng.uniform(size=len(price)) < _EMPTY_DUST), 0.0, worth)
    eth = pl.Series("eth", worth * share / price.to_numpy()).round_sig_figs(4)
    return pl.DataFrame({"eth": eth, "usdc": pl.Series(worth * (1 - share)).round(2)})


def portfolio_word(eth: pl.Expr, usdc: pl.Expr, price: pl.Expr) -> pl.Expr:
    """The word of ``PORTFOLIOS`` for a holding, by the share of its worth that is ETH."""
    worth = eth * price + usdc
    share = eth * price / worth
    return (
        pl.when(worth < DUST_USDC)
        .then(pl.lit("dust"))
        .when(share >= 0.98)
        .then(pl.lit("all ETH"))
        .when(share >= 2 / 3)
        .then(pl.lit("mostly ETH"))
        .when(share > 1 / 3)
        .then(pl.lit("balanced"))
        .when(share > 0.02)
        .then(pl.lit("mostly USDC"))
        .otherwise(pl.lit("all USDC"))
    )


def affordable_eth(usdc: pl.Expr, price: pl.Expr) -> pl.Expr:
    """ETH that a holding of USDC buys after costs, rounded down to four significant digits."""
    exact = usdc / (price * (1 + COST_SHARE))
    step = (10.0 ** (exact.log10().floor() - 3)).fill_nan(1.0)
    return pl.when(exact > 0).then(((exact / step).floor() * step).round_sig_figs(4)).otherwise(0.0)


def lot_of(number: float) -> float:
    """A number cut off to 1, 2 or 5 times a power of ten; 0 stays 0."""
    exact = Decimal(repr(number))
    lots = (Decimal(digit).scaleb(exact.adjusted()) for digit in (5, 2, 1))
    return float(next(lot for lot in lots if lot <= exact)) if number else 0.0


def portfolio_weight(portfolio: pl.Expr) -> pl.Expr:
    """How often a portfolio word is wanted among the prompts; the weights add up to 1."""
    return portfolio.replace_strict(_WEIGHTS, return_dtype=pl.Float64)
