"""Our fine-tuning beside a plain trl script: tokens a CPU second, loss step by step, share of the matrix-product peak.

``python -m apeagent_pipeline_tests.benchmarks.fine_tuning_speed --base FOLDER --dataset FOLDER``.
Both train the same adapter on the same batches. The plain script has trl's defaults in fp32, but no gradient
checkpointing (which would only slow it down). CPU seconds of forward and backward passes, one thread, first step left
out; tokens are those of prompts and answers, without padding.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apeagent_pipeline.student.base_model import load_base
from apeagent_pipeline.student.examples import answer_of, prompt_of, read_examples
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, make_trainer

console = Console(width=120)
SEED = 1


def plain_trainer(base: Path, dataset: Path, lora: Any, config: FineTuningConfig, scratch: Path) -> Any:
    import torch
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_base(base)
    rows = [
        {"prompt": prompt_of(example), "completion": [{"role": "assistant", "content": answer_of(example)}]}
        for example in read_examples(dataset, "train")
    ]
    transformers.set_seed(SEED)
    settings = SFTConfig(
        output_dir=str(scratch), max_steps=config.steps, per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate, lr_scheduler_type="cosine", warmup_steps=config.warmup_steps,
        bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none",
        seed=SEED, data_seed=SEED, disable_tqdm=True,
    )  # fmt: skip
    return SFTTrainer(
        model=model.to(torch.float32), args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip


def measured(trainer: Any) -> tuple[float, int, list[float]]:
    """CPU seconds, tokens of prompts and answers if the batches are padded, and the loss of every step."""
    seconds: list[float] = []
    tokens: list[int] = []
    step = trainer.training_step

    def timed_step(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        tokens.append(int(inputs["attention_mask"].sum()))
        begun = time.process_time()
        loss = step(model, inputs, *rest, **named)
        seconds.append(time.process_time() - begun)
        return loss

    trainer.training_step = timed_step
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(seconds[1:]), sum(tokens[1:]), losses


def peak(dtype: Any) -> float:
    """Operations a second of a large matrix product."""
    import torch

    a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
    a @ b
    begun = time.process_time()
    for _ in range(4):
        a @ b
    return 4 * 2 * 1536**3 / (time.process_time() - begun)


def operations_a_token(model: Any) -> float:
    """Of the matrix products: forward through all blocks, backward (to activations) through the adapted ones.

    The head, which only some tokens pass, and attention scores are left out: the share is a lower bound.
    """
    block = sum(p.numel() for name, p in model.named_parameters() if ".layers.0." in name)
    blocks = model.config.num_hidden_layers
    adapted = len(set(model.peft_config["default"].layers_to_transform or range(blocks)))
    return 2.0 * block * (blocks + adapted)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="Folder of the base model")
    parser.add_argument("--dataset", type=Path, required=True, help="Folder with train.jsonl and valid.jsonl")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = FineTuningConfig(
        steps=arguments.steps, begin_weight=1.0, control_kl=0, valid_answers=0,
        valid_every=arguments.steps + 1, checkpoint_seconds=1e9,
    )  # fmt: skip
    table = Table("way", "tokens a CPU s", "share of its peak", "loss by step", title="Fine-tuning")

    def row(way: str, trainer: Any, seconds: float, tokens: int, losses: list[float]) -> None:
        dtype = next(trainer.model.parameters()).dtype
        share = tokens * operations_a_token(trainer.model) / seconds / peak(dtype)
        told = f"{way}, {str(dtype).removeprefix('torch.')}"
        table.add_row(told, f"{tokens / seconds:.0f}", f"{share:.0%}", " ".join(f"{x:.2f}" for x in losses))

    with tempfile.TemporaryDirectory() as scratch:
        ours = make_trainer(arguments.base, arguments.dataset, config, SEED, checkpoint_dir=Path(scratch))
        plain = plain_trainer(
            arguments.base, arguments.dataset, ours.model.peft_config["default"], config, Path(scratch)
        )
        plain_seconds, tokens, losses = measured(plain)
        row("plain trl", plain, plain_seconds, tokens, losses)
        our_seconds, _, losses = measured(ours)  # the same batches, so the same tokens
        row("ours", ours, our_seconds, tokens, losses)
    console.print(table)
    console.print(f"ours / plain: {plain_seconds / our_seconds:.2f}")


if __name__ == "__main__":
    main()
