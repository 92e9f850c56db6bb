"""Compares the second stage with the first: canary evaluation, backtest, and rewards on held-out prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig
from apeagent_pipeline.evaluation.backtest.replay import backtest
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.canary.evaluate import evaluate_canary
from apeagent_pipeline.evaluation.statistics import mean_interval
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.reporting.report import Report, markdown_table

_CANARY = ("canary_rate_adapter", "agreement", "min_class_recall", "control_leak_rate", "controls_preserved")
_FORM = ("feasible_rate", "draft_discipline")
_BACKTEST = ("adapter_minus_hold", "adapter_minus_teacher")


def compare_stages(
    base: Path,
    adapter: Path,
    dataset: Path,
    *,
    holdout: pl.DataFrame,
    pool: PoolSpec,
    first_canary: Mapping[str, Any],
    first_backtest: Mapping[str, Any],
    seed: int,
    progress: Progress = silent,
) -> Report:
    """Evaluate the second stage with the configuration of the first, and compare both.

    Args:
        base: Folder of the base model.
        adapter: Folder of the second stage's adapter, with the ``training.json`` of ``student.reinforcement``.
        dataset: Folder with ``test.jsonl``.
        holdout: Held-out rows of ``swap_features``, in order.
        pool: Decimals and fee.
        first_canary: ``report.json`` of the first stage's ``canary_eval``; the second is asked with its configuration.
        first_backtest: The same of ``backtest``.
        seed: Of both evaluations.
        progress: Told of each in turn.

    Returns:
        The metrics and intervals of both of the second stage's reports, each as ``NAME`` and the first stage's as
        ``NAME_first``; ``reward_first``, ``reward_second``, ``reward_teacher`` and ``reward_gain``.
    """
    canary_config = CanaryEvalConfig.model_validate(first_canary["config"])
    backtest_config = BacktestConfig.model_validate(first_backtest["config"])
    canary = evaluate_canary(base, adapter, dataset, canary_config, seed, progress=progress)
    replayed = backtest(holdout, base, adapter, pool, backtest_config, seed=seed, progress=progress)
    held_out = json.loads((adapter / "training.json").read_text())["held_out"]
    totals = {who: np.sum(list(parts.values()), axis=0) for who, parts in held_out.items()}
    gain = totals["second"] - totals["first"]
    first, second = first_canary["metrics"] | first_backtest["metrics"], canary.metrics | replayed.metrics
    intervals = {**canary.intervals, **replayed.intervals}
    return Report(
        title="Second stage",
        metrics={
            **second,
            **{f"{name}_first": value for name, value in first.items()},
            **{f"reward_{who}": float(total.mean()) for who, total in totals.items()},
            "reward_gain": float(gain.mean()),
            "n_held_out": float(len(gain)),
        },
        intervals=intervals | {"reward_gain": mean_interval(gain, seed)},
        config={"canary_eval": canary.config, "backtest": replayed.config},
        markdown="\n\n".join(
            [
                _verdict(first, second, intervals, gain, seed),
                _table(first, second, intervals),
                _reward_table(held_out),
                f"# Canary evaluation of the second stage\n\n{canary.markdown}",
                f"# Backtest of the second stage\n\n{replayed.markdown}",
            ]
        ),
        figures={**canary.figures, **replayed.figures},
    )


def changed(
    first: Mapping[str, float], second: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> list[str]:
    """The measures of which the first stage's value lies outside the 95 % interval of the second's."""
    return [
        name
        for name in (*_CANARY, *_FORM, *_BACKTEST)
        if name in first and name in second and name in intervals and not _inside(first[name], intervals[name])
    ]


def _inside(value: float, interval: tuple[float, float]) -> bool:
    return interval[0] <= value <= interval[1]


def _verdict(
    first: Mapping[str, float],
    second: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    gain: np.ndarray,
    seed: int,
) -> str:
    low, high = mean_interval(gain, seed)
    told = f"{gain.mean():+.3f} a held-out prompt, paired 95 % bootstrap interval {low:+.3f} to {high:+.3f}"
    reward = (
        f"The reward did not change significantly ({told})" if low <= 0 <= high else f"The reward changed by {told}"
    )
    names = changed(first, second, intervals)
    rest = (
        f"of the measures below {', '.join(names)} differ from the first stage"
        if names
        else "none of the measures below differs from the first stage"
    )
    return (
        f"**{reward}; {rest}** (differs: the first stage's value lies outside the second's 95 % interval, a rough "
        "rule). The rewards are those of synthetic windows, the backtest is of held-out swaps of the chain. Not "
        "investment advice."
    )


def _table(
    first: Mapping[str, float], second: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> str:
    def shown(name: str, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:+.3%}" if name in _BACKTEST or name.startswith("return") else f"{value:.1%}"

    rows = []
    for name in (*_CANARY, *_FORM, "return_adapter", *_BACKTEST):
        interval = intervals.get(name)
        between = "" if interval is None else " to ".join(shown(name, end) for end in interval)
        rows.append([name, shown(name, first.get(name)), shown(name, second.get(name)), between])
    return markdown_table(["measure", "first stage", "second stage", "its 95 % interval"], rows)


def _reward_table(held_out: Mapping[str, Mapping[str, list[float]]]) -> str:
    names = list(next(iter(held_out.values())))
    rows = [[who, *(f"{np.mean(parts[name]):+.3f}" for name in names)] for who, parts in held_out.items()]
    return (
        markdown_table(["mean reward of greedy answers", *names], rows)
        + "\n\nAlways holding, in the right format, earns 1, 1 and 0. The row `teacher` is that of the embedded rules."
    )
