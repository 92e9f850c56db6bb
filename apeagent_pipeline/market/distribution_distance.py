"""How far two samples of a feature lie apart."""

import numpy as np


def ks_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic of two samples: the largest distance of their distribution functions, 0 to 1.

    `scipy.stats.ks_2samp` gives the same number, but also a p-value, which takes most of its time and is not used here.

    Args:
        first: Values [n], in any order.
        second: Values [m].
    """
    values = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(np.sort(each), values, side="right") / len(each) for each in (first, second)]
    return float(np.abs(below[0] - below[1]).max())
