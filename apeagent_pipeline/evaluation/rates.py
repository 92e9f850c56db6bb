"""Rates: how often something happened of how many times, as every report shows them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from apeagent_pipeline.evaluation.statistics import clopper_pearson


class Rate(NamedTuple):
    """A count of successes among trials. As JSON it is ``[k, n]``.

    Attributes:
        k: Successes.
        n: Trials.
    """

    k: int
    n: int

    @classmethod
    def of(cls, hits: Iterable[bool]) -> Self:
        """The rate of true values."""
        values = list(hits)
        return cls(sum(values), len(values))

    @property
    def value(self) -> float:
        """``k / n``."""
        return self.k / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval (Clopper and Pearson 1934)."""
        return clopper_pearson(self.k, self.n)

    @property
    def fraction(self) -> str:
        """Such as ``59/60``."""
        return f"{self.k}/{self.n}"

    @property
    def between(self) -> str:
        """The interval in words, such as ``91.1% to 100.0%``."""
        return "{:.1%} to {:.1%}".format(*self.interval)

    def row(self) -> list[str]:
        """Cells of a table: fraction, value and exact interval."""
        return [self.fraction, f"{self.value:.1%}", self.between]


def draw_bars(axis: Any, rates: Mapping[str, Rate], *, show_n: bool = True) -> None:
    """Draw one bar for each rate, with its exact 95 % interval.

    Args:
        axis: Of matplotlib.
        rates: Label -> rate.
        show_n: Whether the number of trials stands below each label.
    """
    values = np.array([rate.value for rate in rates.values()])
    bounds = np.array([rate.interval for rate in rates.values()])
    labels = [f"{label}\nn = {rate.n}" if show_n else label for label, rate in rates.items()]
    axis.bar(range(len(values)), values, yerr=np.abs(bounds.T - values), capsize=4, color="tab:blue", alpha=0.8)
    axis.set_xticks(range(len(values)), labels)
    axis.set(ylim=(0, 1.05), ylabel="rate")
