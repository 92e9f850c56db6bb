"""The score by which the kept weights are selected: how well a classifier tells held-out windows from generated ones.

Neither the generator's loss nor the likelihood of held-out rows measures the realism of free-running windows: the
likelihood becomes worse long before the windows stop improving. Therefore a classifier is trained on the train blocks
and scored on the valid blocks among them, which neither it nor the generator has been trained on. Copying of train rows
is measured as well, because a copying generator would score best.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.generator import Generator
from apeagent_pipeline.gan.quality.discriminators import gradient_boosting, window_summaries
from apeagent_pipeline.gan.quality.window_sets import copied_share, row_keys
from apeagent_pipeline.gan.rows import LIQUIDITY, RETURN, SIZE, Rows
from apeagent_pipeline.gan.training_rows import RealRows

_MIN_HELD_OUT = 30


class HeldOutScore(NamedTuple):
    """Scores of a generator on blocks that it was not trained on.

    Attributes:
        auc: Area under the ROC curve of the classifier on the held-out windows; 0.5 is chance.
        copied: Share of sampled 3-row runs (side, size, seconds) that occur in the train rows.
    """

    auc: float
    copied: float

    @property
    def distance(self) -> float:
        """Distance of the AUC from chance."""
        return abs(self.auc - 0.5)


def held_out_score(
    generator: Generator,
    bins: RowBins,
    real: RealRows,
    splits: tuple[np.ndarray, np.ndarray],
    seed: int,
    *,
    max_windows: int,
) -> HeldOutScore | None:
    """Score a generator; None if the valid blocks hold too few windows.

    Args:
        generator: The generator.
        bins: Its bins.
        real: The real rows.
        splits: Starts [n] of the windows it was trained on, and [m] of the held-out windows.
        seed: Decides the chosen windows, the noise and the classifier.
        max_windows: Upper limit of the windows of a split that the classifier reads.
    """
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(splits[1]) < _MIN_HELD_OUT:
        return None
    rng = np.random.default_rng([seed, 5])
    summaries, labels, copied = [], [], 0.0
    for starts in splits:
        chosen = rng.permutation(starts)[:max_windows]
        device = next(generator.parameters()).device
        condition, window = real.windows(chosen, rng, device)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        generated = generator.eval().sample(condition, torch_rng).rows
        both = [_comparable(bins, condition, rows) for rows in (window, generated)]
        summaries.append(window_summaries(np.concatenate(both)))
        labels.append(np.repeat([0, 1], len(chosen)))
        if len(summaries) == 1:
            copied = copied_share(_keys(both[1]), _keys(_train_rows(real, starts)))
    with threadpool_limits(1):
        classifier = gradient_boosting(seed).fit(summaries[0], labels[0])
        auc = roc_auc_score(labels[1], classifier.predict_proba(summaries[1])[:, 1])
    return HeldOutScore(float(auc), copied)


def _comparable(bins: RowBins, condition: Rows, rows: Rows) -> np.ndarray:
    """Rows in the columns of `window_sets.ROW_FEATURES`, [n, T, 6]."""
    values = bins.decode(rows.bins.cpu().numpy(), rows.positions.double().cpu().numpy())
    state = rows.state.double().cpu().numpy()
    before = condition.state[:, -1:, LIQUIDITY].double().cpu().numpy()
    change = np.diff(state[..., LIQUIDITY], axis=1, prepend=before)
    columns = [np.log1p(values[..., 0]), values[..., 1], state[..., SIZE], values[..., 3], change, state[..., RETURN]]
    return np.stack(columns, axis=-1)


def _train_rows(real: RealRows, starts: np.ndarray) -> np.ndarray:
    """Log seconds, side and size of all train windows, [n, T, 3]."""
    rows = real.free[starts[:, None] + real.context + np.arange(real.length), :3]
    rows[..., 0] = np.log1p(rows[..., 0])
    return rows


def _keys(rows: np.ndarray) -> np.ndarray:
    """Row keys [n, T] of rows whose first columns are log seconds, side and size."""
    seconds, side, size = (pl.Series(column.ravel().astype(np.float32)) for column in np.moveaxis(rows[..., :3], 2, 0))
    keys = row_keys(side.alias("side"), size.cast(pl.Float64).alias("size"), seconds.alias("seconds"))
    return keys.reshape(rows.shape[:2])
