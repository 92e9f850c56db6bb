"""Classifiers that try to tell synthetic windows from real ones, and a forecaster trained on either.

Overlapping windows look alike, and sizes and volatility drift over days. Contiguous folds would mistake this drift for
a difference, and random folds would leak overlapping windows. Therefore small blocks of time are assigned to folds, and
windows that straddle two blocks are left out before anything is scored.
"""

from typing import Any

import numpy as np

from apeagent_pipeline.gan.quality.window_sets import ROW_FEATURES

_LAGS = 4

Folds = tuple[np.ndarray, np.ndarray]
"""Fold of every window of two sets, [n] and [m]."""


def named_summaries(windows: np.ndarray) -> dict[str, np.ndarray]:
    """Summaries of windows for tree models: moments, extremes, zeros, repeats and products of their rows.

    Args:
        windows: [n, T, F] in the columns of `ROW_FEATURES`.

    Returns:
        What each summary says, in words -> its values, [n] float64. Products with earlier rows are of deviations from
        the window's mean; a side counts as 1 for a buy and -1 for a sale in products with another feature.
    """
    _, side, size, move, _, change = np.moveaxis(windows, 2, 0)
    repeats = [(np.abs(size[:, lag:] - size[:, :-lag]) < 1e-9).mean(axis=1) for lag in (1, 2)]
    centred = windows - windows.mean(axis=1, keepdims=True)
    absolute, direction = np.abs(change), 2 * side - 1
    of_features = {
        "mean {}": windows.mean(axis=1),
        "standard deviation of {}": windows.std(axis=1),
        "smallest {}": windows.min(axis=1),
        "greatest {}": windows.max(axis=1),
        "{} of the first row": windows[:, 0],
        "{} times that of the row before": (centred[:, 1:] * centred[:, :-1]).mean(axis=1),
        "{} times that of two rows before": (centred[:, 2:] * centred[:, :-2]).mean(axis=1),
        "share of rows with {} 0": (windows == 0).mean(axis=1),
    }
    named = {
        words.format(name): values[:, k] for words, values in of_features.items() for k, name in enumerate(ROW_FEATURES)
    }
    return named | {
        "|return| times log size": (absolute * size).mean(axis=1),
        "side times return": (direction * change).mean(axis=1),
        "log size times |move|": (size * np.abs(move)).mean(axis=1),
        "side times move": (direction * move).mean(axis=1),
        "share of rows that repeat the size of the row before": repeats[0],
        "share of rows that repeat the size of two rows before": repeats[1],
        "share of rows on the side of the row before": (np.diff(side, axis=1) == 0).mean(axis=1),
        "growth of |return| along the window": absolute[:, 1:].mean(axis=1) - absolute[:, :-1].mean(axis=1),
        "|return| of the whole window": np.abs(change.sum(axis=1)),
        "|return| times that of the row before": (absolute[:, 1:] * absolute[:, :-1]).mean(axis=1),
    }


def window_summaries(windows: np.ndarray) -> np.ndarray:
    """The `named_summaries` of windows [n, T, F] as columns, [n, summaries] float64."""
    return np.stack(list(named_summaries(windows).values()), axis=1)


def gradient_boosting(seed: int) -> Any:
    """The untrained tree classifier (scikit-learn), small enough for a few hundred windows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, min_samples_leaf=10, random_state=seed)


def boosted_trees(real: np.ndarray, other: np.ndarray, folds: Folds, seed: int) -> np.ndarray:
    """Out-of-fold probability of belonging to ``other``, by gradient boosting on `window_summaries`.

    Args:
        real: Windows, [n, T, F].
        other: Windows, [m, T, F].
        folds: Fold of every window.
        seed: Seed of the classifier.

    Returns:
        [n + m] probabilities, real windows first.
    """
    x = window_summaries(np.concatenate([real, other]))
    y, fold = labels(real, other), np.concatenate(folds)
    out = np.full(len(y), 0.5)
    for one in np.unique(fold):
        model = gradient_boosting(seed).fit(x[fold != one], y[fold != one])
        out[fold == one] = model.predict_proba(x[fold == one])[:, 1]
    return out


def recurrent_network(real: np.ndarray, other: np.ndarray, folds: Folds, seed: int, epochs: int) -> np.ndarray:
    """As `boosted_trees`, by a small GRU on the rows themselves."""
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - its usual name

    class Network(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(features, 24, batch_first=True), nn.Linear(48, 1)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            outputs, last = self.gru(rows)
            return self.head(torch.cat([outputs.mean(dim=1), last[0]], dim=1)).squeeze(1)

    rows = np.concatenate([real, other])
    scaled = np.clip((rows - rows.mean(axis=(0, 1))) / (rows.std(axis=(0, 1)) + 1e-12), -5, 5)
    x = torch.from_numpy(scaled).float()
    y, fold = labels(real, other), np.concatenate(folds)
    targets, out = torch.from_numpy(y).float(), np.full(len(y), 0.5)
    for one in np.unique(fold):
        rng = np.random.default_rng([seed, int(one)])
        train = np.flatnonzero(fold != one)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(1 << 31)))
            network = Network(x.shape[2])
        optimizer = torch.optim.AdamW(network.parameters(), lr=8e-3, weight_decay=0.01)
        for _ in range(epochs):
            for batch in np.array_split(rng.permutation(train), max(1, len(train) // 128)):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network(x[batch]), targets[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            out[fold == one] = network(x[fold == one]).sigmoid().numpy()
    return out


def forecast_error(train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Mean absolute error of a forecast of the next row's |return| from the rows before it.

    Args:
        train: Windows to learn from, [n, T, F].
        test: Windows to forecast, [m, T, F].
        seed: Seed of the regressor.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    def pairs(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(_LAGS, windows.shape[1], 5)
        before = np.stack([windows[:, t - _LAGS : t].reshape(len(windows), -1) for t in at], axis=1)
        target = np.log1p(1e4 * np.abs(windows[:, at, -1]))
        return before.reshape(-1, before.shape[-1]), target.ravel()

    model = HistGradientBoostingRegressor(max_iter=40, learning_rate=0.1, max_leaf_nodes=15, random_state=seed)
    model.fit(*pairs(train))
    x, y = pairs(test)
    return float(np.abs(model.predict(x) - y).mean())


def labels(real: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Labels [n + m] of real (0) and other windows (1)."""
    return np.concatenate([np.zeros(len(real)), np.ones(len(other))])
