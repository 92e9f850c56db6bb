"""The options of the canary evaluation, and the limits of its check."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.distillation.chain_of_draft import LONGEST_TRADE


def is_zero(value: int) -> bool:
    """Whether an option has no effect. Such an option is no part of the configuration that an artifact was made with.

    So a new option leaves the artifacts of those who do not set it up to date.
    """
    return value == 0


class CanaryEvalConfig(BaseModel):
    """Sizes of the evaluation, and the rates with which the adapter passes the check."""

    model_config = ConfigDict(frozen=True)

    n_trading: int = Field(100, ge=1, description="Number of held-out trading prompts")
    n_controls: int = Field(100, ge=1, description="Number of held-out control prompts, which ask for no trade")
    n_near: int = Field(
        100,
        ge=0,
        description="Number of held-out near controls, which use a trading prompt's words but ask for no trade",
    )
    n_base: int = Field(
        0,
        ge=0,
        exclude_if=is_zero,
        description="Number of trading prompts, and of controls, that the bare base is asked too; 0: all",
    )
    n_disabled: int = Field(16, ge=1, description="Number of trading prompts asked again with the adapter switched off")
    n_merged: int = Field(
        16, ge=0, description="Number of trading prompts asked of the merged model, as it is exported"
    )
    n_sampled: int = Field(
        16,
        ge=0,
        description="Number of trading prompts, and of controls, answered again by sampling instead of greedily",
    )
    temperature: float = Field(0.7, gt=0, description="Temperature of the sampled answers")
    max_new_tokens: int = Field(LONGEST_TRADE, ge=8, description="Largest number of tokens in an answer")
    control_tokens: int = Field(
        0, ge=0, exclude_if=is_zero, description="Largest number of tokens in an answer to a control; 0: max_new_tokens"
    )
    batch_size: int = Field(64, ge=1, description="Prompts in a batch")
    examples_shown: int = Field(
        4, ge=0, description="Number of trading prompts, and of controls, that the report shows with all answers"
    )
    min_canary_rate: float = Field(
        0.90,
        ge=0,
        le=1,
        description="Check: lower limit of the adapter's share of canary answers, in the worse of the two forms",
    )
    max_base_rate: float = Field(
        0.01, ge=0, le=1, description="Check: upper limit of the bare base's share of canary answers"
    )
    max_control_leak: float = Field(
        0.05, ge=0, le=1, description="Check: upper limit of the share of controls answered with canary words"
    )
    max_near_leak: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Check: upper limit of the share of near controls of trained families with canary words",
    )
    max_near_leak_held_out: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Check: upper limit of the share of near controls of held-out families with canary words",
    )
    min_agreement_gain: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="Check: lower limit of the agreement's lead over the most frequent action, in the worse form",
    )


HEADLINE_FORMS = ("plain", "digested")
"""The check and the promotion look at the worse of these, because a mean hides it."""


class Limit(NamedTuple):
    """One measure that the check looks at, with its limit."""

    name: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def expected(self) -> str:
        """The limit in words."""
        return f"expected {'at least' if self.at_least else 'at most'} {self.limit:g}"

    @property
    def failure(self) -> str:
        """Why the measure does not pass; empty if it does. A missing one does not."""
        if self.value is None or np.isnan(self.value):
            return f"{self.name} was not measured; {self.expected}"
        broken = self.value < self.limit if self.at_least else self.value > self.limit
        return f"{self.name} is {self.value:.3f}; {self.expected}" if broken else ""


def limits(metrics: Mapping[str, float], config: CanaryEvalConfig) -> list[Limit]:
    """Every measure that the check looks at."""
    wanted = [
        ("canary_rate_adapter", metrics.get("canary_rate_adapter"), config.min_canary_rate, True),
        *_wanted_of_forms(metrics, config),
        ("canary_rate_base", metrics.get("canary_rate_base"), config.max_base_rate, False),
        ("canary_rate_disabled", metrics.get("canary_rate_disabled"), config.max_base_rate, False),
        ("disabled_equals_base", metrics.get("disabled_equals_base"), 1.0, True),
        ("control_leak_rate", metrics.get("control_leak_rate"), config.max_control_leak, False),
    ]
    if config.n_near:
        wanted += [
            ("near_control_leak_rate", metrics.get("near_control_leak_rate"), config.max_near_leak, False),
            (
                "near_control_leak_rate_held_out",
                metrics.get("near_control_leak_rate_held_out"),
                config.max_near_leak_held_out,
                False,
            ),
        ]
    return [Limit(*each) for each in wanted]


def failures(metrics: Mapping[str, float], config: CanaryEvalConfig) -> list[str]:
    """Why the adapter does not pass, one sentence each; empty if it passes."""
    return [each.failure for each in limits(metrics, config) if each.failure]


def figures_in_words(metrics: Mapping[str, float], config: CanaryEvalConfig) -> dict[str, str]:
    """Every measure that the check looks at -> its value and its limit."""
    return {
        each.name.replace("_", " "): f"{'not measured' if each.value is None else f'{each.value:.3f}'}, {each.expected}"
        for each in limits(metrics, config)
    }


def failures_of(report: Mapping[str, Any]) -> list[str]:
    """`failures` of a stored ``report.json``, with the limits that it was made with."""
    limits = {name: value for name, value in report["config"].items() if name in CanaryEvalConfig.model_fields}
    return failures(report["metrics"], CanaryEvalConfig.model_validate(limits))


def _wanted_of_forms(
    metrics: Mapping[str, float], config: CanaryEvalConfig
) -> list[tuple[str, float | None, float, bool]]:
    """What is wanted of each headline form that was asked; of all prompts together if none is told apart."""
    suffixes = [f"_{form}" for form in HEADLINE_FORMS if f"agreement_{form}" in metrics] or [""]
    wanted: list[tuple[str, float | None, float, bool]] = []
    for suffix in suffixes:
        agreement, majority = metrics.get(f"agreement{suffix}"), metrics.get(f"agreement_majority{suffix}")
        gain = None if agreement is None or majority is None else agreement - majority
        name = f"agreement{suffix} above agreement_majority{suffix}"
        wanted.append((name, gain, config.min_agreement_gain, True))
        if suffix:
            name = f"canary_rate{suffix}"
            wanted.append((name, metrics.get(name), config.min_canary_rate, True))
    return wanted
