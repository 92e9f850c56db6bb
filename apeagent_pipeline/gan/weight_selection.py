"""Which weights are kept: those whose windows a classifier finds hardest to tell from real ones it has not seen.

Neither the generator's loss nor the likelihood of held-out rows says how alike free-running windows are: the likelihood
turns worse long before the windows stop getting better. So a classifier learns from the train blocks and is asked about
the valid blocks that stand among them, which neither it nor the generator has seen. Weights that copy are never kept.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.copies import copied_share, row_keys
from apeagent_pipeline.gan.generator import LIQUIDITY, RETURN, SIZE, Generator, Rows
from apeagent_pipeline.gan.quality.discriminators import window_summaries
from apeagent_pipeline.gan.training_rows import RealRows

_FEWEST_HELD_OUT = 30


class HeldOutScore(NamedTuple):
    """How a generator does on blocks that it was not trained on.

    Attributes:
        auc: Of the classifier on the held-out windows; 0.5 is a coin.
        copied: Share of sampled 3-row runs (side, size, seconds) that stand in the train rows.
    """

    auc: float
    copied: float

    @property
    def distance(self) -> float:
        """How far the classifier is from a coin."""
        return abs(self.auc - 0.5)


def held_out_score(
    generator: Generator, bins: RowBins, real: RealRows, splits: tuple[np.ndarray, np.ndarray], seed: int, *, most: int
) -> HeldOutScore | None:
    """Score of a generator; None where the valid blocks are too short to judge by.

    Args:
        generator: What samples.
        bins: Its bins.
        real: The real rows.
        splits: Starts [n] of the windows it was trained on, and those [m] of the held-out windows.
        seed: Of the choice of windows, the noise and the classifier.
        most: At most so many windows of a split are shown to the classifier.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(splits[1]) < _FEWEST_HELD_OUT:
        return None
    rng = np.random.default_rng([seed, 5])
    sets, labels, copied = [], [], 0.0
    for starts in splits:
        chosen = rng.permutation(starts)[:most]
        device = next(generator.parameters()).device
        condition, window = real.windows(chosen, rng, device)
        chance = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        made = generator.eval().sample(condition, chance).rows
        both = [_comparable(bins, condition, rows) for rows in (window, made)]
        sets.append(window_summaries(np.concatenate(both)))
        labels.append(np.repeat([0, 1], len(chosen)))
        if len(sets) == 1:
            copied = copied_share(_keys(both[1]), _keys(_train_rows(real, starts)))
    with threadpool_limits(1):
        model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, min_samples_leaf=10, random_state=seed)
        model.fit(sets[0], labels[0])
        auc = roc_auc_score(labels[1], model.predict_proba(sets[1])[:, 1])
    return HeldOutScore(float(auc), copied)


def _comparable(bins: RowBins, condition: Rows, rows: Rows) -> np.ndarray:
    """Rows as `window_summaries` reads them, [n, T, 6]."""
    values = bins.decode(rows.bins.cpu().numpy(), rows.positions.double().cpu().numpy())
    state = rows.state.double().cpu().numpy()
    before = condition.state[:, -1:, LIQUIDITY].double().cpu().numpy()
    change = np.diff(state[..., LIQUIDITY], axis=1, prepend=before)
    columns = [np.log1p(values[..., 0]), values[..., 1], state[..., SIZE], values[..., 3], change, state[..., RETURN]]
    return np.stack(columns, axis=-1)


def _train_rows(real: RealRows, starts: np.ndarray) -> np.ndarray:
    """Seconds, side and size of all train windows as `_comparable` has them, [n, T, 3]."""
    rows = real.free[starts[:, None] + real.context + np.arange(real.length), :3]
    rows[..., 0] = np.log1p(rows[..., 0])
    return rows


def _keys(rows: np.ndarray) -> np.ndarray:
    """Row keys [n, T] of seconds, side and size."""
    seconds, side, size = (pl.Series(column.ravel().astype(np.float32)) for column in np.moveaxis(rows[..., :3], 2, 0))
    return row_keys(side.alias("side"), size.cast(pl.Float64).alias("size"), seconds.alias("seconds")).reshape(
        rows.shape[:2]
    )
