"""The backtest: the student's decisions replayed on held-out real swaps, paid for with fee and price impact.

Decisions depend on the portfolio, and the portfolio on earlier decisions, so they cannot all be asked at once. The
held-out time is therefore cut into episodes that do not overlap. Every episode starts with half ETH, half USDC; the
episodes go forward together, one decision each, so that the student answers them as one batch. Within an episode
decisions are strictly one after the other.

No look-ahead: a decision sees the last ``window`` swaps up to now and is executed after the *next* swap, at the pool's
price and liquidity of that moment. The replayed swaps do not react to our trades. Gas is not counted. A swap is
computed inside one liquidity range; what it would find beyond the range's end is not known from swaps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from pydantic import Field

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.amm.swap_math import FEE_UNIT
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, read_answer, student_chat
from apeagent_pipeline.distillation.execution import Holding, execute, worth
from apeagent_pipeline.distillation.market_states import StateWords, market_states
from apeagent_pipeline.distillation.prompts import describe_portfolios, render_prompts
from apeagent_pipeline.distillation.teachers.rules import rules_answer
from apeagent_pipeline.distillation.verification import is_feasible
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.reporting.report import Report, markdown_table
from apeagent_pipeline.student.generation import Student

_SECONDS_A_YEAR = 365.25 * 86_400
_COLUMNS = ("block_number", "log_index", "block_timestamp", "price", "liquidity", "sqrt_price_x96")


_SHARPE_WORDS = {"sharpe_adapter": "The adapter's", "sharpe_adapter_minus_hold": "The adapter's less that of holding"}


class BacktestError(ValueError):
    """The held-out swaps do not suffice for the episodes asked for."""


class BacktestConfig(StateWords):
    """How long is traded, how often and with how much; the word edges must be those of the training prompts."""

    window: int = Field(24, ge=2, description="Swaps a decision sees, as many as a training window has")
    every: int = Field(6, ge=1, description="Swaps from one decision to the next")
    decisions: int = Field(6, ge=1, description="Decisions in an episode")
    episodes: int = Field(16, ge=1, description="Episodes at most; fewer if the held-out swaps are fewer")
    start_usdc: float = Field(10_000.0, gt=0, description="Worth of a portfolio at the start, half of it in ETH")
    template: str = Field("question", description="Wording of the prompts, one of the training templates")
    max_new_tokens: int = Field(56, ge=8, description="Longest answer")
    random_runs: int = Field(200, ge=1, description="Random traders with the student's turnover")

    @classmethod
    def preset(cls, profile: str) -> Self:
        """``demo``: about 100 decisions; ``full``: up to 3,000."""
        if profile == "demo":
            return cls()
        if profile == "full":
            return cls(decisions=48, episodes=64, max_new_tokens=96, random_runs=1000)
        raise ValueError(f"profile {profile!r}: expected demo or full")


@dataclass(frozen=True)
class Market:
    """The held-out swaps, and where in them the episodes lie.

    Attributes:
        swaps: Rows of ``swap_features``, in order.
        pool: Decimals and fee.
        window, every, decisions: As in the config.
        starts: ``[E]`` first row that each episode sees.
    """

    swaps: pl.DataFrame
    pool: PoolSpec
    window: int
    every: int
    decisions: int
    starts: np.ndarray
    prices: np.ndarray = field(repr=False)
    sqrt_prices: list[int] = field(repr=False)
    liquidity: list[int] = field(repr=False)

    def row(self, episode: int, decision: int) -> int:
        """The last swap that a decision sees."""
        return int(self.starts[episode]) + self.window - 1 + decision * self.every

    def price_paths(self) -> np.ndarray:
        """Prices ``[E, decisions * every + 1]`` from the first decision of each episode to its end."""
        first = self.starts[:, None] + self.window - 1
        return self.prices[first + np.arange(self.decisions * self.every + 1)]


@dataclass(frozen=True)
class Run:
    """What one strategy did.

    Attributes:
        equity: ``[E, decisions * every + 1]`` worth in USDC after every swap, each episode divided by its start.
        eth_traded: ``[E, decisions]`` ETH bought (positive) or sold (negative).
        turnover: ``[E]`` traded worth over the starting worth.
        fees: ``[E]`` pool fees over the starting worth.
        costs: ``[E]`` worth lost in trading, fees and price impact together, over the starting worth.
        refused: Trades that the holdings did not pay for.
        unreadable: Answers that hold no action.
    """

    equity: np.ndarray
    eth_traded: np.ndarray
    turnover: np.ndarray
    fees: np.ndarray
    costs: np.ndarray
    refused: int
    unreadable: int

    @property
    def returns(self) -> np.ndarray:
        """``[E]`` return of each episode."""
        return self.equity[:, -1] - 1.0


Policy = Callable[[int, Sequence[Holding]], Sequence[DraftAnswer | None]]
"""Gives a decision for each episode (None: unreadable) at decision number k, knowing the holdings."""


def backtest(  # noqa: PLR0917 (the order is that of the asset graph's other long work)
    features: pl.DataFrame,
    base: Path,
    adapter: Path,
    pool: PoolSpec,
    config: BacktestConfig,
    seed: int,
    progress: Progress = silent,
) -> Report:
    """Replay the adapter's decisions on held-out swaps beside those of others.

    The others: the bare base, the teacher's rules, holding, rebalancing to half and half, and random traders.

    Args:
        features: Held-out rows of ``swap_features``, in order.
        base: Folder of the base model.
        adapter: Folder of the adapter.
        pool: Decimals and fee.
        config: Sizes.
        seed: Of the random traders and the bootstrap.
        progress: Told after every decision of all episodes together.

    Raises:
        BacktestError: too few swaps, or columns are missing.
    """
    market = make_market(features, pool, config)
    student = Student.load(base, adapter)
    asked: list[DraftAnswer | None] = []
    taught: list[DraftAnswer | None] = []

    def answers(decision: int, states: pl.DataFrame, progress: Progress) -> list[DraftAnswer | None]:
        prompts = [student_chat(text) for text in states["prompt"]]
        said = [read_answer(a.text) for a in student.answers(prompts, max_new_tokens=config.max_new_tokens)]
        progress(decision + 1, config.decisions)
        return said

    def ask(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        states = _states(market, decision, holdings, config)
        asked.extend(answers(decision, states, part_of(progress, 0, 2 * config.decisions)))
        taught.extend(rules_answer(row) for row in states.iter_rows(named=True))
        return asked[-len(holdings) :]

    def ask_base(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        states = _states(market, decision, holdings, config)
        return answers(decision, states, part_of(progress, config.decisions, 2 * config.decisions))

    def rules(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        return [rules_answer(row) for row in _states(market, decision, holdings, config).iter_rows(named=True)]

    runs = {"adapter": simulate(market, ask, config.start_usdc)}
    with student.adapter_off():
        runs["base"] = simulate(market, ask_base, config.start_usdc)
    runs["teacher"] = simulate(market, rules, config.start_usdc)
    runs["rebalance"] = simulate(market, rebalance(market), config.start_usdc)
    runs["hold"] = simulate(market, hold, config.start_usdc)
    rng = np.random.default_rng([seed, 7])
    randoms = [
        simulate(market, random_like(runs["adapter"], market, rng), config.start_usdc)
        for _ in range(config.random_runs)
    ]
    same = [a is not None and t is not None and a.side == t.side for a, t in zip(asked, taught, strict=True)]
    return _report(market, runs, randoms, float(np.mean(same)), config, seed)


def make_market(features: pl.DataFrame, pool: PoolSpec, config: BacktestConfig) -> Market:
    """Place the episodes evenly over the held-out swaps, without overlap of their trading time.

    Raises:
        BacktestError: columns are missing, or not one episode fits.
    """
    missing = [name for name in _COLUMNS if name not in features.columns]
    if missing:
        raise BacktestError(f"the held-out swaps lack the columns {missing}; pass rows of swap_features")
    span = config.decisions * config.every
    # One row more than an episode lasts: the last decision is executed after the swap that follows it.
    room = features.height - config.window - 1
    episodes = min(config.episodes, room // span)
    if episodes < 1:
        raise BacktestError(
            f"{features.height} held-out swaps; an episode of {config.decisions} decisions every {config.every} swaps "
            f"needs {config.window + span + 1}. Collect more days, or lower decisions or every."
        )
    return Market(
        swaps=features,
        pool=pool,
        window=config.window,
        every=config.every,
        decisions=config.decisions,
        starts=np.linspace(0, room - span, episodes).round().astype(int),
        prices=features["price"].to_numpy(),
        sqrt_prices=[int(text) for text in features["sqrt_price_x96"]],
        liquidity=[int(text) for text in features["liquidity"]],
    )


def simulate(market: Market, policy: Policy, start_usdc: float) -> Run:
    """Let a policy trade all episodes, each from a portfolio worth ``start_usdc``, half of it in ETH."""
    pool = market.pool
    eth_unit, usdc_unit = 10**pool.token0.decimals, 10**pool.token1.decimals
    episodes = range(len(market.starts))
    paths = market.price_paths()
    holdings = [
        Holding(int(start_usdc / 2 / paths[e, 0] * eth_unit), int(start_usdc / 2 * usdc_unit)) for e in episodes
    ]
    start_worth = np.array([worth(holdings[e], paths[e, 0], pool) for e in episodes])
    equity = np.empty_like(paths)
    eth_traded = np.zeros((len(episodes), market.decisions))
    turnover, fees, costs = (np.zeros(len(episodes)) for _ in range(3))
    refused = unreadable = 0
    for decision in range(market.decisions):
        answers = policy(decision, holdings)
        after = list(holdings)
        for e, answer in enumerate(answers):
            unreadable += answer is None
            if answer is None or answer.amount is None:
                continue
            row = market.row(e, decision) + 1
            fill = execute(answer, market.sqrt_prices[row], market.liquidity[row], pool)
            if fill is None or min(holdings[e].eth + fill.eth, holdings[e].usdc + fill.usdc) < 0:
                refused += 1
                continue
            after[e] = Holding(holdings[e].eth + fill.eth, holdings[e].usdc + fill.usdc)
            price = market.prices[row]
            paid = -fill.usdc / usdc_unit if fill.usdc < 0 else -fill.eth / eth_unit * price
            eth_traded[e, decision] = fill.eth / eth_unit
            turnover[e] += abs(fill.usdc) / usdc_unit
            fees[e] += paid * pool.static_fee / FEE_UNIT
            costs[e] += worth(holdings[e], price, pool) - worth(after[e], price, pool)
        # The trade happens after the next swap, so the row of the decision itself still has the old holdings.
        first = decision * market.every
        for e in episodes:
            equity[e, first] = worth(holdings[e], paths[e, first], pool)
            later = paths[e, first + 1 : first + market.every + 1]
            equity[e, first + 1 : first + market.every + 1] = [worth(after[e], price, pool) for price in later]
        holdings = after
    return Run(
        equity=equity / start_worth[:, None],
        eth_traded=eth_traded,
        turnover=turnover / start_worth,
        fees=fees / start_worth,
        costs=costs / start_worth,
        refused=refused,
        unreadable=unreadable,
    )


def hold(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
    """Never trade."""
    return [DraftAnswer((), "HOLD")] * len(holdings)


def rebalance(market: Market) -> Policy:
    """Back to half ETH, half USDC at every decision, by the price of the last swap seen."""
    eth_unit, usdc_unit = 10**market.pool.token0.decimals, 10**market.pool.token1.decimals

    def policy(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        answers: list[DraftAnswer | None] = []
        for e, holding in enumerate(holdings):
            price = float(market.prices[market.row(e, decision)])
            too_much = round((holding.eth / eth_unit - holding.usdc / usdc_unit / price) / 2, 6)
            if too_much == 0:
                answers.append(DraftAnswer((), "HOLD"))
            else:
                answers.append(DraftAnswer((), "SELL" if too_much > 0 else "BUY", abs(too_much), "ETH"))
        return answers

    return policy


def random_like(run: Run, market: Market, rng: np.random.Generator) -> Policy:
    """A trader who trades when the run did and as much ETH, on a random side, or the other one if that is not held."""
    eth_unit, usdc_unit = 10**market.pool.token0.decimals, 10**market.pool.token1.decimals

    def policy(decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        coins = rng.uniform(size=len(holdings)) < 0.5
        answers: list[DraftAnswer | None] = []
        for e, (holding, coin) in enumerate(zip(holdings, coins, strict=True)):
            amount = abs(float(run.eth_traded[e, decision]))
            if amount == 0:
                answers.append(DraftAnswer((), "HOLD"))
                continue
            both = [DraftAnswer((), "BUY", amount, "ETH"), DraftAnswer((), "SELL", amount, "ETH")]
            wanted, other = both if coin else both[::-1]
            price = float(market.prices[market.row(e, decision) + 1])
            is_held = is_feasible(wanted, holding.eth / eth_unit, holding.usdc / usdc_unit, price)
            answers.append(wanted if is_held else other)
        return answers

    return policy


def max_drawdown(equity: np.ndarray) -> np.ndarray:
    """Largest fall from an earlier peak, ``[E]`` from ``[E, T]``, as a positive share of the peak."""
    return (1 - equity / np.maximum.accumulate(equity, axis=1)).max(axis=1)


def _states(market: Market, decision: int, holdings: Sequence[Holding], config: BacktestConfig) -> pl.DataFrame:
    """One prompt for each episode, in the words of training."""
    rows = [market.row(e, decision) for e in range(len(holdings))]
    indices = np.concatenate([np.arange(row - market.window + 1, row + 1) for row in rows])
    windows = market.swaps[indices].with_columns(
        window_id=pl.Series(np.repeat(np.arange(len(rows)), market.window)),
        step=pl.Series(np.tile(np.arange(market.window), len(rows))),
        condition_id=pl.format("{}-{}", "block_number", "log_index"),
    )
    eth = pl.Series("eth", [h.eth / 10**market.pool.token0.decimals for h in holdings])
    usdc = pl.Series("usdc", [h.usdc / 10**market.pool.token1.decimals for h in holdings])
    # Said as in training, four digits and cents, but rounded down: never more than is held.
    step = 10.0 ** (eth.log10().floor() - 3)
    eth = (
        (eth > 0)
        .to_frame("held")
        .select(pl.when("held").then((eth / step + 1e-9).floor() * step).otherwise(0.0))
        .to_series()
    )
    states = market_states(windows, config).with_columns(
        eth=eth.round_sig_figs(4), usdc=(usdc * 100 + 1e-6).floor() / 100, template=pl.lit(config.template)
    )
    prompts = render_prompts(describe_portfolios(states))
    return prompts.with_columns(prompt_id=pl.format("{}-{}", pl.lit(decision), "window_id"))


def _sharpe(equity: np.ndarray, every: int, seconds: float) -> float | None:
    """Mean over standard deviation of the returns between decisions, times the root of how many there are in a year."""
    steps = np.diff(np.log(equity[:, ::every]), axis=1)
    spread = float(steps.std(ddof=1)) if steps.size > 1 else 0.0
    return float(steps.mean()) / spread * float(np.sqrt(_SECONDS_A_YEAR / seconds)) if spread > 0 else None


def sharpe_interval(
    equity: np.ndarray, every: int, seconds: float, seed: int, against: np.ndarray | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of a Sharpe ratio, or of how much it exceeds another one's.

    Source: the stationary bootstrap (Politis and Romano 1994), which keeps what follows one another together; the mean
    length of its blocks is chosen after Politis and White (2004).

    Args:
        equity: ``[E, T]`` worth over time.
        every: Columns from one decision to the next.
        seconds: Time from one decision to the next.
        seed: Of the resampling.
        against: Worth of another strategy over the same time.

    Returns:
        ``(low, high)``, or None if a strategy's worth does not move.
    """
    from arch.bootstrap import StationaryBootstrap, optimal_block_length

    steps = [np.diff(np.log(each[:, ::every]), axis=1).ravel() for each in (equity, against) if each is not None]
    if any(each.size < 8 or each.std() == 0 for each in steps):
        return None
    scale = float(np.sqrt(_SECONDS_A_YEAR / seconds))

    def measured(*drawn: np.ndarray) -> np.ndarray:
        ratios = [each.mean() / max(float(each.std(ddof=1)), 1e-12) * scale for each in drawn]
        return np.array([ratios[0] - (ratios[1] if len(ratios) > 1 else 0.0)])

    block = max(1.0, *(float(optimal_block_length(each)["stationary"].iloc[0]) for each in steps))
    bootstrap = StationaryBootstrap(block, *steps, seed=np.random.default_rng([seed, 9]))
    low, high = bootstrap.conf_int(measured, reps=1000, method="percentile")[:, 0]
    return float(low), float(high)


def _compared(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    """Wilcoxon signed-rank p-value and bootstrap interval of the mean difference of paired episode returns."""
    from scipy.stats import bootstrap, wilcoxon

    difference = first - second
    if len(difference) < 2 or not np.any(difference):
        return 1.0, (float(difference.mean()), float(difference.mean()))
    p = float(wilcoxon(difference, zero_method="zsplit").pvalue)
    interval = bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng([seed, 8])
    ).confidence_interval
    return p, (float(interval.low), float(interval.high))


def _report(  # noqa: PLR0917
    market: Market, runs: dict[str, Run], randoms: list[Run], same_as_teacher: float, config: BacktestConfig, seed: int
) -> Report:
    times = market.swaps["block_timestamp"]
    ends = [(market.row(e, 0), market.row(e, market.decisions)) for e in range(len(market.starts))]
    seconds = float(np.mean([(times[last] - times[first]).total_seconds() for first, last in ends])) / market.decisions
    metrics: dict[str, float] = {}
    for name, run in runs.items():
        metrics |= _run_metrics(name, [run], market.every, seconds)
    metrics |= _run_metrics("random", randoms, market.every, seconds)
    random_returns = np.array([run.returns.mean() for run in randoms])
    adapter = runs["adapter"]
    p_hold, against_hold = _compared(adapter.returns, runs["hold"].returns, seed)
    p_base, against_base = _compared(adapter.returns, runs["base"].returns, seed)
    p_rebalance, against_rebalance = _compared(adapter.returns, runs["rebalance"].returns, seed)
    p_teacher, against_teacher = _compared(adapter.returns, runs["teacher"].returns, seed)
    at_least = int((random_returns >= adapter.returns.mean()).sum())
    metrics |= {
        "p_hold": p_hold,
        "p_base": p_base,
        "p_rebalance": p_rebalance,
        "p_teacher": p_teacher,
        "p_random": (1 + at_least) / (1 + len(randoms)),
        "same_action_as_teacher": same_as_teacher,
        "unreadable_adapter": float(adapter.unreadable),
        "unreadable_base": float(runs["base"].unreadable),
        "refused_adapter": float(adapter.refused),
        "n_episodes": float(len(market.starts)),
        "n_decisions": float(len(market.starts) * market.decisions),
        "seconds_between_decisions": seconds,
    }
    metrics |= {
        f"adapter_minus_{name}": float((adapter.returns - run.returns).mean())
        for name, run in runs.items()
        if name != "adapter"
    }
    intervals = {
        "adapter_minus_hold": against_hold,
        "adapter_minus_teacher": against_teacher,
        "adapter_minus_base": against_base,
        "adapter_minus_rebalance": against_rebalance,
    }
    sharpe = {
        "sharpe_adapter": sharpe_interval(adapter.equity, market.every, seconds, seed),
        "sharpe_adapter_minus_hold": sharpe_interval(
            adapter.equity, market.every, seconds, seed, against=runs["hold"].equity
        ),
    }
    intervals |= {name: found for name, found in sharpe.items() if found is not None}
    if "sharpe_adapter" in metrics and "sharpe_hold" in metrics:
        metrics["sharpe_adapter_minus_hold"] = metrics["sharpe_adapter"] - metrics["sharpe_hold"]
    return Report(
        title="Backtest",
        metrics=metrics,
        intervals=intervals,
        config=config.model_dump(),
        markdown=_page(market, metrics, intervals, config),
        figures={"equity.png": _equity_figure(runs, randoms), "trades.png": _trades_figure(market, adapter)},
    )


def _run_metrics(name: str, runs: list[Run], every: int, seconds: float) -> dict[str, float]:
    sharpes = [_sharpe(run.equity, every, seconds) for run in runs]
    known = [value for value in sharpes if value is not None]
    return {
        f"return_{name}": float(np.mean([run.returns.mean() for run in runs])),
        f"max_drawdown_{name}": float(np.mean([max_drawdown(run.equity).mean() for run in runs])),
        f"turnover_{name}": float(np.mean([run.turnover.mean() for run in runs])),
        f"fees_{name}": float(np.mean([run.fees.mean() for run in runs])),
        f"costs_{name}": float(np.mean([run.costs.mean() for run in runs])),
        f"trades_{name}": float(np.mean([np.count_nonzero(run.eth_traded) for run in runs])),
        **({f"sharpe_{name}": float(np.mean(known))} if known else {}),
    }


def _page(
    market: Market, metrics: dict[str, float], intervals: dict[str, tuple[float, float]], config: BacktestConfig
) -> str:
    against_hold = intervals["adapter_minus_hold"]
    rows = []
    for name in ("adapter", "base", "teacher", "hold", "rebalance", "random"):
        sharpe = metrics.get(f"sharpe_{name}")
        rows.append(
            [
                name,
                *(f"{metrics[f'{key}_{name}']:+.3%}" for key in ("return",)),
                f"{metrics[f'max_drawdown_{name}']:.3%}",
                "" if sharpe is None else f"{sharpe:.1f}",
                *(f"{metrics[f'{key}_{name}']:.3%}" for key in ("turnover", "fees", "costs")),
                f"{metrics[f'trades_{name}']:.0f}",
            ]
        )
    header = [
        "strategy",
        "mean return",
        "mean max drawdown",
        "Sharpe, a year",
        "turnover",
        "fees",
        "fees + impact",
        "trades",
    ]
    others = ("hold", "rebalance", "teacher", "base", "random")
    significant = [name for name in others if metrics[f"p_{name}"] < 0.05]
    times = market.swaps["block_timestamp"]
    verdict = (
        f"The difference from {' and '.join(significant)} is significant at 5 %"
        if significant
        else f"No difference from {', '.join(others[:-1])} or {others[-1]} is significant at 5 %"
    )
    return "\n\n".join(
        [
            f"**{verdict}** (p against hold {metrics['p_hold']:.2g}, rebalance {metrics['p_rebalance']:.2g}, teacher "
            f"{metrics['p_teacher']:.2g}, base {metrics['p_base']:.2g}, all Wilcoxon on "
            f"{metrics['n_episodes']:.0f} paired episodes; share of {config.random_runs} random traders at least as "
            f"good {metrics['p_random']:.2g}). Adapter minus hold: {metrics['adapter_minus_hold']:+.3%} an episode, "
            f"95 % bootstrap interval {against_hold[0]:+.3%} to {against_hold[1]:+.3%}. This checks the pipeline on a "
            "few hours of one market; it is not investment advice.",
            markdown_table(header, rows),
            f"{metrics['n_decisions']:.0f} decisions in {metrics['n_episodes']:.0f} episodes that do not overlap, from "
            f"{times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC; one decision every {market.every} swaps "
            f"(about {metrics['seconds_between_decisions']:.0f} s), each seeing the last {market.window} swaps and "
            f"executed after the next one. Every episode starts with {config.start_usdc:,.0f} USDC, half of it in ETH. "
            "Returns, turnover, fees and costs are shares of that, means over episodes. Sharpe: mean over standard "
            "deviation of the returns between decisions, times the root of the number of such intervals in a year of "
            "365.25 days; over so short a time it is a very rough figure."
            + "".join(
                f" {words}: 95 % interval {intervals[name][0]:.0f} to {intervals[name][1]:.0f} (stationary bootstrap)."
                for name, words in _SHARPE_WORDS.items()
                if name in intervals
            ),
            f"The adapter took the same action as the teacher's rules in {metrics['same_action_as_teacher']:.1%} of "
            f"its decisions; {metrics['unreadable_adapter']:.0f} answers held no action and "
            f"{metrics['refused_adapter']:.0f} trades were more than was held (neither traded). The random trader "
            "trades when the adapter did and as much ETH, on a random side (the other one if that is not held). "
            f"The bare base's answers held no action in {metrics['unreadable_base']:.0f} of "
            f"{metrics['n_decisions']:.0f} decisions: there it holds.",
            "Left out: gas, the reaction of others to our trades, and liquidity beyond the active range.",
            "![Mean worth of a portfolio](equity.png)\n\n![Trades on the held-out price](trades.png)",
        ]
    )


def _equity_figure(runs: dict[str, Run], randoms: list[Run]) -> bytes:
    figure, axes = new_figure(size=(7.5, 3.4))
    axis = axes[0, 0]
    spread = np.array([run.equity.mean(axis=0) for run in randoms])
    swaps = np.arange(spread.shape[1])
    low, high = np.quantile(spread, [0.05, 0.95], axis=0)
    axis.fill_between(swaps, low, high, color="lightgrey", label="random, 5 % to 95 %")
    for name, run in runs.items():
        axis.plot(swaps, run.equity.mean(axis=0), label=name, linestyle="--" if name == "hold" else "-")
    axis.set(xlabel="swaps since the episode's start", ylabel="worth / start (mean of episodes)")
    axis.legend()
    return png(figure)


def _trades_figure(market: Market, run: Run) -> bytes:
    figure, axes = new_figure(size=(7.5, 3.0))
    axis = axes[0, 0]
    axis.plot(market.prices, color="grey", linewidth=0.8)
    rows = np.array([[market.row(e, k) + 1 for k in range(market.decisions)] for e in range(len(market.starts))])
    for sign, name, marker in ((1, "APE IN", "^"), (-1, "APE OUT", "v")):
        chosen = rows[np.sign(run.eth_traded) == sign]
        axis.scatter(chosen, market.prices[chosen], marker=marker, label=name, zorder=3)
    axis.set(xlabel="held-out swap", ylabel="USDC per ETH")
    axis.legend()
    return png(figure)
