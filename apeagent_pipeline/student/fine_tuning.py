"""LoRA fine-tuning of the base model on the distillation dataset, with the loss on the answers only.

The adapter (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models") is trained by trl's SFTTrainer. The
sizes of demo and laptop were measured on two CPU cores; those of full follow "LoRA Without Regret" (all linear layers,
a learning rate about ten times that of full fine-tuning).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.student.base_model import load_base, quiet
from apeagent_pipeline.student.examples import CONTROL_KINDS, SPLITS, answer_of, prompt_of, read_examples
from apeagent_pipeline.student.prefix_packing import group_by_prompt, pack_groups
from apeagent_pipeline.student.trainer import (
    TrainerConfig,
    forget_checkpoints,
    run_callbacks,
    run_identity,
    run_settings,
    usable_checkpoint,
    write_adapter,
)

if TYPE_CHECKING:
    from apeagent_pipeline.workers import Workers
_CURVE = "training.json"
_FITTING = "fitting_batch.json"  # batch_size and accumulation after memory was exhausted
_TOLD = {
    "loss": "loss",
    "eval_loss": "valid_loss",
    "eval_canary_rate": "valid_canary_rate",
    "eval_agreement": "valid_agreement",
}
_log = logging.getLogger(__name__)


class FineTuningConfig(TrainerConfig):
    """Sizes of the LoRA fine-tuning; the defaults are those of the profile laptop (SmolLM2-135M on two CPU cores)."""

    steps: int = Field(2690, ge=1, description="Optimizer steps")
    rank: int = Field(8, ge=1, description="Rank of the adapter's matrices")
    alpha: int = Field(16, ge=1, description="The adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapter")
    dora: bool = Field(False, description="DoRA: also learn the length of each adapted weight column (Liu et al. 2024)")
    quantized: bool = Field(
        False, description="QLoRA: keep the frozen base in 4 bits (Dettmers et al. 2023; needs bitsandbytes)"
    )
    targets: list[str] = Field([], description="Names of the adapted modules, such as q_proj; empty: all linear layers")
    last_blocks: int = Field(15, ge=0, description="Adapt only the last blocks of the model; 0: all of them")
    batch_size: int = Field(
        1,
        ge=1,
        description="Trading prompts in a forward pass, each with its near controls; a small model learns more from "
        "many small steps than from few large",
    )
    max_tokens: int = Field(768, ge=16, description="Longest example, prompt and answer; a longer one is an error")
    control_kl: float = Field(
        1.0,
        ge=0,
        description="Weight of the divergence from the base on controls, which keeps what the base knew; 0: learn the "
        "written answers of controls",
    )
    near_kl: float = Field(
        6.0, ge=0, description="Weight of the divergence on near controls, which have few tokens that count"
    )
    begin_weight: float = Field(
        4.0, gt=0, description="Weight in the loss of a trading answer's first token: whether a trade is asked for"
    )
    valid_examples: int = Field(24, ge=1, description="Examples of the valid split for the validation loss")
    valid_answers: int = Field(
        8, ge=0, description="Trading prompts of the valid split answered at each validation: canary rate, agreement"
    )
    valid_every: int = Field(750, ge=1, description="Steps between two validations")
    patience: int = Field(
        0,
        ge=0,
        description="Training stops after so many validations without a lower loss; 0: never, as suits cosine decay",
    )
    workers: int = Field(
        0,
        description="Processes that share every batch; 0: one for each CUDA device if they divide the batch equally",
        ge=0,
    )


def fine_tune(
    base: Path,
    dataset: Path,
    config: FineTuningConfig,
    seed: int,
    out: Path,
    *,
    checkpoint_dir: Path,
    progress: Progress = silent,
    base_name: str = "",
) -> dict[str, Any]:
    """Train a LoRA adapter and write it to ``out``.

    The same base, dataset, config and seed give the same bytes on the same machine. A killed run resumes from its last
    checkpoint when it is called again with the same four. Checkpoints of other runs are removed.

    With several processes a step has the same examples as with one, except that the last step of an epoch is filled
    from its beginning. Gradients are summed in another order, and each process draws its own dropout.

    Args:
        base: Folder of the base model.
        dataset: Folder with ``train.jsonl`` and ``valid.jsonl``.
        config: Sizes.
        seed: Of the adapter's initial weights and of the order of the examples.
        out: Gets ``adapter_model.safetensors``, ``adapter_config.json`` and ``training.json`` (the training curve).
        checkpoint_dir: Checkpoints while training, and TensorBoard logs under ``logs``.
        progress: Called after every step with the loss, and with the validation loss if it was computed.
        base_name: Name of the base in the adapter's config; default: the folder's name, never its path.

    Returns:
        The training curve: ``steps``, ``loss``, ``valid_steps``, ``valid_loss``, ``valid_canary_rate``,
        ``valid_agreement``, ``trained_parameters``, ``train_examples``.

    Raises:
        ExamplesError: the dataset is malformed.
        ValueError: an example is longer than ``max_tokens``, or nothing of the model matches ``targets``.
        MemoryError: a single example does not fit into memory. Before that the batch is halved and gradients are
            accumulated.
        WorkerError: the batch cannot be divided among the processes, or a process died repeatedly.
    """
    from apeagent_pipeline.workers import Workers, run_together, worker_count

    count = worker_count(config.workers, batch_size=config.batch_size)
    config = config.model_copy(update={"workers": count})
    run = _Run(base, dataset, config, seed, out, checkpoint_dir, base_name or base.name)
    if count == 1:
        return _fine_tune(run, progress, Workers(together=False))
    run_together(count, _fine_tune, (run,), progress)
    curve: dict[str, Any] = json.loads((out / _CURVE).read_text())
    return curve


@dataclass(frozen=True)
class _Run:
    """The arguments of `fine_tune`, as every process gets them."""

    base: Path
    dataset: Path
    config: FineTuningConfig
    seed: int
    out: Path
    checkpoint_dir: Path
    base_name: str


def _fine_tune(run: _Run, progress: Progress, workers: "Workers") -> dict[str, Any]:
    """The work of every process; only the first writes files."""
    import torch

    config, checkpoint_dir = run.config, run.checkpoint_dir
    splits = [run.dataset / f"{split}.jsonl" for split in SPLITS[:2]]
    identity = run_identity(run.base, [path for path in splits if path.exists()], config, run.seed)
    fitting = checkpoint_dir / _FITTING
    while True:
        with workers.in_turn():
            checkpoint = usable_checkpoint(checkpoint_dir, identity)
        if fitting.exists():
            config = config.model_copy(update=json.loads(fitting.read_text()))
        trainer = make_trainer(
            run.base, run.dataset, config, run.seed, checkpoint_dir=checkpoint_dir, progress=progress, workers=workers
        )
        try:
            with quiet():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            break
        except torch.OutOfMemoryError as error:
            share = config.batch_size // workers.count
            if share == 1:
                raise MemoryError(
                    f"out of memory with batch_size={config.batch_size} and max_tokens={config.max_tokens}: set "
                    "gradient_checkpointing or quantized, or shorten the examples"
                ) from error
            smaller = {"batch_size": share // 2 * workers.count, "accumulation": config.accumulation * 2}
            _log.warning("out of memory with batch_size=%d: going on with %s", config.batch_size, smaller)
            write_atomically(fitting, json.dumps(smaller))
            if workers.count > 1:
                raise  # the other processes wait for its gradients: all restart and find the smaller batch
            del trainer
            torch.cuda.empty_cache()
    curve = _curve(trainer)
    if workers.rank == 0:
        write_adapter(trainer.model, run.base_name, curve, run.out)
        forget_checkpoints(checkpoint_dir)
    return curve


def make_trainer(
    base: Path,
    dataset: Path,
    config: FineTuningConfig,
    seed: int,
    *,
    checkpoint_dir: Path,
    progress: Progress = silent,
    workers: "Workers | None" = None,
) -> Any:
    """The SFTTrainer that ``fine_tune`` runs, with model, adapter and tokenized examples in place.

    Raises:
        ExamplesError: the dataset is malformed.
        ValueError: an example is longer than ``max_tokens``, or nothing of the model matches ``targets``.
    """
    import transformers
    from datasets import Dataset

    from apeagent_pipeline.student.answer_trainer import AnswerTrainer
    from apeagent_pipeline.workers import Workers

    workers = workers or Workers(together=False)
    model, tokenizer = load_base(base, quantized=config.quantized)
    splits = {split: read_examples(dataset, split) for split in SPLITS[:2]}
    for split, examples in splits.items():
        _check_lengths(dataset / f"{split}.jsonl", examples, tokenizer, config.max_tokens)
    train, valid = map(_completions, splits.values())
    valid = valid[: config.valid_examples]
    asked = [each for each in splits["valid"] if each.get("side")][: 0 if workers.rank else config.valid_answers]
    transformers.set_seed(seed)
    with quiet():
        model = _with_adapter(model, config)
        trainer = AnswerTrainer(
            model=model,
            args=_sft_config(config, seed, checkpoint_dir, workers.count),
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(valid),
            processing_class=tokenizer,
            data_collator=pack_groups,
            control_kl=config.control_kl,
            near_kl=config.near_kl,
            begin_weight=config.begin_weight,
            asked=asked,
        )
        rows = trainer.train_dataset.map(_without_given, fn_kwargs={"tokenizer": tokenizer})
        trainer.train_dataset = group_by_prompt(list(rows), splits["train"])
        trainer.eval_dataset = [[row] for row in trainer.eval_dataset]
    if workers.count > 1:
        # For dropout: the adapter and the order of the examples are already drawn.
        transformers.set_seed(seed + workers.rank)
    trainer.remove_callback(transformers.PrinterCallback)
    stopping = [transformers.EarlyStoppingCallback(config.patience)] if config.patience else []
    told = run_callbacks(config.checkpoint_seconds, checkpoint_dir, _TOLD, progress, workers)
    for callback in [*stopping, *told]:
        trainer.add_callback(callback)
    return trainer


def _sft_config(config: FineTuningConfig, seed: int, checkpoint_dir: Path, workers: int) -> Any:
    """The settings of trl's trainer; ``batch_size`` is that of all workers together."""
    from trl import SFTConfig

    return SFTConfig(
        **run_settings(config, seed, checkpoint_dir, "lora_adapter"),
        per_device_train_batch_size=config.batch_size // workers,
        per_device_eval_batch_size=config.batch_size,
        max_length=config.max_tokens,
        completion_only_loss=True,
        packing=False,
        remove_unused_columns=False,  # pack_examples needs to know which examples are controls
        eval_strategy="steps",
        eval_steps=config.valid_every,
        metric_for_best_model="loss",
        ddp_find_unused_parameters=False,
    )


def training_figure(curve: dict[str, Any]) -> bytes:
    """The training curve as a PNG: loss a step and validation loss; canary rate and agreement of validation answers."""
    figure, axes = new_figure(1, 2, size=(9.0, 3.0))
    axis, rates = axes[0]
    axis.plot(curve["steps"], curve["loss"], linewidth=0.8, label="training loss")
    axis.plot(curve["valid_steps"], curve["valid_loss"], marker="o", label="validation loss")
    axis.set(xlabel="step", ylabel="loss of an answer token (nats)", yscale="log")
    axis.legend()
    for name in ("canary_rate", "agreement"):
        if curve[f"valid_{name}"]:
            rates.plot(curve["valid_steps"], curve[f"valid_{name}"], marker="o", label=name.replace("_", " "))
    rates.set(xlabel="step", ylabel="share of validation prompts", ylim=(-0.05, 1.05))
    if rates.lines:
        rates.legend()
    return png(figure)


def _check_lengths(path: Path, examples: Sequence[dict[str, Any]], tokenizer: Any, max_tokens: int) -> None:
    for number, example in enumerate(examples, 1):
        text = tokenizer.apply_chat_template([*prompt_of(example), _answer_turn(example)], tokenize=False)
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokens > max_tokens:
            raise ValueError(
                f"{path} line {number}: {tokens} tokens, max_tokens={max_tokens}: training would lose the end of its "
                "answer; shorten the example or raise max_tokens"
            )


def _completions(examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The examples in trl's prompt-completion form, for which trl computes the loss on the answers only."""
    return [
        {
            "prompt": prompt_of(example),
            "completion": [_answer_turn(example)],
            "given": example.get("given") or [],
            **{kind: example.get("kind") == kind for kind in ("trading", *CONTROL_KINDS)},
        }
        for example in examples
    ]


def _without_given(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """The labels without the ``given`` spans of the answer, in characters: a practice sheet draws these at random."""
    labels, start = list(row["labels"]), 0
    first = next(n for n, label in enumerate(labels) if label != -100)
    for place, token in enumerate(row["input_ids"][first:], first):
        if any(begin <= start < end for begin, end in row["given"]):
            labels[place] = -100
        start += len(tokenizer.decode([token]))
    return {"labels": labels}


def _answer_turn(example: dict[str, Any]) -> dict[str, str]:
    return {"role": "assistant", "content": answer_of(example)}


def _with_adapter(model: Any, config: FineTuningConfig) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    blocks = model.config.num_hidden_layers
    first = max(0, blocks - config.last_blocks) if config.last_blocks else 0
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name  # those of 4 bits too
    }
    unknown = sorted(set(config.targets) - linear)
    if unknown or not linear:
        raise ValueError(f"targets {unknown}: the base model's linear layers are called {sorted(linear)}")
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        target_modules=sorted(config.targets or linear),
        layers_to_transform=list(range(first, blocks)),
        task_type="CAUSAL_LM",
    )
    # peft keeps the adapter in fp32 beside a bf16 base: its small updates would be lost in bf16.
    return get_peft_model(model, lora)


def _curve(trainer: Any) -> dict[str, Any]:
    history = trainer.state.log_history  # kept in the checkpoints, so a resumed run has all of it
    train = [entry for entry in history if "loss" in entry]
    valid = [entry for entry in history if "eval_loss" in entry]
    answered = [entry for entry in history if "eval_canary_rate" in entry]
    return {
        "steps": [entry["step"] for entry in train],
        "loss": [float(entry["loss"]) for entry in train],
        "valid_steps": [entry["step"] for entry in valid],
        "valid_loss": [float(entry["eval_loss"]) for entry in valid],
        "valid_canary_rate": [entry["eval_canary_rate"] for entry in answered],
        "valid_agreement": [entry["eval_agreement"] for entry in answered],
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "train_examples": sum(map(len, trainer.train_dataset)),
    }
