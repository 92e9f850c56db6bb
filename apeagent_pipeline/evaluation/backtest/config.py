"""The options of the backtest."""

from pydantic import Field

from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.evaluation.canary.config import is_zero


class BacktestConfig(StateWords):
    """Length and size of the backtest. The edges between words must be those of the training prompts."""

    window: int = Field(24, ge=2, description="Swaps a decision sees, as many as a training window has")
    every: int = Field(6, ge=1, description="Swaps from one decision to the next")
    decisions: int = Field(6, ge=1, description="Decisions in an episode")
    base_decisions: int = Field(
        0,
        ge=0,
        exclude_if=is_zero,
        description="Decisions of every episode that the bare base is asked, as long as no answer of it holds an "
        "action; it holds in the others; 0: all",
    )
    episodes: int = Field(16, ge=1, description="Episodes at most; fewer if the held-out swaps are fewer")
    start_usdc: float = Field(10_000.0, gt=0, description="Worth of a portfolio at the start, half of it in ETH")
    template: str = Field("question", description="Wording of the prompts, one of the training templates")
    max_new_tokens: int = Field(LONGEST_TRADE, ge=8, description="Longest answer")
    random_runs: int = Field(200, ge=1, description="Random traders with the student's turnover")
