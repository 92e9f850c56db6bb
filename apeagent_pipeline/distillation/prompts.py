"""Prompts: questions about one market state and one portfolio, in the forms of `templates`.

Words beside the numbers ("trend up strong (+112 bps)") decide a ``digested`` prompt. All other forms are decided by the
numbers that they print.
"""

import hashlib
import math
import re
from typing import Any, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT
from apeagent_pipeline.distillation.dressings import PLAIN_DRESSING, dress
from apeagent_pipeline.distillation.market_states import StateWords, confirmation_word, market_states
from apeagent_pipeline.distillation.portfolios import (
    affordable_eth,
    draw_portfolios,
    portfolio_weight,
    portfolio_word,
)
from apeagent_pipeline.distillation.printed_numbers import (
    print_row,
    printed_places,
    stretch,
    token_text,
    words_of_printed,
)
from apeagent_pipeline.distillation.templates import (
    AGENT_SYSTEM_PROMPTS,
    TEMPLATE,
    TEMPLATES,
    Rendering,
    draw_templates,
    past_trades,
)
from apeagent_pipeline.distillation.wordings import NEEDED, change_in_words, compose, copied_change

SPLITS = ("train", "valid", "test")

PROMPTS_SCHEMA: dict[str, type[pl.DataType]] = {
    "prompt_id": pl.String,
    "window_id": pl.Int64,
    "condition_id": pl.String,
    "split": pl.String,
    "template": pl.String,
    "rendering": pl.String,
    "dressing": pl.String,
    "missing": pl.String,
    "confirmation": pl.String,
    "copied_volatility": pl.String,
    "copied_change": pl.String,
    "system": pl.String,
    "facts": pl.String,
    "question": pl.String,
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
    "rough_change": pl.Int64,
    "rough_volatility": pl.Int64,
    "rough_usdc": pl.Float64,
    "rough_price": pl.Float64,
    "rough_eth": pl.Float64,
    "rough_bought": pl.Float64,
}
"""Columns of ``build_prompts``; those from ``price`` on are what an answer is verified against."""

COLUMN_DESCRIPTIONS = {
    "prompt_id": "First 16 hex digits of the SHA-256 of the prompt",
    "template": "Wording of the prompt",
    "rendering": "plain: numbers alone; digested: words beside them",
    "dressing": "What stands around the question: a greeting, typing errors, a hidden instruction; none",
    "missing": "The fact that the prompt leaves out though a decision needs it; empty: none",
    "confirmation": "What volume and order flow say of the trend, if the prompt prints them; empty: it does not",
    "copied_volatility": "Printed volatility, with the decimals of whole basis points",
    "copied_change": "Printed price change in whole ticks, with the word for its direction",
    "system": "System message of the chat; empty: none",
    "facts": "First half of the prompt: what it states",
    "question": "Second half of the prompt: what it asks",
    "rough_change": "Printed price change in whole ticks, cut off",
    "rough_volatility": "Printed volatility in whole basis points, cut off",
    "rough_usdc": "The USDC held, whole or with two significant digits",
    "rough_price": "Printed price, whole or with two significant digits",
    "rough_eth": "The ETH held, two significant digits, cut off",
    "rough_bought": "ETH that the rough USDC buy at the rough price, to the nearest of 1, 1.2, 1.5, 2, 2.5, 3 .. 9",
    "change_bps": "Price change over the window, basis points",
    "change_ticks": "Price change over the window, ticks",
    "volatility_bps": "Root of the summed squared log returns of the window, basis points",
    "volume_ratio": "Mean size in the window over the long average",
    "imbalance": "Order flow by volume: -1 all sells to 1 all buys",
    "span_seconds": "Time from the first to the last swap of the window",
    "eth": "ETH that the asking person holds",
    "usdc": "USDC that the asking person holds",
    "affordable_eth": "ETH that these USDC buy after costs",
    "trend": "Word for the price change against the volatility",
    "portfolio": "Word for the share of the holdings that is ETH",
    "prompt": "The question asked",
}
"""What each column that this module adds means, with its unit; shown in the UI as the column schema."""


class PromptsConfig(StateWords):
    """How many prompts, from which windows, in which words."""

    train_prompts: int = Field(2300, description="Prompts from the earliest conditions", ge=1)
    valid_prompts: int = Field(70, description="Prompts from the conditions between train and test", ge=1)
    test_prompts: int = Field(130, description="Prompts from the latest conditions, with a reserve for refusals", ge=1)
    prompts_per_window: int = Field(12, description="Largest number of prompts (portfolios) on one window", ge=1)
    train_share: float = Field(0.6, description="Share of the conditions, the earliest, kept for train", gt=0, lt=1)
    valid_share: float = Field(0.12, description="Share of the conditions after them kept for valid", gt=0, lt=1)
    gap_windows: float = Field(
        2.0, description="Unused time before the next split, as a multiple of the time span of a median window", ge=0
    )
    seconds_per_block: float = Field(2.0, description="Seconds between two blocks; 2 on Base", gt=0)
    plain_share: float = Field(
        0.47, description="Share of train prompts that show numbers alone, which are harder to learn", ge=0, le=1
    )
    test_plain_share: float = Field(0.5, description="Share of valid and test prompts with numbers alone", ge=0, le=1)
    agent_share: float = Field(
        0.14,
        description="Share of prompts worded as the source document's agent words them; they show numbers alone too",
        ge=0,
        le=1,
    )
    incomplete_share: float = Field(0.12, description="Share of prompts without a fact needed to decide", ge=0, le=1)
    far_share: float = Field(
        0.3,
        description="Share of prompts of numbers alone whose change and volatility lie far outside the windows' range",
        ge=0,
        le=1,
    )
    held_out_share: float = Field(
        0.25, description="Share of each form's test prompts whose wording is not in train", ge=0, le=1
    )
    varied: bool = Field(
        True,
        exclude_if=bool,
        description="Draw number formats, many wordings, greetings, typing errors and hidden instructions; off: the "
        "source document's formats in few wordings, which a short training learns",
    )
    smallest_portfolio_usdc: float = Field(100.0, description="Smallest portfolio that is not dust, in USDC", gt=1)
    largest_portfolio_usdc: float = Field(100_000.0, description="Largest portfolio, in USDC", gt=1)

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.train_share + self.valid_share >= 1:
            raise ValueError("train_share + valid_share must leave room for test; keep their sum below 1")
        if self.smallest_portfolio_usdc >= self.largest_portfolio_usdc:
            raise ValueError("smallest_portfolio_usdc must be below largest_portfolio_usdc")
        if max(self.plain_share, self.test_plain_share) + self.agent_share + self.incomplete_share > 1:
            raise ValueError("plain_share, agent_share and incomplete_share must not add up to more than 1")
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
        wanted_first = candidates(states.filter(pl.col("split") == split), split, config, rng)
        chosen = wanted_first.unique("prompt", keep="first", maintain_order=True).head(wanted[split])
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


def render_prompts(
    states: pl.DataFrame,
    words: StateWords,
    rng: np.random.Generator | None = None,
    *,
    unseen: bool = False,
    varied: bool = True,
) -> pl.DataFrame:
    """Ask about market states and holdings, and say what follows from the printed numbers.

    The backtest uses this too, so that real states are asked about in exactly the words of training.

    Args:
        states: Rows of ``market_states`` with ``eth``, ``usdc`` and a column ``template`` (a name of ``TEMPLATES``).
        words: Edges between the words.
        rng: Draws wordings, number formats and dressings; None: the source document's formats and no dressing.
        unseen: Whether what is kept for the test split is drawn.
        varied: Whether number formats and dressings are drawn too, and all wordings of `FACTS`, not a few.

    Returns:
        The rows with ``facts`` and ``question``, the two halves of the bare ``prompt``, and the other columns of
        ``PROMPTS_SCHEMA`` but for the ids. Numbers are those that the prompt prints, and where the prompt shows
        numbers alone, the words follow from them.
    """
    templates = [TEMPLATE[name] for name in states["template"]]
    forms = pl.Series("rendering", [template.rendering for template in templates], dtype=pl.String)
    printed = [
        print_row(row, form == "agent", rng if varied and form != "digested" else None)
        for row, form in zip(states.iter_rows(named=True), forms, strict=True)
    ]
    texts = pl.DataFrame(printed)
    told = states.with_columns(forms, *(texts[name].alias(name) for name in texts.columns if name != "change_bps"))
    is_digested = pl.col("rendering") == "digested"
    # A digested prompt decides by its words, which know the decimals.
    exact = [
        pl.when(is_digested).then(states[name]).otherwise(told[name]).alias(name)
        for name in ("volatility_bps", "change_ticks")
    ]
    told = told.with_columns(
        *exact, change_bps=pl.when(is_digested).then(states["change_bps"]).otherwise(texts["change_bps"])
    )
    eth, usdc, price = pl.col("eth"), pl.col("usdc"), pl.col("price")
    chosen = {
        "trend": pl.when(is_digested).then(told["trend"]).otherwise(pl.col("trend")),
        "volatility": pl.when(is_digested).then(told["volatility"]).otherwise(pl.col("volatility")),
        "portfolio": pl.when(is_digested).then(portfolio_word(eth, usdc, price)).otherwise(pl.col("portfolio")),
        "affordable_eth": affordable_eth(usdc, price),
    }
    told = words_of_printed(told, words).with_columns(**chosen)
    asked = [_ask(row, rng, unseen=unseen, varied=varied) for row in told.iter_rows(named=True)]
    return told.with_columns(pl.DataFrame(asked, schema=dict.fromkeys(_ASKED, pl.String)))


_NOTHING_SAID = 0.4
_ZERO = re.compile(r"(?<![\d.,:=])(?<![:=] )0 (ETH|USDC)\b")
"""A holding of nothing in a sentence, which people call "no ETH" """

_ASKED = ("facts", "question", "missing", "confirmation", "copied_change", "dressing", "system", "prompt")


def _ask(row: dict[str, Any], rng: np.random.Generator | None, *, unseen: bool, varied: bool) -> dict[str, str]:
    """One prompt of a row whose numbers are printed."""
    template = TEMPLATE[row["template"]]
    facts, question, missing, past, system = template.facts, template.question, "", "", STUDENT_SYSTEM_PROMPT
    rng_or_fixed = rng or np.random.default_rng(0)
    if template.rendering == "incomplete":
        missing = NEEDED[rng_or_fixed.integers(len(NEEDED))]
    is_asked_first = False
    if not facts:
        facts, question, is_asked_first = compose(rng_or_fixed, missing, unseen=unseen, varied=varied)
    confirmation = confirmation_word(row) if "{flow}" in facts else ""
    if template.rendering == "agent" and rng is not None:
        past = past_trades(rng, row["price"])
        known = AGENT_SYSTEM_PROMPTS if unseen else AGENT_SYSTEM_PROMPTS[:-1]
        system = (STUDENT_SYSTEM_PROMPT, "", known[rng.integers(len(known))])[rng.integers(3)]
    in_words = change_in_words(row["change_text"], rng_or_fixed)
    change = copied_change(facts, row["copied_change"], in_words)
    places = {
        **printed_places(row),
        **{name: row[name] for name in ("trend", "volatility", "portfolio")},
        **in_words,
        "bps": f"{round(row['change_bps']):+d}",
        "volatility_bps": f"{row['volatility_bps']:.0f}",
        "affordable": token_text(row["affordable_eth"]),
        "volume_word": f"volume {row['volume_ratio']:.1f}x average",
        "flow": f"order flow {row['imbalance']:+.2f}",
        "usage": f"{row['liquidity_usage']:.2%}",
        "span": _span_text(row["span_seconds"]),
        "past_trades": past,
    }
    facts, question = facts.format(**places), question.format(**places)
    if rng is not None and varied and rng.uniform() < _NOTHING_SAID:
        facts = _ZERO.sub(r"no \1", facts)
    prompt, dressing = facts + question, PLAIN_DRESSING
    if rng is not None and varied and template.rendering != "agent":
        prompt, dressing = dress(f"{question} {facts}".strip() if is_asked_first else prompt, rng, unseen=unseen)
    return dict(zip(_ASKED, (facts, question, missing, confirmation, change, dressing, system, prompt), strict=True))


def _span_text(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


_FLAT_WEIGHT = 2.0
"""How often a flat trend is wanted beside each of the four others."""


def candidates(states: pl.DataFrame, split: str, config: PromptsConfig, rng: np.random.Generator) -> pl.DataFrame:
    """Every window several times with drawn portfolios and wordings, in the order in which they are wanted.

    The order goes round the strata (form, trend, volatility, portfolio), each taken as often as its weight says, until
    the rare ones are used up.
    """
    rows = pl.concat([states.sort("window_id")] * config.prompts_per_window)
    drawn = draw_portfolios(rows["price"], config.smallest_portfolio_usdc, config.largest_portfolio_usdc, rng)
    unseen_share = config.held_out_share if split == "test" else 0.0
    rows = rows.hstack(drawn).with_columns(
        template=pl.Series(draw_templates(rows.height, _form_shares(split, config), unseen_share, rng), dtype=pl.String)
    )
    digested = [template.name for template in TEMPLATES if template.rendering == "digested"]
    far = stretch(rows, config.far_share, rng)
    is_digested = pl.col("template").is_in(digested)
    rows = rows.with_columns(
        pl.when(is_digested).then(rows[name]).otherwise(far[name]).alias(name)
        for name in ("price", "change_bps", "change_ticks", "volatility_bps")
    )
    rows = render_prompts(rows, config, rng, unseen=split == "test", varied=config.varied)
    rows = rows.with_columns(chance=pl.Series(rng.permutation(rows.height))).sort("chance")
    share = pl.col("rendering").replace_strict(_form_shares(split, config), return_dtype=pl.Float64)
    trend = pl.when(trend="flat").then(_FLAT_WEIGHT).otherwise(1.0)
    turn = (pl.int_range(pl.len()).over("rendering", "trend", "volatility", "portfolio") + 0.5) / (
        share * trend * portfolio_weight(pl.col("portfolio"))
    )
    rows = rows.with_columns(turn=turn).sort("turn", "chance").with_columns(split=pl.lit(split))
    return rows.with_columns(
        prompt_id=pl.Series(
            [hashlib.sha256(text.encode()).hexdigest()[:16] for text in rows["prompt"]], dtype=pl.String
        )
    )


def _form_shares(split: str, config: PromptsConfig) -> dict[Rendering, float]:
    """How often each form is asked; the shares add up to 1."""
    plain = config.plain_share if split == "train" else config.test_plain_share
    shares: dict[Rendering, float] = {
        "plain": plain,
        "agent": config.agent_share,
        "incomplete": config.incomplete_share,
    }
    shares["digested"] = max(1 - sum(shares.values()), 0.0)
    return shares
