"""The page of the quality report."""

from dataclasses import dataclass

import numpy as np

from apeagent_pipeline.gan.quality.scores import SCORES, Comparison, feature_distances, quality_failures
from apeagent_pipeline.gan.quality.telltales import Telltale, telltales_text
from apeagent_pipeline.reporting.report import markdown_table

CONTROL = "_likelihood"
"""Suffix of the control's metrics."""

FLOOR = "_floor"
"""Suffix of the metrics of real windows compared with real windows of other blocks."""

_COLUMN_NAMES = {"": "synthetic", FLOOR: "real against real", CONTROL: "likelihood alone"}


@dataclass(frozen=True)
class Findings:
    """The results that the page shows.

    Attributes:
        metrics: Metrics of the report.
        intervals: Their intervals.
        compared: Suffix of the metrics -> the comparison; "" is that of the synthetic windows.
        telltales: What tells the synthetic windows from real ones.
        history: Stage -> name -> values of the GAN's training.
        figures: File names of the figures.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    compared: dict[str, Comparison]
    telltales: list[Telltale]
    history: dict[str, dict[str, list[float]]]
    figures: list[str]


def quality_page(found: Findings) -> str:
    """The body of the page, Markdown."""
    synthetic = found.compared[""]
    config = synthetic.config
    low, high = found.intervals["discriminative_auc"]
    failures = quality_failures(found.metrics, config)
    verdict = f"The windows fail the check: {'; '.join(failures)}." if failures else "The windows pass the check."
    control = (
        "The control, likelihood alone, continued the same warm start without a critic for about as long as the "
        "WGAN-GP stage: the difference from the synthetic windows is the effect of that stage."
    )
    pictures = "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in found.figures)
    return f"""{verdict}

{_scores_table(found)}

{control if CONTROL in found.compared else ""}

Distances are computed from all {len(synthetic.real.at)} real and {len(synthetic.other.at)} synthetic windows of the
train and valid days. A classifier reads {len(synthetic.shown[0].at)} real and {len(synthetic.shown[1].at)} synthetic
windows, each within one block of {config.block_rows} rows; blocks are assigned to folds {config.deals} times. 95 %
interval of the AUC (blocks resampled): {low:.3f} to {high:.3f}.

## What tells them apart

{telltales_text(found.telltales, low)}

The importance of a summary is the loss of AUC of gradient boosting when the values of the summary are exchanged between
the windows, in folds that it was not trained on, with its standard error over the folds. Summaries with nearly the same
information share their importance.

## Features

{_features_table(synthetic)}

## Against the later holdout days

{_later_table(found.metrics)}

## Held-out scores during training

The first row is the likelihood warm start alone; the following steps belong to the adversarial stage. Of these weights,
those with the AUC closest to 0.5 were kept, unless they copy too many runs. The control is not among the candidates.

{_training_table(found.history)}

## Figures

{pictures}
"""


def _scores_table(found: Findings) -> str:
    columns = [_COLUMN_NAMES.get(suffix, suffix.strip("_").replace("_", " ")) for suffix in found.compared]
    rows = [
        [f"`{score.name}`", score.meaning, score.better]
        + [f"{found.metrics[score.name + suffix]:.4f}" for suffix in found.compared]
        for score in SCORES
    ]
    return markdown_table(["score", "meaning", "better", *columns], rows)


def _features_table(compared: Comparison) -> str:
    real, synthetic = (np.quantile(np.abs(rows), [0.99, 0.999], axis=0) for rows in compared.flat)
    rows = [
        [name, f"{ks:.4f}", f"{w:.4f}", *(f"{real[q, k]:.4g} / {synthetic[q, k]:.4g}" for q in (0, 1))]
        for k, (name, (ks, w)) in enumerate(feature_distances(*compared.flat).items())
    ]
    tails = [f"{q} % quantile of the absolute value, real / synthetic" for q in (99, 99.9)]
    return markdown_table(["feature", "Kolmogorov-Smirnov", "Wasserstein / std", *tails], rows)


def _later_table(metrics: dict[str, float]) -> str:
    kinds = {"holdout": "synthetic, continuing later histories", "drift": "real, of the days before"}
    rows = [
        [meaning, *(f"{metrics[f'{score}_{name}']:.3f}" for score in ("discriminative_gbm", "discriminative_auc"))]
        for name, meaning in kinds.items()
        if f"discriminative_auc_{name}" in metrics
    ]
    return markdown_table(["windows", "advantage of gradient boosting over chance", "AUC"], rows)


def _training_table(history: dict[str, dict[str, list[float]]]) -> str:
    candidates, control = history.get("held_out", {}), history.get("control_held_out", {})
    columns = (candidates.get(name, []) for name in ("step", "auc", "copied"))
    rows = [[f"{step:.0f}", f"{auc:.3f}", f"{copied:.2%}"] for step, auc, copied in zip(*columns, strict=True)]
    if control:
        rows.append(["control", f"{control['auc'][-1]:.3f}", f"{control['copied'][-1]:.2%}"])
    return markdown_table(["step", "AUC on held-out blocks", "3-row runs copied"], rows)
