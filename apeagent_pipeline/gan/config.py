"""Sizes and schedules of the GAN."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_ROWS = 4_000
"""Train rows from which on the warm start grows."""


class GanConfig(BaseModel):
    """Options of the generator, the critic and the two stages of training.

    The profiles set sizes, steps and rates. The other options exist for experiments: weight 0 switches a loss off, and
    the quality benchmark measures the effect of each loss this way.
    """

    model_config = ConfigDict(frozen=True)

    hidden: int = Field(64, description="Width of the generator", ge=8)
    layers: int = Field(4, description="Decoder layers of the generator", ge=1)
    heads: int = Field(8, description="Attention heads; must divide hidden", ge=1)
    condition_layers: int = Field(1, description="Encoder layers for the condition rows", ge=1)
    dropout: float = Field(0.2, description="Dropout of the generator during training", ge=0, lt=1)
    bins: list[int] = Field(
        [32, 2, 56, 56, 40],
        description="Quantile bins of seconds, side, size, move between swaps and liquidity change (upper limits)",
        min_length=5,
        max_length=5,
    )

    batch: int = Field(48, description="Windows in a batch", ge=2)
    likelihood_steps: int = Field(
        800,
        description="Steps of the likelihood warm start for up to 4,000 train rows; they grow with the cube root of "
        "the rows",
        ge=0,
    )
    most_likelihood_steps: int = Field(3_200, description="Upper limit of these steps, whatever the rows", ge=0)
    likelihood_rate: float = Field(1e-3, description="Learning rate of the warm start, annealed to zero", gt=0)
    weight_decay: float = Field(0.05, description="Decoupled weight decay of the generator in the warm start", ge=0)
    ema: float = Field(0.995, description="Decay of the averaged weights in the warm start", ge=0, lt=1)

    adversarial_steps: int = Field(60, description="Generator steps of the WGAN-GP stage", ge=0)
    adversarial_batch: int = Field(24, description="Histories in a batch of the WGAN-GP stage", ge=2)
    samples: int = Field(4, description="Windows sampled for each of these histories", ge=2)
    critic_steps: int = Field(3, description="Critic steps for each generator step", ge=1)
    adversarial_rate: float = Field(1e-4, description="Learning rate of the generator in that stage", gt=0)
    critic_rate: float = Field(3e-4, description="Learning rate of the critic", gt=0)
    adversarial_ema: float = Field(0.98, description="Decay of the averaged weights in that stage", ge=0, lt=1)
    policy: float = Field(0.25, description="Weight of the policy gradient for the discrete choices", ge=0)
    anchor: float = Field(1.0, description="Weight of the likelihood of real rows in the WGAN-GP stage", ge=0)
    critic_channels: int = Field(64, description="Width of the critic", ge=4)
    gradient_penalty: float = Field(10.0, description="Weight of the gradient penalty", ge=0)
    feature_matching: float = Field(1.0, description="Weight of feature matching on the critic's activations", ge=0)
    minibatch_discrimination: bool = Field(True, description="Whether the critic also compares the windows of a batch")
    diversity: float = Field(0.05, description="Weight of the diversity loss", ge=0)
    instance_noise: float = Field(0.1, description="Initial noise on the critic's input; decays to zero", ge=0)

    control_steps: int = Field(
        450,
        description="Steps of the control, which continues the warm start by likelihood alone for about as long as the "
        "WGAN-GP stage takes; 0: no control",
        ge=0,
    )

    workers: int = Field(
        0, description="Processes that share each batch; 0: one per CUDA device, if the batches divide evenly", ge=0
    )
    judged_windows: int = Field(
        1_000,
        description="Upper limit of the windows of a split that the classifier for selecting weights reads",
        ge=50,
    )
    largest_copied: float = Field(
        0.002, description="Weights that copy a larger share of 3-row runs are not selected", ge=0, le=1
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not a multiple of heads={self.heads}")
        return self

    def for_rows(self, rows: int) -> "GanConfig":
        """This configuration with the steps of the warm start that so many train rows take.

        More steps make windows of many days more realistic, and those of few days no more (measured; see the page on
        synthetic swaps).
        """
        steps = round(self.likelihood_steps * max(rows / _ROWS, 1.0) ** (1 / 3))
        return self.model_copy(update={"likelihood_steps": min(steps, self.most_likelihood_steps)})

    @property
    def generator_steps(self) -> int:
        """Steps of the two stages that train the generator."""
        return self.likelihood_steps + self.adversarial_steps

    @property
    def steps(self) -> int:
        """Steps of the two stages and of the control."""
        return self.generator_steps + self.control_steps
