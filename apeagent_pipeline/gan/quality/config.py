"""How windows are judged, and the limits of the check."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class QualityConfig(BaseModel):
    """How windows are judged, and what the check that guards the teacher's budget demands."""

    model_config = ConfigDict(frozen=True)

    windows: int = Field(1_500, description="At most so many windows of each kind are shown to a classifier", ge=20)
    deals: int = Field(3, description="How often blocks are dealt to folds; scores of the trees are averaged", ge=1)
    block_rows: int = Field(96, description="Rows of a block of time that is dealt to a fold as a whole", ge=24)
    folds: int = Field(4, description="Folds of the discriminators", ge=2)
    gru_epochs: int = Field(8, description="Epochs of the GRU discriminator", ge=1)
    largest_auc: float = Field(0.75, description="Check: AUC of gradient boosting at most", gt=0.5, le=1)
    largest_copied_runs: float = Field(0.01, description="Check: share of copied 3-row runs at most", ge=0, le=1)
    largest_ks: float = Field(0.05, description="Check: mean Kolmogorov-Smirnov distance at most", gt=0, le=1)


def quality_failures(metrics: Mapping[str, float], config: QualityConfig) -> list[str]:
    """What the metrics of a quality report fall short of, in words; empty if the windows may be used."""
    at_most = {
        "discriminative_auc": config.largest_auc,
        "copied_runs": config.largest_copied_runs,
        "ks_mean": config.largest_ks,
    }
    failures = [
        f"{name} is {metrics[name]:.4f}, allowed {limit}" for name, limit in at_most.items() if metrics[name] > limit
    ]
    exact = ("price_matches_tick", "opposite_signs", "effective_price")
    return failures + [f"{name} is {metrics[name]:.4%}, must be 100 %" for name in exact if metrics[name] < 1]
