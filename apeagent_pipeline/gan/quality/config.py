"""Options of the quality report, and the limits of its check."""

from pydantic import BaseModel, ConfigDict, Field


class QualityConfig(BaseModel):
    """How windows are judged, and the limits of the check that protects the teacher's budget from bad windows."""

    model_config = ConfigDict(frozen=True)

    windows: int = Field(1_500, description="Upper limit of the windows of each kind that a classifier reads", ge=20)
    deals: int = Field(3, description="Random assignments of blocks to folds, over which scores are averaged", ge=1)
    block_rows: int = Field(96, description="Rows of a block of time, which is assigned to a fold as a whole", ge=24)
    folds: int = Field(4, description="Folds of the classifiers' cross-validation", ge=2)
    gru_epochs: int = Field(8, description="Epochs of the GRU classifier", ge=1)
    largest_auc: float = Field(0.75, description="Check: upper limit of the AUC of gradient boosting", gt=0.5, le=1)
    largest_copied_runs: float = Field(
        0.01, description="Check: upper limit of the share of copied 3-row runs", ge=0, le=1
    )
    largest_ks: float = Field(
        0.05, description="Check: upper limit of the mean Kolmogorov-Smirnov distance", gt=0, le=1
    )
