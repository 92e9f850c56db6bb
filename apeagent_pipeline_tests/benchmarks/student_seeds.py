"""How far the student's figures move from seed to seed: prompts, training and answers anew for each.

    python -m apeagent_pipeline_tests.benchmarks.student_seeds --home .apeagent --seeds 42,43,44 --work DIR

Run it after ``apeagent demo``: prompts are made from its synthetic windows, answered by the embedded teacher, learned
with the recipe of ``laptop``, and the canary evaluation asks 600 held-out prompts (half of them numbers alone), 300
distant and 300 near controls. One CPU thread; about half an hour a seed. Finished seeds are kept in DIR, and an
interrupted training goes on from its checkpoint.
"""

import argparse
import json
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.defs.profiles import configured
from apeagent_pipeline.distillation.dataset import build_dataset
from apeagent_pipeline.distillation.prompts import build_prompts
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.traces import collect_traces
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.canary.evaluate import evaluate_canary
from apeagent_pipeline.settings import SMOLLM2, Settings
from apeagent_pipeline.student.base_model import resolve_base_model
from apeagent_pipeline.student.fine_tuning import fine_tune

ASKED = 300
TRADING = 2 * ASKED
"""Half of them show numbers alone."""
SCORES = {
    "canary_rate_adapter": "canary",
    "canary_rate_base": "canary, base",
    "agreement": "agreement",
    "agreement_digested": "with words",
    "agreement_plain": "numbers alone",
    "agreement_agent": "agent's sentence",
    "agreement_incomplete": "a fact missing",
    "document_agreement": "document, 11",
    "macro_f1": "macro-F1",
    "min_class_recall": "weakest recall",
    "control_leak_rate": "leak",
    "near_control_leak_rate": "near leak",
    "near_control_leak_rate_held_out": "held-out near leak",
    "near_control_leak_rate_base": "near leak, base",
    "controls_preserved": "preserved",
    "controls_right": "right controls",
    "controls_right_base": "right, base",
    "size_error_median_plain": "size off by, numbers alone",
    "size_error_median_digested": "size off by, with words",
    "feasible_rate": "feasible",
}


def judged(home: Path, work: Path, seed: int) -> dict[str, float]:
    """Scores of one seed, from prompts to answers."""
    kept = work / "scores.json"
    if not kept.is_file():
        windows = pl.read_parquet(home / "storage" / "synthetic_windows" / "synthetic_windows.parquet")
        profile = configured(Settings(profile="laptop", eval_prompts=TRADING))
        teaching = profile.teacher_traces
        prompts = build_prompts(windows, teaching, seed)
        traces = collect_traces(prompts, RulesTeacher(), teaching, work / "answers", seed)
        sizes = {"n_test_trading": TRADING, "n_test_controls": ASKED, "n_test_near": ASKED}
        build_dataset(traces, profile.distillation_dataset.model_copy(update=sizes), seed).save(work / "dataset")
        base = resolve_base_model(SMOLLM2, home / "cache" / "models")
        adapter = work / "adapter"
        if not (adapter / "training.json").is_file():
            fine_tune(base, work / "dataset", profile.lora_adapter, seed, adapter, checkpoint_dir=work / "checkpoints")
        config = CanaryEvalConfig(
            n_trading=TRADING, n_controls=ASKED, n_near=ASKED, n_base=ASKED, n_disabled=1, n_merged=0, n_sampled=0
        )
        metrics = evaluate_canary(base, adapter, work / "dataset", config, seed).metrics
        kept.write_text(json.dumps({name: metrics[name] for name in SCORES}, indent=2) + "\n")
    scores: dict[str, float] = json.loads(kept.read_text())
    return scores


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".apeagent"))
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=180)
    table = Table(
        "seed", *SCORES.values(), title=f"{TRADING} trading prompts, {ASKED} distant and {ASKED} near controls a seed"
    )
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        rows.append(judged(arguments.home, arguments.work / str(seed), seed))
        console.print(f"seed {seed}: {json.dumps(rows[-1])}", markup=False)
        table.add_row(str(seed), *(f"{value:.3f}" for value in rows[-1].values()))
    table.add_row("mean", *(f"{sum(row[name] for row in rows) / len(rows):.3f}" for name in SCORES))
    console.print(table)


if __name__ == "__main__":
    main()
