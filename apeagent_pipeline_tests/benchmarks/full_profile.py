"""What the profile ``full`` costs: LoRA and QLoRA steps on the architecture of Qwen2.5-3B, answers, and the wide GAN.

    python -m apeagent_pipeline_tests.benchmarks.full_profile --work DIR

The weights are random and the tokenizer is a small one that splits into bytes, so nothing is downloaded: times and
memory are those of the real model with longer texts, answers mean nothing. At most ten minutes on one GPU. QLoRA is
left out where bitsandbytes is missing. ``--tiny`` tries the script on a CPU.
"""

import argparse
import importlib.util
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.defs.profiles import FULL
from apeagent_pipeline.distillation.dataset import DatasetConfig, build_dataset
from apeagent_pipeline.distillation.prompts import build_prompts
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.traces import collect_traces
from apeagent_pipeline.student.examples import prompt_of, read_examples
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune
from apeagent_pipeline.student.generation import Student
from apeagent_pipeline_tests.distillation.conftest import make_windows
from apeagent_pipeline_tests.student.tiny_qwen2 import build_tiny_qwen2

SEED = 1
QWEN_3B = {
    "vocab_size": 151_936, "hidden_size": 2_048, "intermediate_size": 11_008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
"""From the ``config.json`` of Qwen2.5-3B."""


def random_base(folder: Path) -> Path:
    """The tiny model's folder with weights of the large architecture in it."""
    import torch
    from transformers import AutoConfig, Qwen2ForCausalLM

    build_tiny_qwen2(folder)
    config = AutoConfig.from_pretrained(folder)
    config.update(QWEN_3B | {"layer_types": ["full_attention"] * QWEN_3B["num_hidden_layers"]})
    torch.set_default_dtype(torch.bfloat16)
    try:
        Qwen2ForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    return folder


def small_dataset(folder: Path) -> Path:
    """A few examples, without the agent's long sentence, because the small tokenizer cuts it in bytes."""
    sizes = {"train_prompts": 200, "valid_prompts": 20, "test_prompts": 80, "prompts_per_window": 2, "agent_share": 0.0}
    teaching = FULL.teacher_traces.model_copy(update=sizes)
    prompts = build_prompts(make_windows(512), teaching, SEED)
    traces = collect_traces(prompts, RulesTeacher(), teaching, folder / "answers", SEED)
    config = DatasetConfig(n_train=160, n_valid=16, n_test_trading=64, n_test_controls=8, n_test_near=8)
    build_dataset(traces, config, SEED).save(folder / "dataset")
    return folder / "dataset"


def steps_of(base: Path, dataset: Path, config: FineTuningConfig, work: Path) -> dict[str, float]:
    """Seconds a step (the fastest), and the most memory of the GPU in GiB."""
    import torch

    at: list[float] = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    fine_tune(
        base,
        dataset,
        config,
        SEED,
        work / "adapter",
        checkpoint_dir=work / "checkpoints",
        progress=lambda *_, **__: at.append(time.perf_counter()),
    )
    seconds = min(after - before for before, after in pairwise(at))
    examples = config.batch_size * config.accumulation
    return {"s a step": seconds, "examples a second": examples / seconds, "most GiB": _peak()}


def answers_of(base: Path, adapter: Path, dataset: Path) -> dict[str, float]:
    """Tokens a second of one batch of the canary evaluation."""
    student = Student.load(base, adapter)
    prompts = [prompt_of(example) for example in read_examples(dataset, "test")][:64]
    begun = time.perf_counter()
    said = student.answers(prompts, max_new_tokens=FULL.canary_eval.max_new_tokens)
    seconds = time.perf_counter() - begun
    return {
        "s a batch": seconds,
        "tokens a second": sum(answer.tokens for answer in said) / seconds,
        "most GiB": _peak(),
    }


def gan_steps() -> dict[str, float]:
    """Seconds a step of the likelihood stage of the GAN of ``full``."""
    from apeagent_pipeline.gan.training import train_gan
    from apeagent_pipeline.market.windows import WindowsConfig, make_training_windows
    from apeagent_pipeline_tests.gan.conftest import simulate_features

    config = FULL.trained_gan.model_copy(update={"likelihood_steps": 12, "adversarial_steps": 3, "control_steps": 0})
    windows = make_training_windows(simulate_features(5_000), BASE_ETH_USDC, WindowsConfig())
    at: list[float] = []
    train_gan(windows, config, SEED, progress=lambda *_, **__: at.append(time.perf_counter()))
    return {
        "s a step": min(after - before for before, after in pairwise(at[:12])),
        "most GiB": _peak(),
    }


def _peak() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="a model of two layers and a small batch")
    arguments = parser.parse_args()
    work: Path = arguments.work
    base = build_tiny_qwen2(work / "base") if arguments.tiny else random_base(work / "base")
    dataset = small_dataset(work)
    smaller: dict[str, Any] = {
        "steps": 4,
        "valid_every": 4,
        "valid_examples": 4,
        "valid_answers": 0,
        "max_tokens": 2_048,
    }
    if arguments.tiny:
        smaller |= {"batch_size": 2, "accumulation": 1}
    recipe = FULL.lora_adapter.model_copy(update=smaller)
    rows = {"LoRA": steps_of(base, dataset, recipe, work / "lora")}
    rows["answers"] = answers_of(base, work / "lora" / "adapter", dataset)
    if importlib.util.find_spec("bitsandbytes"):
        rows["QLoRA"] = steps_of(base, dataset, recipe.model_copy(update={"quantized": True}), work / "qlora")
    rows["GAN of width 256"] = gan_steps()
    table = Table("part", "what", "figure")
    for part, figures in rows.items():
        for name, value in figures.items():
            table.add_row(part, name, f"{value:.3g}")
    Console().print(table)
    Console().print_json(json.dumps(rows))


if __name__ == "__main__":
    main()
