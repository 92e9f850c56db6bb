"""Runs of rows copied from the training rows: what a bootstrap does all the time and a generator must not."""

import numpy as np
import polars as pl

RUN_ROWS = 3
"""A single row recurs by chance; three in a row with equal side, size and seconds do not."""

_FACTORS = np.array([6364136223846793005, 1442695040888963407, 3935559000370003845], dtype=np.uint64)


def row_keys(side: pl.Series, size: pl.Series, seconds: pl.Series) -> np.ndarray:
    """One integer for every row [n], equal where all three are equal."""
    # Nine digits are more than any two sizes share by chance, and fewer than a size loses on its way through floats.
    return pl.select(pl.struct(side, size.round_sig_figs(9), seconds).hash(seed=0)).to_series().to_numpy()


def runs(keys: np.ndarray) -> np.ndarray:
    """One integer for every run of `RUN_ROWS` rows of windows ``keys`` [n, T], as [n * (T - 2)]."""
    windows = np.lib.stride_tricks.sliding_window_view(keys, RUN_ROWS, axis=1)
    return (windows * _FACTORS).sum(axis=2, dtype=np.uint64).ravel()


def copied_share(made: np.ndarray, known: np.ndarray) -> float:
    """Share of the runs of windows ``made`` [n, T] that stand in ``known`` [m, T]; both are row keys."""
    return float(np.isin(runs(made), np.unique(runs(known))).mean())
