"""What tells synthetic windows from real ones: the summaries that the classifier needs.

A summary's importance is what the AUC of gradient boosting loses when the summary's values are exchanged between the
windows (permutation importance, Breiman 2001), in folds that the classifier was not trained on. Summaries that say
nearly the same share their importance.
"""

from typing import Any, NamedTuple

import numpy as np

from apeagent_pipeline.gan.quality.discriminators import gradient_boosting, named_summaries
from apeagent_pipeline.gan.quality.scores import Comparison
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.report import markdown_table

_SHOWN = 8
_REPEATS = 3
_STANDARD_ERRORS = 2.0


class Telltale(NamedTuple):
    """A summary by which the classifier tells the windows apart.

    Attributes:
        name: What the summary says, in words.
        importance: The AUC that the classifier loses without it.
        error: Standard error of the importance over the folds.
        real: Its mean in real windows.
        synthetic: Its mean in synthetic windows.
    """

    name: str
    importance: float
    error: float
    real: float
    synthetic: float


def telltales(compared: Comparison) -> list[Telltale]:
    """The summaries whose importance exceeds twice its standard error, the most important first; at most eight."""
    columns = named_summaries(np.concatenate([each.rows for each in compared.shown]))
    x, y = np.stack(list(columns.values()), axis=1), compared.labels
    fold = np.concatenate(compared.folds(0))
    rng = np.random.default_rng([compared.seed, 6])
    losses = []
    for one in np.unique(fold):
        tested = fold == one
        if 0 < y[tested].mean() < 1:
            model = gradient_boosting(compared.seed).fit(x[~tested], y[~tested])
            losses.append(np.mean([_losses(model, x[tested], y[tested], rng) for _ in range(_REPEATS)], axis=0))
    importance = np.mean(losses, axis=0)
    error = np.std(losses, axis=0) / max(len(losses) - 1, 1) ** 0.5
    real, synthetic = x[y == 0].mean(axis=0), x[y == 1].mean(axis=0)
    each = zip(columns, *(part.tolist() for part in (importance, error, real, synthetic)), strict=True)
    certain = [one for one in map(Telltale._make, each) if one.importance > _STANDARD_ERRORS * one.error]
    return sorted(certain, key=lambda one: -one.importance)[:_SHOWN]


def _losses(model: Any, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The AUC that the model loses when one column of ``x`` [n, summaries] is exchanged, for every column.

    One prediction for all columns: scikit-learn's `permutation_importance` makes one each and takes ten times as long.
    """
    n, summaries = x.shape
    exchanged = np.repeat(x[None], summaries, axis=0)
    each = np.arange(summaries)
    exchanged[each, :, each] = rng.permuted(x, axis=0).T
    both = np.concatenate([x[None], exchanged]).reshape(-1, summaries)
    aucs = _aucs(model.predict_proba(both)[:, 1].reshape(-1, n), y)
    return aucs[0] - aucs[1:]


def _aucs(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every row of ``scores`` [rows, n], by the ranks of the ones among the labels."""
    from scipy.stats import rankdata

    ones = int(y.sum())
    above = rankdata(scores, axis=1)[:, y == 1].sum(axis=1) - ones * (ones + 1) / 2
    return above / (ones * (len(y) - ones))


def telltales_text(found: list[Telltale], auc_low: float) -> str:
    """The tell-tales in a sentence and a table, Markdown.

    Args:
        found: The tell-tales.
        auc_low: Lower end of the AUC's interval.
    """
    if not found or auc_low <= 0.5:
        verdict = (
            "The classifier does not tell the windows apart better than chance: the differences that it uses may be "
            "noise."
        )
    else:
        most = found[0]
        verdict = (
            f"The classifier tells the windows apart by {most.name} more than by anything else: on average "
            f"{most.real:.3g} in real windows, {most.synthetic:.3g} in synthetic ones. Without it the AUC is "
            f"{most.importance:.3f} lower."
        )
    rows = [
        [one.name, f"{one.importance:.4f} ± {one.error:.4f}", f"{one.real:.4g}", f"{one.synthetic:.4g}"]
        for one in found
    ]
    table = markdown_table(["summary of a window", "AUC lost without it", "real, mean", "synthetic, mean"], rows)
    return f"{verdict}\n\n{table}" if rows else verdict


def telltales_figure(found: list[Telltale]) -> bytes:
    """The importance of every tell-tale as bars, PNG."""
    figure, axes = new_figure(size=(10, 0.8 + 0.35 * max(len(found), 1)))
    axis, last_first = axes[0, 0], found[::-1]
    names = [f"{one.name}\nreal {one.real:.3g}, synthetic {one.synthetic:.3g}" for one in last_first]
    errors = [one.error for one in last_first]
    axis.barh(names, [one.importance for one in last_first], xerr=errors, color="#d08770", ecolor="#4c566a")
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel("AUC lost without it")
    return png(figure)
