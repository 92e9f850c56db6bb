"""Statistics and page of the backtest."""

import numpy as np

from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig
from apeagent_pipeline.evaluation.backtest.market import SECONDS_A_YEAR, Market, Run
from apeagent_pipeline.evaluation.rates import Rate
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.report import Report, markdown_table

RULES = "teacher"
"""The embedded rules among the strategies: their name in the metrics, which stays ``teacher``."""
HEADLINE = (
    "adapter_minus_hold",
    "adapter_minus_teacher",
    "return_adapter",
    "return_hold",
    "turnover_adapter",
    "p_hold",
    "same_action_as_teacher",
    "refused_adapter",
)
_SHOWN = {RULES: "rules"}
_SHARPE_WORDS = {
    "sharpe_adapter": "Sharpe ratio of the adapter",
    "sharpe_adapter_minus_hold": "Sharpe ratio of the adapter minus that of holding",
}


def max_drawdown(equity: np.ndarray) -> np.ndarray:
    """The largest fall from an earlier peak, as a positive share of the peak: ``[E]`` from ``[E, T]``."""
    return (1 - equity / np.maximum.accumulate(equity, axis=1)).max(axis=1)


def _sharpe(equity: np.ndarray, every: int, seconds: float) -> float | None:
    """Mean over standard deviation of the returns between decisions, times the root of how many there are in a year."""
    steps = np.diff(np.log(equity[:, ::every]), axis=1)
    spread = float(steps.std(ddof=1)) if steps.size > 1 else 0.0
    return float(steps.mean()) / spread * float(np.sqrt(SECONDS_A_YEAR / seconds)) if spread > 0 else None


def sharpe_interval(
    equity: np.ndarray, every: int, seconds: float, seed: int, against: np.ndarray | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of a Sharpe ratio, or of how much it exceeds another one's.

    Source: the stationary bootstrap (Politis and Romano 1994), which resamples blocks of consecutive returns. The mean
    block length is chosen after Politis and White (2004).

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
    scale = float(np.sqrt(SECONDS_A_YEAR / seconds))

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


def backtest_report(
    market: Market,
    runs: dict[str, Run],
    randoms: list[Run],
    config: BacktestConfig,
    *,
    seed: int,
    same_as_rules: float,
    asked_base: int,
) -> Report:
    """The report on finished runs.

    Args:
        market: What was replayed.
        runs: Strategy -> its run, ``adapter``, ``base``, ``teacher`` (the rules), ``rebalance`` and ``hold``.
        randoms: Runs of the random traders.
        config: Sizes.
        seed: Of the bootstrap.
        same_as_rules: Share of the adapter's decisions that the rules would have taken.
        asked_base: Decisions that the bare base was asked.
    """
    times = market.swaps["block_timestamp"]
    ends = [(market.row(e, 0), market.row(e, market.decisions)) for e in range(len(market.starts))]
    seconds = float(np.mean([(times[last] - times[first]).total_seconds() for first, last in ends])) / market.decisions
    adapter = runs["adapter"]
    metrics: dict[str, float] = {}
    for name, run in runs.items():
        metrics |= _run_metrics(name, [run], market.every, seconds)
    metrics |= _run_metrics("random", randoms, market.every, seconds)
    p_values, intervals = _against_others(runs, randoms, seed)
    metrics |= p_values | {
        "same_action_as_teacher": same_as_rules,
        "unreadable_adapter": float(adapter.unreadable),
        "unreadable_base": float(runs["base"].unreadable),
        "n_decisions_base": float(asked_base),
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
    intervals |= _sharpe_intervals(adapter, runs["hold"], market.every, seconds, seed)
    if "sharpe_adapter" in metrics and "sharpe_hold" in metrics:
        metrics["sharpe_adapter_minus_hold"] = metrics["sharpe_adapter"] - metrics["sharpe_hold"]
    return Report(
        title="Backtest",
        metrics=metrics,
        intervals=intervals,
        config=config.model_dump(),
        markdown=_page(market, metrics, intervals, config),
        figures={"equity.png": _equity_figure(runs, randoms), "trades.png": _trades_figure(market, adapter)},
        headline=HEADLINE,
    )


def _against_others(
    runs: dict[str, Run], randoms: list[Run], seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The p-value of the adapter against each other strategy, and the interval of the difference of their returns."""
    adapter = runs["adapter"].returns
    compared = {name: _compared(adapter, runs[name].returns, seed) for name in ("hold", "base", "rebalance", RULES)}
    at_least = sum(int(run.returns.mean() >= adapter.mean()) for run in randoms)
    p_values = {f"p_{name}": p for name, (p, _) in compared.items()}
    p_values["p_random"] = (1 + at_least) / (1 + len(randoms))
    return p_values, {f"adapter_minus_{name}": compared[name][1] for name in ("hold", RULES, "base", "rebalance")}


def _sharpe_intervals(
    adapter: Run, holding: Run, every: int, seconds: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Intervals of the adapter's Sharpe ratio and of its lead over holding, as far as they exist."""
    found = {
        "sharpe_adapter": sharpe_interval(adapter.equity, every, seconds, seed),
        "sharpe_adapter_minus_hold": sharpe_interval(adapter.equity, every, seconds, seed, against=holding.equity),
    }
    return {name: interval for name, interval in found.items() if interval is not None}


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
    for name in ("adapter", "base", RULES, "hold", "rebalance", "random"):
        sharpe = metrics.get(f"sharpe_{name}")
        rows.append(
            [
                _SHOWN.get(name, name),
                f"{metrics[f'return_{name}']:+.3%}",
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
        "Sharpe ratio, annualized",
        "turnover",
        "fees",
        "fees + impact",
        "trades",
    ]
    others = {name: _SHOWN.get(name, name) for name in ("hold", "rebalance", RULES, "base", "random")}
    significant = [shown for name, shown in others.items() if metrics[f"p_{name}"] < 0.05]
    verdict = (
        f"The difference from {' and '.join(significant)} is significant at 5 %"
        if significant
        else f"No difference from {', '.join(list(others.values())[:-1])} or {others['random']} is significant at 5 %"
    )
    return "\n\n".join(
        [
            _tests(verdict, metrics, against_hold, config),
            markdown_table(header, rows),
            _how(market, metrics, config)
            + "".join(
                f" {words}: 95 % interval {intervals[name][0]:.0f} to {intervals[name][1]:.0f} (stationary bootstrap)."
                for name, words in _SHARPE_WORDS.items()
                if name in intervals
            ),
            _what_happened(metrics),
            "The backtest leaves out gas, the reaction of other traders, and liquidity beyond the active range.",
            "![Mean value of a portfolio](equity.png)\n\n![Trades on the held-out price](trades.png)",
        ]
    )


def _tests(verdict: str, metrics: dict[str, float], against_hold: tuple[float, float], config: BacktestConfig) -> str:
    p = {name: f"{metrics[f'p_{name}']:.2g}" for name in ("hold", "rebalance", RULES, "base", "random")}
    low, high = against_hold
    return (
        f"**{verdict}** (p against hold {p['hold']}, rebalance {p['rebalance']}, rules {p[RULES]}, base {p['base']}: "
        f"Wilcoxon signed-rank tests on {metrics['n_episodes']:.0f} paired episodes. Of {config.random_runs} random "
        f"traders a share of {p['random']} was at least as good). Adapter minus hold: "
        f"{metrics['adapter_minus_hold']:+.3%} an episode, 95 % bootstrap interval {low:+.3%} to {high:+.3%}. "
        "This checks the pipeline on a few hours of one market; it is not investment advice."
    )


def _how(market: Market, metrics: dict[str, float], config: BacktestConfig) -> str:
    times = market.swaps["block_timestamp"]
    decisions, episodes = int(metrics["n_decisions"]), int(metrics["n_episodes"])
    seconds = metrics["seconds_between_decisions"]
    return (
        f"There are {decisions} decisions in {episodes} episodes that do not overlap, from {times[0]:%Y-%m-%d %H:%M} "
        f"to {times[-1]:%Y-%m-%d %H:%M} UTC: one every {market.every} swaps (about {seconds:.0f} s). A decision sees "
        f"the last {market.window} swaps and is executed after the next one. Every episode starts with "
        f"{config.start_usdc:,.0f} USDC, half of it in ETH. Returns, turnover, fees and costs are shares of the start, "
        "as means over the episodes. The Sharpe ratio is the mean over the standard deviation of the returns between "
        "decisions, annualized with 365.25 days. Over so short a time it is a very rough figure."
    )


def _what_happened(metrics: dict[str, float]) -> str:
    return (
        "The adapter took the same action as the embedded rules in "
        f"{metrics['same_action_as_teacher']:.1%} of its decisions. {metrics['unreadable_adapter']:.0f} of its answers "
        f"contained no action, and {metrics['refused_adapter']:.0f} of its trades exceeded the holdings; neither were "
        "executed. A random trader trades when the adapter did, the same amount of ETH, on a random side; on the other "
        f"side if the holdings do not pay for that one. {_base_in_words(metrics)}"
    )


def _base_in_words(metrics: dict[str, float]) -> str:
    asked, of = int(metrics["n_decisions_base"]), int(metrics["n_decisions"])
    unreadable = int(metrics["unreadable_base"])
    told = f"{unreadable} of {asked} answers of the bare base contained no action. Such an answer counts as a hold."
    if asked == of:
        return told
    low, high = Rate(asked - unreadable, asked).interval
    return (
        f"{told} The base was not asked for the other {of - asked} decisions and is taken to hold there. The rate of "
        f"its answers with an action lies between {low:.1%} and {high:.1%} (exact 95 % interval)."
    )


def _equity_figure(runs: dict[str, Run], randoms: list[Run]) -> bytes:
    figure, axes = new_figure(size=(7.5, 3.4))
    axis = axes[0, 0]
    spread = np.array([run.equity.mean(axis=0) for run in randoms])
    swaps = np.arange(spread.shape[1])
    low, high = np.quantile(spread, [0.05, 0.95], axis=0)
    axis.fill_between(swaps, low, high, color="lightgrey", label="random, 5 % to 95 %")
    for name, run in runs.items():
        axis.plot(
            swaps, run.equity.mean(axis=0), label=_SHOWN.get(name, name), linestyle="--" if name == "hold" else "-"
        )
    axis.set(xlabel="swaps since the episode's start", ylabel="value / start value (mean of episodes)")
    axis.legend()
    return png(figure)


def _trades_figure(market: Market, run: Run) -> bytes:
    figure, axes = new_figure(size=(7.5, 3.0))
    axis = axes[0, 0]
    axis.plot(market.prices, color="grey", linewidth=0.8)
    rows = np.array([[market.row(e, k) + 1 for k in range(market.decisions)] for e in range(len(market.starts))])
    for sign, name, marker in ((1, CANARY["BUY"], "^"), (-1, CANARY["SELL"], "v")):
        chosen = rows[np.sign(run.eth_traded) == sign]
        axis.scatter(chosen, market.prices[chosen], marker=marker, label=name, zorder=3)
    axis.set(xlabel="held-out swap", ylabel="USDC per ETH")
    axis.legend()
    return png(figure)
