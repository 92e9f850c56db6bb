"""The exact tests behind the reports' intervals and p-values."""

from collections.abc import Sequence

import numpy as np


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact confidence interval of a rate (Clopper and Pearson 1934).

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"{successes} successes of {trials} trials: expected at least one trial, and no more successes"
        )
    interval = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def mcnemar(first_right: Sequence[bool], second_right: Sequence[bool]) -> float:
    """Two-sided exact p-value of McNemar's test: were two ways of answering the same questions equally often right?

    Args:
        first_right: Whether the first was right, one entry a question.
        second_right: The same of the second.
    """
    from scipy.stats import binomtest

    pairs = list(zip(first_right, second_right, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def mean_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean; a point where all values are equal."""
    from scipy.stats import bootstrap

    if len(values) < 2 or not np.any(values != values[0]):
        return float(values.mean()), float(values.mean())
    found = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng([seed, 10])
    ).confidence_interval
    return float(found.low), float(found.high)
