"""The page of the quality report."""

import numpy as np
import polars as pl

from apeagent_pipeline.gan.quality.baselines import BASELINES, CONTROL
from apeagent_pipeline.gan.quality.config import QualityConfig, quality_failures
from apeagent_pipeline.gan.quality.scores import feature_distances
from apeagent_pipeline.gan.quality.window_sets import ROW_FEATURES, WindowSet
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.report import markdown_table

_LIKELIHOOD_ALONE = (
    "Likelihood alone went on from the same warm start without a critic, about as long: what it falls short of the "
    "synthetic windows is what the WGAN-GP stage adds."
)


# The page


def example_paths(synthetic: pl.DataFrame, windows: TrainingWindows, rng: np.random.Generator) -> dict[str, bytes]:
    """Figures of some synthetic price paths beside the real ones that follow the same histories."""
    from apeagent_pipeline.gan.quality.figures import paths_figure

    ids = synthetic["window_id"].unique().sort().to_numpy()
    chosen = np.sort(rng.choice(ids, min(6, len(ids)), replace=False))
    key = pl.format(
        "{}-{}", pl.col("block_number").cast(pl.String).str.zfill(12), pl.col("log_index").cast(pl.String).str.zfill(6)
    )
    conditions = windows.table.select(key.alias("condition_id"))["condition_id"]
    prices = windows.table["price"].to_numpy()
    examples = []
    for window in chosen:
        rows = synthetic.filter(pl.col("window_id") == int(window)).sort("step")
        end = int(conditions.index_of(rows["condition_id"][0]) or 0)
        around = prices[end - windows.context + 1 : end + 1 + windows.length]
        examples.append((windows.context, around, rows["price"].to_numpy()))
    return {"paths.png": paths_figure(examples)}


def quality_page(  # noqa: PLR0917 - everything the page tells about
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    compared: tuple[WindowSet, WindowSet],
    shown: tuple[WindowSet, ...],
    config: QualityConfig,
    history: dict[str, dict[str, list[float]]],
    figures: list[str],
) -> str:
    """The report's page, Markdown."""
    meanings = {
        "discriminative_gbm": "how far gradient boosting beats a coin",
        "discriminative_auc": "its area under the curve; 0.5 is a coin",
        "discriminative_gru": "how far a GRU beats a coin",
        "predictive_ratio": "forecast error after synthetic over after real rows",
        "ks_mean": "Kolmogorov-Smirnov distance, mean of the features",
        "acf_error": "autocorrelations, mean difference",
        "xcorr_error": "rank correlations between features, mean difference",
        "mmd": "maximum mean discrepancy of whole windows",
        "copied_runs": "3-row runs that stand in the training rows",
        "price_matches_tick": "rows whose tick is that of the price",
        "opposite_signs": "rows with one amount paid and one received",
        "effective_price": "rows whose amounts match price, fee and impact",
    }
    kinds = ["", "_floor", *(name for name in (*BASELINES, CONTROL) if f"ks_mean{name}" in metrics)]
    scores = [
        [f"`{name}`", meaning, *(f"{metrics[name + kind]:.4f}" for kind in kinds)] for name, meaning in meanings.items()
    ]
    flat = [each.rows.reshape(-1, len(ROW_FEATURES)) for each in compared]
    tails = [np.quantile(np.abs(rows), [0.99, 0.999], axis=0) for rows in flat]
    features = [
        [name, f"{ks:.4f}", f"{w:.4f}", *(f"{tails[0][q, k]:.4g} / {tails[1][q, k]:.4g}" for q in (0, 1))]
        for k, (name, (ks, w)) in enumerate(feature_distances(*flat).items())
    ]
    low, high = intervals["discriminative_auc"]
    failures = quality_failures(metrics, config)
    verdict = (
        "The windows pass the check." if not failures else "The windows fail the check: " + "; ".join(failures) + "."
    )
    pictures = "\n\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures)
    days = (
        f"Distances are taken of all {len(compared[0].at)} real and {len(compared[1].at)} synthetic windows of the "
        f"train and valid days. A classifier is shown {len(shown[0].at)} and {len(shown[1].at)} of them that lie "
        f"within blocks of {config.block_rows} rows, dealt to folds {config.deals} times. 95 % interval of the AUC "
        f"(blocks resampled): {low:.3f} to {high:.3f}."
    )
    later = [
        [what, *(f"{metrics[f'{score}_{name}']:.3f}" for score in ("discriminative_gbm", "discriminative_auc"))]
        for name, what in (("holdout", "synthetic, continuing later histories"), ("drift", "real, of the days before"))
        if f"discriminative_auc_{name}" in metrics
    ]
    held_out = history.get("held_out", {})
    kept = [
        [f"{step:.0f}", f"{auc:.3f}", f"{copied:.2%}"]
        for step, auc, copied in zip(*(held_out.get(name, []) for name in ("step", "auc", "copied")), strict=True)
    ]
    control = history.get("control_held_out", {})
    if control:
        kept.append(["control", f"{control['auc'][-1]:.3f}", f"{control['copied'][-1]:.2%}"])
    named = {"": "synthetic", "_floor": "real against real", CONTROL: "likelihood alone"}
    columns = [named.get(kind, kind.strip("_").replace("_", " ")) for kind in kinds]
    tail_names = [f"{q} % of the absolute value, real / synthetic" for q in (99, 99.9)]
    return f"""{verdict}

{markdown_table(["score", "what it says", *columns], scores)}

{_LIKELIHOOD_ALONE if CONTROL in kinds else ""}

{days}

## Features

{markdown_table(["feature", "Kolmogorov-Smirnov", "Wasserstein / std", *tail_names], features)}

## Against the later holdout days

{markdown_table(["windows", "gradient boosting beats a coin by", "AUC"], later)}

## While training, on blocks held out

The first row is the likelihood warm start alone, the numbered ones after it follow the adversarial stage. Of these the
weights nearest to a coin that copy no more than allowed were kept. The control went on by likelihood alone.

{markdown_table(["step", "AUC on held-out blocks", "3-row runs copied"], kept)}

## Figures

{pictures}
"""
