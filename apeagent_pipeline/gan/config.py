"""Sizes and schedules of the GAN."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class GanConfig(BaseModel):
    """Generator, critic and the two stages of training; the defaults (demo) take about two minutes on two CPU cores."""

    model_config = ConfigDict(frozen=True)

    hidden: int = Field(64, description="Width of the generator", ge=8)
    layers: int = Field(4, description="Decoder layers of the generator", ge=1)
    heads: int = Field(8, description="Attention heads; divides hidden", ge=1)
    condition_layers: int = Field(1, description="Encoder layers over the condition rows", ge=1)
    dropout: float = Field(0.2, description="Dropout of the generator in training", ge=0, lt=1)
    bins: list[int] = Field(
        [32, 2, 56, 56, 40],
        description="At most so many quantile bins of seconds, side, size, move between swaps, liquidity change",
        min_length=5,
        max_length=5,
    )

    batch: int = Field(48, description="Windows in a batch", ge=2)
    likelihood_steps: int = Field(800, description="Steps of the likelihood warm start", ge=0)
    likelihood_rate: float = Field(1e-3, description="Its learning rate, annealed to zero", gt=0)
    weight_decay: float = Field(0.05, description="Decoupled weight decay of the generator", ge=0)
    ema: float = Field(0.995, description="Decay of the averaged weights in the warm start", ge=0, lt=1)

    adversarial_steps: int = Field(60, description="Generator steps of the WGAN-GP stage", ge=0)
    adversarial_batch: int = Field(24, description="Histories in a batch of that stage", ge=2)
    samples: int = Field(4, description="Windows sampled for each of them", ge=2)
    critic_steps: int = Field(3, description="Critic steps for each of them", ge=1)
    adversarial_rate: float = Field(1e-4, description="Learning rate of the generator in that stage", gt=0)
    critic_rate: float = Field(3e-4, description="Learning rate of the critic", gt=0)
    adversarial_ema: float = Field(0.98, description="Decay of the averaged weights in that stage", ge=0, lt=1)
    policy: float = Field(0.25, description="Weight of the critic's scores on the generator's choices", ge=0)
    anchor: float = Field(1.0, description="Weight of the likelihood of real rows in that stage", ge=0)
    critic_channels: int = Field(64, description="Width of the critic", ge=4)
    gradient_penalty: float = Field(10.0, description="Weight of the gradient penalty", ge=0)
    feature_matching: float = Field(1.0, description="Weight of feature matching on the critic's activations", ge=0)
    minibatch_discrimination: bool = Field(True, description="Whether the critic also compares the rows of a batch")
    diversity: float = Field(0.05, description="Weight of the diversity loss", ge=0)
    instance_noise: float = Field(0.1, description="Noise on the critic's input at the start; decays to zero", ge=0)

    control_steps: int = Field(
        450,
        description="Steps of a control, which goes on from the warm start by likelihood alone, about as long as the "
        "WGAN-GP stage takes; 0: none",
        ge=0,
    )

    workers: int = Field(
        0, description="Processes that share every batch; 0: one for each CUDA device, as far as it can be dealt", ge=0
    )
    judged_windows: int = Field(
        1_000, description="At most so many windows of a split are shown to the classifier that chooses weights", ge=50
    )
    largest_copied: float = Field(
        0.002, description="Weights whose windows copy a greater share of 3-row runs are not kept", ge=0, le=1
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is no multiple of heads={self.heads}")
        return self

    @property
    def generator_steps(self) -> int:
        """Steps of the two stages that make the generator."""
        return self.likelihood_steps + self.adversarial_steps

    @property
    def steps(self) -> int:
        """Steps of everything, the control too."""
        return self.generator_steps + self.control_steps
