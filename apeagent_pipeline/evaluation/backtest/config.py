"""The options of the backtest."""

from pydantic import Field

from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.evaluation.canary.config import is_zero


class BacktestConfig(StateWords):
    """Length and size of the backtest. The edges between words must be those of the training prompts."""

    window: int = Field(24, ge=2, description="Swaps that a decision sees: the length of a training window")
    every: int = Field(6, ge=1, description="Swaps from one decision to the next")
    decisions: int = Field(6, ge=1, description="Number of decisions in an episode")
    base_decisions: int = Field(
        0,
        ge=0,
        exclude_if=is_zero,
        description="First decisions of each episode for which the bare base is asked; in the others it is taken to "
        "hold, unless one of its answers contained an action. 0: all",
    )
    episodes: int = Field(
        16, ge=1, description="Largest number of episodes; there are fewer if the held-out swaps do not suffice"
    )
    start_usdc: float = Field(
        10_000.0, gt=0, description="Value of the portfolio at the start in USDC, half of it in ETH"
    )
    template: str = Field("question", description="Wording of the prompts: the name of a training template")
    max_new_tokens: int = Field(LONGEST_TRADE, ge=8, description="Largest number of tokens in an answer")
    random_runs: int = Field(200, ge=1, description="Number of random traders, which have the student's turnover")
