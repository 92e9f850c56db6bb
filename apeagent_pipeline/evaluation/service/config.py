"""The options of the service report."""

from pydantic import Field

from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.distillation.templates import TEMPLATE
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig


class ServiceReportConfig(StateWords):
    """How often a day is asked about, and in which words. The edges between words must be those of training."""

    # Excluded: a report on another adapter is no less up to date, so nothing rebuilds it for the one in service.
    adapter: str = Field(
        "",
        exclude=True,
        description="Data version of an adapter in the history of apeagent promotions; empty: the one in service",
    )
    moments: int = Field(12, ge=1, description="Number of moments of the day to ask about, once in every wording")
    window: int = Field(24, ge=2, description="Swaps that a decision sees: the length of a training window")
    horizon: int = Field(24, ge=1, description="Swaps after which the value of a decision is compared with holding")
    templates: list[str] = Field(
        ["document", "question"],
        min_length=1,
        description="Wordings of the prompts: one of numbers alone, one with words",
    )
    start_usdc: float = Field(10_000.0, gt=0, description="Value of the portfolio at every moment, in USDC")
    max_new_tokens: int = Field(LONGEST_TRADE, ge=8, description="Largest number of tokens in an answer")

    def replay(self, template: str) -> BacktestConfig:
        """The options of the backtest that asks every moment once, in one wording."""
        words = {name: getattr(self, name) for name in StateWords.model_fields}
        return BacktestConfig(
            **words,
            window=self.window,
            every=self.horizon,
            decisions=1,
            episodes=self.moments,
            start_usdc=self.start_usdc,
            template=template,
            max_new_tokens=self.max_new_tokens,
        )

    @property
    def forms(self) -> dict[str, str]:
        """Form of the prompts -> the wording that is asked in it."""
        return {TEMPLATE[name].rendering: name for name in self.templates}
