"""The figures of the quality report and of the GAN's training."""

from collections.abc import Mapping, Sequence

import numpy as np

from apeagent_pipeline.gan.quality.scores import autocorrelations
from apeagent_pipeline.gan.quality.window_sets import ROW_FEATURES
from apeagent_pipeline.reporting.figures import new_figure, png

History = Mapping[str, Mapping[str, Sequence[float]]]

_REAL, _SYNTHETIC = "#4c566a", "#d08770"


def quality_figures(real: np.ndarray, synthetic: np.ndarray, history: History) -> dict[str, bytes]:
    """Distributions, autocorrelations and, if a history is given, training curves.

    Args:
        real: Windows, [n, T, 6] in the columns of `ROW_FEATURES`.
        synthetic: Windows, [m, T, 6].
        history: Stage -> name -> values, as in ``history.json``.

    Returns:
        File name -> PNG.
    """
    figures = {"distributions.png": _distributions(real, synthetic)}
    figures["autocorrelations.png"] = _autocorrelations(real, synthetic)
    if any(history.values()):
        figures["training.png"] = training_figure(history)
    return figures


def paths_figure(examples: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> bytes:
    """Price paths of histories, with the real and the synthetic continuation.

    Args:
        examples: (number of history rows, real prices of history and window, synthetic prices of the window).
    """
    columns = 3
    figure, axes = new_figure(-(-len(examples) // columns), columns, size=(10, 2.4 * -(-len(examples) // columns)))
    for axis, (context, around, made) in zip(axes.ravel(), examples, strict=False):
        base = around[context - 1]
        axis.plot(np.arange(len(around)) - context + 1, 1e4 * np.log(around / base), color=_REAL, label="real")
        path = np.concatenate([[base], made])
        axis.plot(np.arange(len(path)), 1e4 * np.log(path / base), color=_SYNTHETIC, label="synthetic")
        axis.axvline(0, color="#bbbbbb", linewidth=0.8)
        axis.set_xlabel("swaps")
        axis.set_ylabel("log price (bp)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return png(figure)


def _distributions(real: np.ndarray, synthetic: np.ndarray) -> bytes:
    figure, axes = new_figure(2, 3, size=(10, 5))
    for k, (axis, name) in enumerate(zip(axes.ravel(), ROW_FEATURES, strict=True)):
        low, high = np.quantile(real[..., k], [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, 50)
        for rows, color, label in ((real, _REAL, "real"), (synthetic, _SYNTHETIC, "synthetic")):
            values = rows[..., k].ravel()
            axis.hist(
                values, edges, weights=np.full(len(values), 1 / len(values)), histtype="step", color=color, label=label
            )
        if name != "buy":  # its two bars need no logarithmic scale
            axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return png(figure)


def _autocorrelations(real: np.ndarray, synthetic: np.ndarray) -> bytes:
    curves = autocorrelations(real, synthetic)
    figure, axes = new_figure(1, len(curves), size=(10, 2.6))
    for axis, (name, (one, other)) in zip(axes.ravel(), curves.items(), strict=True):
        lags = np.arange(1, len(one) + 1)
        axis.plot(lags, one, "o-", color=_REAL, markersize=3, label="real")
        axis.plot(lags, other, "o-", color=_SYNTHETIC, markersize=3, label="synthetic")
        axis.axhline(0, color="#bbbbbb", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("lag (swaps)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return png(figure)


def training_figure(history: History) -> bytes:
    """Losses and scores by step; ``history`` is stage -> name -> values, as in ``history.json``."""
    panels = {
        "likelihood (nats a row)": ("likelihood", ("loss", "valid")),
        "Wasserstein distance": ("adversarial", ("critic",)),
        "gradient penalty": ("adversarial", ("gp",)),
        "held-out scores": ("held_out", ("auc", "copied")),
    }
    figure, axes = new_figure(1, len(panels), size=(12, 2.8))
    for axis, (title, (stage, names)) in zip(axes.ravel(), panels.items(), strict=True):
        columns = history.get(stage, {})
        for name in names:
            if columns.get(name):
                axis.plot(columns["step"], columns[name], "o-" if stage == "held_out" else "-", label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        if len(names) > 1 and axis.lines:
            axis.legend(frameon=False, fontsize=8)
    return png(figure)
