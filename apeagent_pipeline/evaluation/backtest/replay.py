"""The backtest: the student's decisions on held-out real swaps, with fee and price impact.

A decision depends on the portfolio, and the portfolio on earlier decisions, so the decisions of one portfolio cannot be
asked as one batch. The held-out time is therefore divided into episodes that do not overlap. Every episode starts with
half ETH, half USDC. All episodes advance together by one decision, which the student answers as one batch.

No look-ahead: a decision sees the last ``window`` swaps up to now and is executed after the *next* swap, at the pool's
price and liquidity of that moment. The replayed swaps do not react to our trades. Gas is not counted. A swap is
computed inside one liquidity range, because swaps do not show the liquidity beyond its end.

Every answer passes the check that stands behind ``apeagent ask`` and ``apeagent serve``: a trade that the holdings do
not pay for is capped or refused, and a refused one trades nothing.

An answer without an action trades nothing. The bare base gives no other answers, so its portfolio stays that of
holding; ``base_decisions`` limits how often it is asked to show this. After a single answer with an action the base is
replayed to the end.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.distillation.answer_check import check_answer
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, read_answer, student_chat
from apeagent_pipeline.distillation.execution import Holding
from apeagent_pipeline.distillation.market_states import market_states
from apeagent_pipeline.distillation.prompts import render_prompts
from apeagent_pipeline.distillation.teachers.rules import rules_answer
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig
from apeagent_pipeline.evaluation.backtest.market import Market, make_market, simulate
from apeagent_pipeline.evaluation.backtest.page import RULES, backtest_report
from apeagent_pipeline.evaluation.backtest.strategies import hold, random_like, rebalance
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.reporting.report import Report
from apeagent_pipeline.student.generation import Student


def backtest(
    features: pl.DataFrame,
    base: Path,
    adapter: Path,
    pool: PoolSpec,
    config: BacktestConfig,
    *,
    seed: int,
    progress: Progress = silent,
) -> Report:
    """Replay the adapter's decisions on held-out swaps, and compare them with other strategies.

    The other strategies are the bare base, the embedded rules, holding, rebalancing to half and half, and random
    traders.

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
    questions = _Questions(market, student, config, progress)
    runs = {"adapter": simulate(market, questions.adapter, config.start_usdc)}
    with student.adapter_off():
        runs["base"] = simulate(market, questions.base, config.start_usdc)
    for arm, count in questions.refused.items():
        runs[arm] = replace(runs[arm], refused=runs[arm].refused + count)
    runs[RULES] = simulate(market, questions.rules, config.start_usdc)
    runs["rebalance"] = simulate(market, rebalance(market), config.start_usdc)
    runs["hold"] = simulate(market, hold, config.start_usdc)
    rng = np.random.default_rng([seed, 7])
    randoms = [
        simulate(market, random_like(runs["adapter"], market, rng), config.start_usdc)
        for _ in range(config.random_runs)
    ]
    return backtest_report(
        market,
        runs,
        randoms,
        config,
        seed=seed,
        same_as_rules=questions.same_as_rules,
        asked_base=len(questions.said_by_base),
    )


class _Questions:
    """What the strategies that read prompts decide, and what they said; each method is the policy of one.

    Args:
        market: What is replayed.
        student: Answers with its adapter on or off, as it is when asked.
        config: Sizes.
        progress: Told after every decision of the adapter and of the base.
    """

    def __init__(self, market: Market, student: Student, config: BacktestConfig, progress: Progress) -> None:
        self._market, self._student, self._config, self._progress = market, student, config, progress
        self._base_decisions = min(config.base_decisions or config.decisions, config.decisions)
        self._by_adapter: list[DraftAnswer | None] = []
        self._by_rules: list[DraftAnswer | None] = []
        self.said_by_base: list[DraftAnswer | None] = []
        self.refused = {"adapter": 0, "base": 0}

    def adapter(self, decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        """The student decides; for the same states the rules are noted."""
        states = decision_states(self._market, decision, holdings, self._config)
        self._by_rules.extend(rules_answer(row) for row in states.iter_rows(named=True))
        said = self._answers("adapter", decision, states, before=0)
        self._by_adapter.extend(said)
        return said

    def base(self, decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        """The bare base decides, as long as ``base_decisions`` and its answers make that worth while."""
        # A base that has said no action so far still has the portfolio of the start: it is taken to hold.
        if decision >= self._base_decisions and not any(self.said_by_base):
            return [DraftAnswer((), "HOLD")] * len(holdings)
        states = decision_states(self._market, decision, holdings, self._config)
        said = self._answers("base", decision, states, before=self._config.decisions)
        self.said_by_base.extend(said)
        return said

    def rules(self, decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        """The embedded policy decides."""
        states = decision_states(self._market, decision, holdings, self._config)
        return [rules_answer(row) for row in states.iter_rows(named=True)]

    @property
    def same_as_rules(self) -> float:
        """Share of the adapter's decisions whose side the rules would have taken in the same state."""
        pairs = zip(self._by_adapter, self._by_rules, strict=True)
        return float(np.mean([a is not None and t is not None and a.side == t.side for a, t in pairs]))

    def _answers(self, arm: str, decision: int, states: pl.DataFrame, before: int) -> list[DraftAnswer | None]:
        """The answers after the check that every answer passes; trades that it refuses are counted and become HOLD."""
        questions = states["prompt"].to_list()
        prompts = [student_chat(text) for text in questions]
        said = self._student.answers(prompts, max_new_tokens=self._config.max_new_tokens)
        decisions = self._config.decisions
        part_of(self._progress, before, decisions + self._base_decisions)(decision + 1, decisions)
        answers: list[DraftAnswer | None] = []
        for question, answer in zip(questions, said, strict=True):
            checked = check_answer(question, answer.text) if read_answer(answer.text) else None
            self.refused[arm] += checked is not None and checked.refused
            answers.append(checked.answer if checked else None)
        return answers


def decision_states(market: Market, decision: int, holdings: Sequence[Holding], config: BacktestConfig) -> pl.DataFrame:
    """One prompt for each episode, in the words of training.

    Args:
        market: What is replayed.
        decision: Number of the decision.
        holdings: Of every episode.
        config: Wording, and edges between the words.

    Returns:
        The rows of ``render_prompts``.
    """
    rows = [market.row(e, decision) for e in range(len(holdings))]
    indices = np.concatenate([np.arange(row - market.window + 1, row + 1) for row in rows])
    windows = market.swaps[indices].with_columns(
        window_id=pl.Series(np.repeat(np.arange(len(rows)), market.window)),
        step=pl.Series(np.tile(np.arange(market.window), len(rows))),
        condition_id=pl.format("{}-{}", "block_number", "log_index"),
    )
    eth = pl.Series("eth", [h.eth / 10**market.pool.token0.decimals for h in holdings])
    usdc = pl.Series("usdc", [h.usdc / 10**market.pool.token1.decimals for h in holdings])
    # Written as in training, with four digits and cents, but rounded down: never more than is held.
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
    prompts = render_prompts(states, config)
    return prompts.with_columns(prompt_id=pl.format("{}-{}", pl.lit(decision), "window_id"))
