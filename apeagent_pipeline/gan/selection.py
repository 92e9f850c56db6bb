"""Which weights are kept: those whose windows a classifier finds hardest to tell from real ones it has not seen.

Neither the generator's loss nor the likelihood of held-out rows says how alike free-running windows are: the likelihood
turns worse long before the windows stop getting better. So a classifier learns from the train blocks and is asked about
the valid blocks that stand among them, which neither it nor the generator has seen. Weights that copy are never kept.
"""

from typing import NamedTuple

import numpy as np
import torch

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.discriminators import window_summaries
from apeagent_pipeline.gan.model import LIQUIDITY, RETURN, SIZE, Generator, Rows
from apeagent_pipeline.gan.real_rows import RealRows

_MOST_WINDOWS = 1_000
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
    generator: Generator, bins: RowBins, real: RealRows, splits: tuple[np.ndarray, np.ndarray], seed: int
) -> HeldOutScore | None:
    """Score of a generator; None where the valid blocks are too short to judge by.

    Args:
        generator: What samples.
        bins: Its bins.
        real: The real rows.
        splits: Starts [n] of the windows it was trained on, and those [m] of the held-out windows.
        seed: Of the choice of windows, the noise and the classifier.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(splits[1]) < _FEWEST_HELD_OUT:
        return None
    rng = np.random.default_rng([seed, 5])
    sets, labels, copied = [], [], 0.0
    for starts in splits:
        chosen = rng.permutation(starts)[:_MOST_WINDOWS]
        device = next(generator.parameters()).device
        condition, window = real.windows(chosen, rng, device)
        chance = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        made = generator.eval().sample(condition, chance).rows
        both = [_comparable(bins, condition, rows) for rows in (window, made)]
        sets.append(window_summaries(np.concatenate(both)))
        labels.append(np.repeat([0, 1], len(chosen)))
        if len(sets) == 1:
            copied = float(np.isin(_runs(both[1]), _runs(both[0])).mean())
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


def _runs(rows: np.ndarray) -> np.ndarray:
    """Three rows each as one value, [n * (T - 2)]: seconds, side and size."""
    keys = np.round(rows[..., :3], 5) @ np.array([1.0, 1e3 * np.pi, 1e6 * np.e])
    return (keys[:, :-2] + np.sqrt(2) * keys[:, 1:-1] + np.sqrt(3) * keys[:, 2:]).round(3).ravel()
