"""Quantile bins of the free features, and the empirical distribution inside each bin.

A value is encoded as a bin and a position in [0, 1) inside it. The position is a rank among the train values of the
bin, and decoding always returns a train value: round sizes, whole seconds and exact zeros survive.
"""

from pathlib import Path

import numpy as np

FILE = "bins.safetensors"

_TAIL_HALVINGS = 3
_LEAST_VALUES = 32
"""Train values in a bin; fewer could not be told from noise."""


class RowBins:
    """Bins of every feature, fitted on train rows.

    Attributes:
        values: Of every feature the sorted train values, float64 [n].
        starts: Of every feature the rank at which each bin starts, and n at the end, int64 [bins + 1].
    """

    def __init__(self, values: list[np.ndarray], starts: list[np.ndarray]) -> None:
        self.values = values
        self.starts = starts
        # A bin reaches from above the greatest train value of the bin before it to its own greatest train value.
        self._edges = [column[ends[1:-1] - 1] for column, ends in zip(values, starts, strict=True)]

    @property
    def counts(self) -> list[int]:
        """Number of bins of every feature."""
        return [len(starts) - 1 for starts in self.starts]

    @property
    def features(self) -> int:
        """Number of features."""
        return len(self.values)

    @classmethod
    def fit(cls, rows: np.ndarray, at_most: list[int]) -> "RowBins":
        """Fit bins of about equal mass; a value more frequent than a bin's mass gets its own bin.

        Args:
            rows: Train rows, [n, features].
            at_most: Number of quantile bins of every feature; frequent values and the tails add a few.

        Raises:
            ValueError: if a value is not finite.
        """
        if not np.isfinite(rows).all():
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=0)).tolist()
            raise ValueError(f"the training rows have values that are not finite in the columns {bad}")
        values = [np.sort(column) for column in rows.T]
        return cls(values, [_bin_starts(column, count) for column, count in zip(values, at_most, strict=True)])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Bin of every value, int64, the shape of ``rows`` [..., features]."""
        columns = [np.searchsorted(edges, rows[..., k], side="left") for k, edges in enumerate(self._edges)]
        return np.stack(columns, axis=-1).astype(np.int64)

    def positions(self, rows: np.ndarray, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The position of every value inside its bin, float64 [..., features].

        A value that occurs several times gets a random rank among its copies, so that the positions of train rows are
        uniform, like the noise of the generator.
        """
        columns = []
        for k, (values, starts) in enumerate(zip(self.values, self.starts, strict=True)):
            low = np.searchsorted(values, rows[..., k], side="left")
            high = np.searchsorted(values, rows[..., k], side="right")
            rank = low + rng.random(low.shape) * (high - low)
            start, end = starts[bins[..., k]], starts[bins[..., k] + 1]
            columns.append(np.clip((rank - start) / (end - start), 0.0, 1.0))
        return np.stack(columns, axis=-1)

    def decode(self, bins: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The train value at a position of a bin, float64 [..., features]."""
        columns = []
        for k, (values, starts) in enumerate(zip(self.values, self.starts, strict=True)):
            start, end = starts[bins[..., k]], starts[bins[..., k] + 1]
            rank = start + np.floor(positions[..., k] * (end - start)).astype(np.int64)
            columns.append(values[np.clip(rank, start, end - 1)])
        return np.stack(columns, axis=-1)

    def save(self, folder: Path) -> None:
        """Write ``bins.safetensors`` into ``folder``."""
        from safetensors.numpy import save_file

        tensors = {f"values.{k}": values for k, values in enumerate(self.values)}
        save_file({**tensors, **{f"starts.{k}": starts for k, starts in enumerate(self.starts)}}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "RowBins":
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        tensors = load_file(folder / FILE)
        features = len(tensors) // 2
        return cls([tensors[f"values.{k}"] for k in range(features)], [tensors[f"starts.{k}"] for k in range(features)])


def _bin_starts(values: np.ndarray, count: int) -> np.ndarray:
    n = len(values)
    # A frequent value gets a bin of its own; the other values share the bins as if it were not there.
    _, first, copies = np.unique(values, return_index=True, return_counts=True)
    frequent = copies >= n / count
    low, high = first[frequent], (first + copies)[frequent]
    ranks = np.delete(np.arange(n), np.concatenate([np.zeros(0, int), *map(np.arange, low, high)]))
    count = min(count, len(ranks) // _LEAST_VALUES + 1)
    # Extremes cluster, and one wide bin at the end could not resolve that: the outermost bins are halved outwards.
    tail = 1 / count / 2.0 ** np.arange(1, _TAIL_HALVINGS + 1)
    shares = np.concatenate([np.linspace(0, 1, count + 1)[:-1], tail, 1 - tail])
    cuts = ranks[(len(ranks) * np.unique(shares)).astype(np.int64)] if len(ranks) else low
    # A cut inside a run of equal values moves to the start of the run.
    return np.unique(np.concatenate([np.searchsorted(values, values[cuts], side="left"), low, high, [0, n]]))
