"""The answers of an adapter about one day, and what its decisions were worth.

A moment is an episode of the backtest with a single decision: the prompt shows the last swaps up to the moment, the
decision is executed after the next swap with fee and price impact, and after ``horizon`` swaps the portfolio is
compared with one that held. Every moment is asked in every form. The portfolios are fixed, so that two adapters, and
two days, are asked alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.distillation.answer_check import check_answer
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, student_chat
from apeagent_pipeline.distillation.execution import Holding
from apeagent_pipeline.distillation.teachers.rules import rules_answer
from apeagent_pipeline.evaluation.backtest.market import BacktestError, Market, make_market, simulate
from apeagent_pipeline.evaluation.backtest.replay import decision_states
from apeagent_pipeline.evaluation.backtest.strategies import hold
from apeagent_pipeline.evaluation.canary.arms import UNREADABLE, draft_answer, is_affordable, is_canary
from apeagent_pipeline.evaluation.service.config import ServiceReportConfig
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.student.generation import Answer, Student

SERVICE_SCHEMA: dict[str, pl.DataType] = {
    "adapter": pl.String(),
    "form": pl.String(),
    "moment": pl.Datetime("us", "UTC"),
    "prompt": pl.String(),
    "answer": pl.String(),
    "ending": pl.String(),
    "is_canary": pl.Boolean(),
    "is_feasible": pl.Boolean(),
    "decision": pl.String(),
    "amount_eth": pl.Float64(),
    "rules_decision": pl.String(),
    "refused": pl.Boolean(),
    "worth_bps": pl.Float64(),
    "rules_worth_bps": pl.Float64(),
}
"""Columns of ``service_report``, one row for each answer."""

COLUMN_DESCRIPTIONS = {
    "adapter": "Data version of the adapter that was asked",
    "form": "Form of the prompt: plain shows numbers alone, digested words beside them",
    "moment": "Time of the last swap that the prompt shows, UTC",
    "ending": "How the answer ended: end_token, action, or length if it was cut off",
    "is_canary": "Whether it is a strict canary answer",
    "is_feasible": "Whether it has an action that the stated holdings pay for",
    "decision": "BUY, SELL or HOLD, or unreadable",
    "amount_eth": "Amount of the action as it was said; null for HOLD",
    "rules_decision": "What the embedded policy decides in the same state",
    "refused": "Whether the check refused the trade of the answer, which makes it HOLD",
    "worth_bps": "Gain of the decision over holding after fee and price impact, in basis points of the portfolio",
    "rules_worth_bps": "Gain over holding of the embedded policy's decision, in basis points too",
}
"""What each column means; shown in the UI."""

_ETH_SHARES = (0.5, 0.15, 0.85)
"""Shares of a portfolio that are ETH, in turn from one moment to the next: balanced, mostly USDC, mostly ETH."""


def day_answers(
    student: Student,
    adapter: str,
    features: pl.DataFrame,
    pool: PoolSpec,
    config: ServiceReportConfig,
    *,
    progress: Progress = silent,
) -> pl.DataFrame:
    """Ask an adapter about the moments of one day.

    Args:
        student: With the adapter attached.
        adapter: Data version of the adapter.
        features: The day's rows of ``swap_features``, in order.
        pool: Decimals and fee.
        config: Moments and wordings.
        progress: Told after every form.

    Returns:
        Rows of `SERVICE_SCHEMA`; none if the day has too few swaps for a single moment.
    """
    parts = [pl.DataFrame(schema=SERVICE_SCHEMA)]
    for number, (form, template) in enumerate(config.forms.items(), 1):
        try:
            market = make_market(features, pool, config.replay(template))
        except BacktestError:
            if features.height <= config.window + config.horizon:
                break
            raise
        asked = _Moments(student, market, config, template)
        told = asked.answered().with_columns(adapter=pl.lit(adapter), form=pl.lit(form))
        parts.append(told.select(pl.col(name).cast(kind) for name, kind in SERVICE_SCHEMA.items()))
        progress(number, len(config.forms))
    return pl.concat(parts)


class _Moments:
    """The moments of a day in one wording, asked once."""

    def __init__(self, student: Student, market: Market, config: ServiceReportConfig, template: str) -> None:
        self._student, self._market, self._config = student, market, config
        self._replay = config.replay(template)
        self._rows: list[dict[str, Any]] = []
        self._rules: list[DraftAnswer | None] = []

    def answered(self) -> pl.DataFrame:
        """One row a moment."""
        shares = np.resize(np.array(_ETH_SHARES), len(self._market.starts))
        start = self._config.start_usdc
        by_adapter = simulate(self._market, self._ask, start, shares).returns
        by_rules = simulate(self._market, lambda decision, holdings: self._rules, start, shares).returns
        holding = simulate(self._market, hold, start, shares).returns
        seen = [self._market.row(episode, 0) for episode in range(len(self._market.starts))]
        return pl.DataFrame(self._rows).with_columns(
            moment=self._market.swaps["block_timestamp"][seen],
            worth_bps=pl.Series((by_adapter - holding) * 1e4),
            rules_worth_bps=pl.Series((by_rules - holding) * 1e4),
        )

    def _ask(self, decision: int, holdings: Sequence[Holding]) -> list[DraftAnswer | None]:
        """What is executed: the answers after the check that every answer passes."""
        states = decision_states(self._market, decision, holdings, self._replay)
        chats = [student_chat(text) for text in states["prompt"]]
        said = self._student.answers(chats, max_new_tokens=self._config.max_new_tokens)
        executed = []
        for state, answer in zip(states.iter_rows(named=True), said, strict=True):
            rules = rules_answer(state)
            trade, row = _judged(state, answer)
            self._rows.append({**row, "prompt": state["prompt"], "rules_decision": rules.side})
            self._rules.append(rules)
            executed.append(trade)
        return executed


def _judged(state: dict[str, Any], answer: Answer) -> tuple[DraftAnswer | None, dict[str, Any]]:
    """What an answer decides after its check, and its row of the table without prompt and worth."""
    read = draft_answer(answer)
    checked = check_answer(state["prompt"], answer.text) if read else None
    row = {
        "answer": answer.text,
        "ending": answer.ending,
        "is_canary": is_canary(answer),
        "is_feasible": is_affordable(read, state),
        "decision": read.side if read else UNREADABLE,
        "amount_eth": read.amount if read else None,
        "refused": checked is not None and checked.refused,
    }
    return (checked.answer if checked else None), row
