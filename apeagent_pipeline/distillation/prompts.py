"""Prompts: questions about one market state and one portfolio, in the two renderings the student is trained on.

``plain`` is the sentence of the source document, numbers only. ``digested`` puts words beside the numbers ("trend up
strong (+112 bps)"); a small student learns its decisions from these words first, and with more effort from the numbers.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from apeagent_pipeline.distillation.market_states import StateWords, market_states
from apeagent_pipeline.distillation.portfolios import (
    affordable_eth,
    draw_portfolios,
    portfolio_weight,
    portfolio_word,
)

Rendering = Literal["plain", "digested"]
RENDERINGS: tuple[Rendering, ...] = ("digested", "plain")
SPLITS = ("train", "valid", "test")

PROMPTS_SCHEMA: dict[str, type[pl.DataType]] = {
    "prompt_id": pl.String,
    "window_id": pl.Int64,
    "condition_id": pl.String,
    "split": pl.String,
    "template": pl.String,
    "rendering": pl.String,
    "prompt": pl.String,
    "price": pl.Float64,
    "change_bps": pl.Float64,
    "change_ticks": pl.Float64,
    "volatility_bps": pl.Float64,
    "volume_usdc": pl.Float64,
    "volume_ratio": pl.Float64,
    "imbalance": pl.Float64,
    "liquidity_usage": pl.Float64,
    "span_seconds": pl.Int64,
    "eth": pl.Float64,
    "usdc": pl.Float64,
    "affordable_eth": pl.Float64,
    "trend": pl.String,
    "volatility": pl.String,
    "portfolio": pl.String,
}
"""Columns of ``build_prompts``; those from ``price`` on are what an answer is verified against."""


@dataclass(frozen=True)
class Template:
    """One wording of a prompt. ``held_out``: asked in the test split alone, so that a wording never seen is judged."""

    name: str
    rendering: Rendering
    text: str
    held_out: bool = False


_STATE = "trend {trend} ({bps} bps), volatility {volatility} ({volatility_bps} bps), portfolio {portfolio}"
_WALLET = "{eth} ETH and {usdc} USDC (worth {affordable} ETH)"

TEMPLATES = (
    Template(
        "document",
        "plain",
        "Given ETH price is ${price} with volume of {volume} and volatility of {fraction}, recent price change of "
        "{ticks} ticks, and I currently hold {eth} ETH and {usdc} USDC, what trading action should I take on Uniswap?",
    ),
    Template(
        "document-short",
        "plain",
        "ETH price ${price}, volume {volume}, volatility {fraction}, price change {ticks} ticks. I hold {eth} ETH and "
        "{usdc} USDC. What trading action should I take?",
    ),
    Template(
        "question",
        "digested",
        f"ETH is ${{price}}: {_STATE}. I hold {_WALLET}. What trading action should I take on Uniswap?",
    ),
    Template("market", "digested", f"Market: {_STATE}. ETH price ${{price}}. I have {_WALLET}. Which action now?"),
    Template(
        "flow",
        "digested",
        f"At ${{price}} I see {_STATE}, {{volume_word}}, {{flow}}. With {_WALLET}, what do I do on Uniswap?",
    ),
    Template("owner", "digested", f"I own {_WALLET}. ETH costs ${{price}}, {_STATE}. Give me a trading action."),
    Template(
        "history",
        "digested",
        f"Last {{span}}: {_STATE}, liquidity usage {{usage}}. ETH ${{price}}; I hold {_WALLET}. Your trade on Uniswap?",
    ),
    Template(
        "wallet",
        "digested",
        f"My wallet: {_WALLET}. ETH trades at ${{price}} with {_STATE}. What is the best move on Uniswap?",
        held_out=True,
    ),
)
_BY_NAME = {template.name: template for template in TEMPLATES}


class PromptsConfig(StateWords):
    """How many prompts, from which windows, in which words."""

    train_prompts: int = Field(1200, description="Prompts from the earliest conditions", ge=1)
    valid_prompts: int = Field(70, description="Prompts from the conditions between train and test", ge=1)
    test_prompts: int = Field(130, description="Prompts from the latest conditions, with a reserve for refusals", ge=1)
    prompts_per_window: int = Field(4, description="At most so many prompts (portfolios) on one window", ge=1)
    train_share: float = Field(0.6, description="Share of the conditions, the earliest, kept for train", gt=0, lt=1)
    valid_share: float = Field(0.12, description="Share of the conditions after them kept for valid", gt=0, lt=1)
    gap_windows: float = Field(
        2.0, description="No condition is used this close before the next split, in time spans of a median window", ge=0
    )
    seconds_per_block: float = Field(2.0, description="To turn the gap into blocks; 2 s on Base", gt=0)
    plain_share: float = Field(
        0.4, description="Share of train prompts in the plain sentence, which is harder to learn", ge=0, le=1
    )
    test_plain_share: float = Field(0.1, description="The same share of valid and test prompts", ge=0, le=1)
    held_out_share: float = Field(
        0.25, description="Share of digested test prompts in a wording train never saw", ge=0, le=1
    )
    smallest_portfolio_usdc: float = Field(100.0, description="Least worth of a portfolio that is not dust", gt=1)
    largest_portfolio_usdc: float = Field(100_000.0, description="Greatest worth of a portfolio", gt=1)

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.train_share + self.valid_share >= 1:
            raise ValueError("train_share + valid_share must leave room for test; keep their sum below 1")
        if self.smallest_portfolio_usdc >= self.largest_portfolio_usdc:
            raise ValueError("smallest_portfolio_usdc must be below largest_portfolio_usdc")
        return self


def build_prompts(synthetic: pl.DataFrame, config: PromptsConfig, seed: int) -> pl.DataFrame:
    """Questions about synthetic windows, spread over market states and portfolios, split by time of the condition.

    More prompts of one split leave the earlier ones as they are: a larger number only adds.

    Args:
        synthetic: The table of ``synthetic_windows``.
        config: Numbers, shares and word edges.
        seed: Seed of every draw.

    Returns:
        One row a prompt, columns ``PROMPTS_SCHEMA``, sorted by split (train, valid, test) and then by draw. No two
        prompts are equal, and no window or condition serves two splits.

    Raises:
        ValueError: if the windows are unusable or too few; the message has the numbers and the remedy.
    """
    states = split_by_time(market_states(synthetic, config), config)
    wanted = {"train": config.train_prompts, "valid": config.valid_prompts, "test": config.test_prompts}
    parts = []
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        candidates = _candidates(states.filter(pl.col("split") == split), split, config, rng)
        chosen = candidates.unique("prompt", keep="first", maintain_order=True).head(wanted[split])
        if chosen.height < wanted[split]:
            windows = states.filter(pl.col("split") == split).height
            needed = math.ceil(synthetic["window_id"].n_unique() * wanted[split] / max(chosen.height, 1) * 1.05)
            raise ValueError(
                f"{windows} windows of the {split} split give {chosen.height} prompts, {wanted[split]} are wanted: "
                f"sample at least {needed} windows, raise prompts_per_window (now {config.prompts_per_window}) or ask "
                f"for fewer {split}_prompts"
            )
        parts.append(chosen)
    return pl.concat(parts).select(pl.col(name).cast(kind) for name, kind in PROMPTS_SCHEMA.items())


def split_by_time(states: pl.DataFrame, config: PromptsConfig) -> pl.DataFrame:
    """Give each market state its split; drop those too close before the next split.

    Two windows whose conditions overlap in time are twins. The gap is measured in blocks: ``gap_windows`` times the
    median time span of a window.

    Raises:
        ValueError: if a condition id is not ``{block:012d}-{log_index:06d}``, or a split is left empty.
    """
    malformed = states.filter(~pl.col("condition_id").str.contains(r"^\d{12}-\d{6}$").fill_null(False))
    if not malformed.is_empty():
        raise ValueError(
            f"condition_id {malformed['condition_id'][0]!r} of window {malformed['window_id'][0]} is not of the form "
            f"000025350999-000012 (block number, log index)"
        )
    states = states.with_columns(block=pl.col("condition_id").str.head(12).cast(pl.Int64))
    conditions = states["condition_id"].unique().sort()
    ends = [round(len(conditions) * share) for share in (config.train_share, config.train_share + config.valid_share)]
    if not 0 < ends[0] < ends[1] < len(conditions):
        raise ValueError(f"{len(conditions)} distinct conditions cannot be split in three; sample more windows")
    span = states["span_seconds"].median()
    gap = math.ceil(config.gap_windows * float(span) / config.seconds_per_block)  # type: ignore[arg-type]
    starts = [int(conditions[end][:12]) for end in ends]
    split = (
        pl.when(pl.col("condition_id") >= conditions[ends[1]])
        .then(pl.lit("test"))
        .when((pl.col("condition_id") >= conditions[ends[0]]) & (pl.col("block") < starts[1] - gap))
        .then(pl.lit("valid"))
        .when((pl.col("condition_id") < conditions[ends[0]]) & (pl.col("block") < starts[0] - gap))
        .then(pl.lit("train"))
    )
    kept = states.with_columns(split=split).filter(pl.col("split").is_not_null())
    empty = [name for name in SPLITS if name not in kept["split"]]
    if empty:
        raise ValueError(
            f"a gap of {gap} blocks between splits leaves no condition for {empty}: the {len(conditions)} conditions "
            f"span {int(conditions[-1][:12]) - int(conditions[0][:12])} blocks. Use more days of swaps or lower "
            f"gap_windows (now {config.gap_windows})"
        )
    return kept.drop("block")


def describe_portfolios(states: pl.DataFrame) -> pl.DataFrame:
    """Add ``portfolio`` (its word) and ``affordable_eth`` to rows with ``eth``, ``usdc`` and ``price``."""
    eth, usdc, price = pl.col("eth"), pl.col("usdc"), pl.col("price")
    return states.with_columns(portfolio=portfolio_word(eth, usdc, price), affordable_eth=affordable_eth(usdc, price))


def render_prompts(states: pl.DataFrame) -> pl.DataFrame:
    """Add ``prompt`` and ``rendering`` to rows of market states.

    The backtest uses this too, so that real states are asked about in exactly the words of training.

    Args:
        states: Rows of ``market_states`` through ``describe_portfolios``, with a column ``template`` (a name of
            ``TEMPLATES``).
    """
    numbers = {
        "price": [f"{value:.2f}" for value in states["price"]],
        "volume": [f"{value:.2f}" for value in states["volume_usdc"]],
        "fraction": [f"{value / 1e4:.4f}" for value in states["volatility_bps"]],
        "ticks": [f"{value:.4f}" for value in states["change_ticks"]],
        "bps": [f"{round(value):+d}" for value in states["change_bps"]],
        "volatility_bps": [f"{value:.0f}" for value in states["volatility_bps"]],
        "eth": [token_text(value) for value in states["eth"]],
        "usdc": [token_text(value) for value in states["usdc"]],
        "affordable": [token_text(value) for value in states["affordable_eth"]],
        "volume_word": [f"volume {value:.1f}x average" for value in states["volume_ratio"]],
        "flow": [f"order flow {value:+.2f}" for value in states["imbalance"]],
        "usage": [f"{value:.2%}" for value in states["liquidity_usage"]],
        "span": [_span_text(value) for value in states["span_seconds"]],
        "trend": states["trend"].to_list(),
        "volatility": states["volatility"].to_list(),
        "portfolio": states["portfolio"].to_list(),
    }
    rows = (dict(zip(numbers, values, strict=True)) for values in zip(*numbers.values(), strict=True))
    templates = [_BY_NAME[name] for name in states["template"]]
    return states.with_columns(
        prompt=pl.Series([t.text.format(**row) for t, row in zip(templates, rows, strict=True)], dtype=pl.String),
        rendering=pl.Series([t.rendering for t in templates], dtype=pl.String),
    )


def token_text(amount: float) -> str:
    """An amount of a token as people write it: no exponent, no trailing zeros."""
    return np.format_float_positional(amount, trim="-")


def _span_text(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


def _candidates(states: pl.DataFrame, split: str, config: PromptsConfig, rng: np.random.Generator) -> pl.DataFrame:
    """Every window several times with drawn portfolios and wordings, in the order in which they are wanted.

    The order goes round the strata (trend, volatility, portfolio), each taken as often as its weight says, until the
    rare ones are used up.
    """
    rows = pl.concat([states.sort("window_id")] * config.prompts_per_window)
    drawn = draw_portfolios(rows["price"], config.smallest_portfolio_usdc, config.largest_portfolio_usdc, rng)
    rows = describe_portfolios(rows.hstack(drawn))
    rows = rows.with_columns(
        template=pl.Series(_draw_templates(rows.height, split, config, rng), dtype=pl.String),
        chance=pl.Series(rng.permutation(rows.height)),
    ).sort("chance")
    turn = (pl.int_range(pl.len()).over("trend", "volatility", "portfolio") + 0.5) / portfolio_weight(
        pl.col("portfolio")
    )
    rows = rows.with_columns(turn=turn).sort("turn", "chance").with_columns(split=pl.lit(split))
    rows = render_prompts(rows)
    return rows.with_columns(
        prompt_id=pl.Series(
            [hashlib.sha256(text.encode()).hexdigest()[:16] for text in rows["prompt"]], dtype=pl.String
        )
    )


def _draw_templates(n: int, split: str, config: PromptsConfig, rng: np.random.Generator) -> list[str]:
    def pick(rendering: Rendering, held_out: bool) -> np.ndarray:
        names = [t.name for t in TEMPLATES if t.rendering == rendering and t.held_out == held_out]
        return rng.choice(names, size=n)

    plain = rng.uniform(size=n) < (config.plain_share if split == "train" else config.test_plain_share)
    unseen = (rng.uniform(size=n) < config.held_out_share) & (split == "test")
    digested = np.where(unseen, pick("digested", held_out=True), pick("digested", held_out=False))
    return list(np.where(plain, pick("plain", held_out=False), digested))
