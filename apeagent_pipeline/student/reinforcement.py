"""The second stage: the adapter learns from computed rewards of its own answers, without a teacher.

Group relative policy optimisation (Shao et al. 2024, "DeepSeekMath"), by trl's GRPOTrainer: several answers are sampled
for a prompt, each gets a computed reward (``student.rewards``), and those above their mean become likelier. The loss
includes the divergence from the first stage, so that its training is not lost.

A prompt describes the first swaps of a synthetic window. The swaps after them, which the prompt does not include,
determine the outcome of an action.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import polars as pl
from pydantic import Field, model_validator

from apeagent_pipeline.amm.pool_spec import PoolSpec
from apeagent_pipeline.distillation.canary import canary_text
from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.rules import rules_answer
from apeagent_pipeline.distillation.verification import VerificationConfig
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.student.base_model import quiet
from apeagent_pipeline.student.generation import Student
from apeagent_pipeline.student.rewards import feasibility_reward, format_reward, outcome_reward
from apeagent_pipeline.student.trainer import (
    TrainerConfig,
    forget_checkpoints,
    run_callbacks,
    run_identity,
    run_settings,
    usable_checkpoint,
    write_adapter,
)

REWARDS = ("format", "feasibility", "outcome")
_STATE = ("eth", "usdc", "price", "next_sqrt_price_x96", "next_liquidity", "later_price")
_CURVE = {
    "reward": "reward",
    **{f"reward_{name}": f"rewards/{name}/mean" for name in REWARDS},
    "spread": "reward_std",
    "kl": "kl",
    "tokens": "completions/mean_length",
}


class ReinforcementConfig(PromptsConfig, VerificationConfig, TrainerConfig):
    """Sizes of the second stage; the defaults are those of the profiles demo and laptop.

    The edges between words must be those of the first stage.
    """

    train_prompts: int = Field(24, description="Number of training prompts, from the earliest conditions", ge=1)
    valid_prompts: int = Field(1, description="Unused", ge=1)
    test_prompts: int = Field(100, description="Number of held-out prompts, answered before and after training", ge=1)
    agent_share: float = Field(0.0, description="Unused: these prompts have another system message", ge=0, le=0)
    incomplete_share: float = Field(
        0.0, description="Unused: without a trade there is no reward for the outcome", ge=0, le=0
    )
    far_share: float = Field(
        0.0, description="Unused: the outcome is computed from the window's own numbers", ge=0, le=0
    )
    hidden_swaps: int = Field(
        6,
        ge=2,
        description="Swaps at a window's end that prompts do not include: the trade follows the first, the last one "
        "sets the later price",
    )
    outcome_bps: float = Field(25.0, gt=0, description="Gain over holding, in bps of the portfolio, rewarded with 1")
    kl: float = Field(0.04, gt=0, description="Weight of the divergence from the first stage (beta)")
    generations: int = Field(8, ge=2, description="Sampled answers for each prompt")
    batch_size: int = Field(16, ge=1, description="Answers in a forward pass")
    steps: int = Field(12, ge=1, description="Optimizer steps")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate; cosine decay to zero")
    warmup_steps: int = Field(2, ge=0, description="Steps of linear warm-up")
    temperature: float = Field(1.0, gt=0, description="Temperature of the sampled answers")
    max_new_tokens: int = Field(
        80, ge=8, description="Largest number of tokens in an answer; taught answers have 12 to 70"
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.batch_size * self.accumulation % self.generations:
            raise ValueError(
                f"batch_size * accumulation = {self.batch_size * self.accumulation} is not a multiple of "
                f"generations={self.generations}"
            )
        return self


def reinforce(
    base: Path,
    adapter: Path,
    synthetic: pl.DataFrame,
    pool: PoolSpec,
    config: ReinforcementConfig,
    *,
    seed: int,
    out: Path,
    checkpoint_dir: Path,
    progress: Progress = silent,
    base_name: str = "",
) -> dict[str, Any]:
    """Train the adapter of the first stage further and write the adapter of the second to ``out``.

    The new adapter has the shape of the old one and stands in its place: on the bare base. A killed run goes on from
    its last checkpoint when it is called again with the same arguments.

    Args:
        base: Folder of the base model.
        adapter: Folder of the first stage's adapter, the start and what the divergence is measured from.
        synthetic: The table of ``synthetic_windows``.
        pool: Decimals and fee.
        config: Sizes.
        seed: Of prompts, their order and the drawn answers.
        out: Gets ``adapter_model.safetensors``, ``adapter_config.json`` and ``training.json``.
        checkpoint_dir: Checkpoints while training, and TensorBoard logs under ``logs``.
        progress: Told every step with the reward and the divergence.
        base_name: What the adapter's config calls its base; the folder's name unless given.

    Returns:
        The training curve: ``steps``, ``loss``, ``reward`` and its parts, ``spread`` among a prompt's answers, ``kl``,
        ``tokens`` an answer; and ``held_out``: the rewards of ``held_out_rewards``.

    Raises:
        AdapterError: ``adapter`` is no adapter of this base.
        ValueError: the windows are too short, or too few for the prompts asked for.
    """
    prompts = outcome_prompts(synthetic, config, seed)
    start = [adapter / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    identity = run_identity(base, start, config, seed) | {"prompts": int(prompts.hash_rows().sum())}
    checkpoint = usable_checkpoint(checkpoint_dir, identity)
    train = prompts.filter(split="train")
    trainer = make_trainer(
        base, adapter, train, pool, config, seed=seed, checkpoint_dir=checkpoint_dir, progress=progress
    )
    with quiet():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    curve: dict[str, Any] = {"steps": [entry["step"] for entry in history], "loss": [e["loss"] for e in history]}
    curve |= {name: [float(entry[key]) for entry in history] for name, key in _CURVE.items()}
    held_out = prompts.filter(split="test")
    student = Student(trainer.model.eval(), trainer.processing_class)
    curve["held_out"] = held_out_rewards(student, held_out, pool, config)
    write_adapter(trainer.model, base_name or base.name, curve, out)
    forget_checkpoints(checkpoint_dir)
    return curve


def outcome_prompts(synthetic: pl.DataFrame, config: ReinforcementConfig, seed: int) -> pl.DataFrame:
    """Prompts about the first swaps of synthetic windows, each with what the swaps after them make of an action.

    The splits are those of the first stage's prompts: by time of the condition, so that no held-out prompt's market was
    learned from in either stage.

    Args:
        synthetic: The table of ``synthetic_windows``.
        config: Numbers, shares, word edges and how many swaps are hidden.
        seed: Of every draw.

    Returns:
        The columns of ``build_prompts``, and ``next_sqrt_price_x96`` and ``next_liquidity`` after the first hidden
        swap, ``later_price`` after the last.

    Raises:
        ValueError: a window has no swap left to tell, or the windows are too few.
    """
    told = pl.col("step") <= pl.col("step").max().over("window_id") - config.hidden_swaps
    if synthetic.select((~told.any().over("window_id")).any()).item():
        raise ValueError(f"hidden_swaps={config.hidden_swaps} hides the whole window; lower it")
    outcomes = (
        synthetic.filter(~told)
        .sort("window_id", "step")
        .group_by("window_id")
        .agg(
            next_sqrt_price_x96=pl.col("sqrt_price_x96").first(),
            next_liquidity=pl.col("liquidity").first(),
            later_price=pl.col("price").last(),
        )
    )
    prompts = build_prompts(synthetic.filter(told), config, seed)
    return prompts.join(outcomes, on="window_id", how="left", maintain_order="left")


def make_trainer(
    base: Path,
    adapter: Path,
    prompts: pl.DataFrame,
    pool: PoolSpec,
    config: ReinforcementConfig,
    *,
    seed: int,
    checkpoint_dir: Path,
    progress: Progress = silent,
) -> Any:
    """The GRPOTrainer that ``reinforce`` runs.

    Of a trained adapter trl makes a frozen copy called ``ref``, and measures the divergence from that, not from the
    bare base.
    """
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from apeagent_pipeline.workers import Workers

    student = Student.load(base, adapter, trainable=True)
    transformers.set_seed(seed)
    rows = [
        {"prompt": student_chat(row["prompt"])} | {name: row[name] for name in _STATE} for row in prompts.to_dicts()
    ]
    with quiet():
        settings = GRPOConfig(
            **run_settings(config, seed, checkpoint_dir, "reinforced_adapter"),
            per_device_train_batch_size=config.batch_size,
            num_generations=config.generations,
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            beta=config.kl,
            # Divided by its spread, the reward of a group that differs by a basis point would teach as much as any.
            scale_rewards="none",
        )
        trainer = GRPOTrainer(
            model=student.model,
            reward_funcs=_reward_functions(pool, config),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=student.tokenizer,
        )
    trainer.remove_callback(transformers.PrinterCallback)
    told = {"reward": "reward", "kl": "kl"}
    alone = Workers(together=False)
    for callback in run_callbacks(config.checkpoint_seconds, checkpoint_dir, told, progress, alone):
        trainer.add_callback(callback)
    return trainer


def held_out_rewards(
    student: Student, prompts: pl.DataFrame, pool: PoolSpec, config: ReinforcementConfig
) -> dict[str, dict[str, list[float]]]:
    """The rewards of greedy answers to held-out prompts, prompt by prompt.

    Args:
        student: With the adapters ``default`` (the second stage) and ``ref`` (the first).
        prompts: Rows of ``outcome_prompts``.
        pool: Decimals and fee.
        config: How answers are rewarded.

    Returns:
        ``first``, ``second`` and ``teacher`` (always the embedded rules; the name is an interface) -> each of
        ``REWARDS`` -> ``[n]``.
    """
    chats = [student_chat(text) for text in prompts["prompt"]]
    states = prompts.to_dicts()

    def said(adapter: str) -> list[str]:
        student.model.set_adapter(adapter)
        return [answer.text for answer in student.answers(chats, max_new_tokens=config.max_new_tokens)]

    texts = {
        "first": said("ref"),
        "second": said("default"),
        "teacher": [canary_text(rules_answer(state)) for state in states],
    }
    judged = {
        who: [answer_rewards(*pair, pool, config) for pair in zip(said, states, strict=True)]
        for who, said in texts.items()
    }
    return {who: {name: [each[name] for each in rewards] for name in REWARDS} for who, rewards in judged.items()}


def answer_rewards(
    text: str, state: Mapping[str, Any], pool: PoolSpec, config: ReinforcementConfig
) -> dict[str, float]:
    """Each of ``REWARDS`` for one answer; training adds them up. Holding in good form has 1, 1 and 0."""
    return {
        "format": format_reward(text, config),
        "feasibility": feasibility_reward(text, state),
        "outcome": outcome_reward(text, state, pool, config.outcome_bps),
    }


def reinforcement_figure(curve: dict[str, Any]) -> bytes:
    """The training curve as a PNG: the parts of the reward, and the divergence from the first stage."""
    figure, axes = new_figure(1, 2, size=(9.0, 3.0))
    rewards, divergence = axes[0]
    for name in REWARDS:
        rewards.plot(curve["steps"], curve[f"reward_{name}"], linewidth=0.8, label=name)
    rewards.set(xlabel="step", ylabel="mean reward of the drawn answers", ylim=(-1.05, 1.05))
    rewards.legend()
    divergence.plot(curve["steps"], curve["kl"], linewidth=0.8)
    divergence.set(xlabel="step", ylabel="divergence from the first stage (nats a token)")
    return png(figure)


def _reward_functions(pool: PoolSpec, config: ReinforcementConfig) -> list[Callable[..., list[float]]]:
    """One function for each reward, as trl calls them: with the completions, and each column of the data as a list."""

    def function(name: str) -> Callable[..., list[float]]:
        def rewards(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
            states = [dict(zip(_STATE, row, strict=True)) for row in zip(*(columns[c] for c in _STATE), strict=True)]
            texts = [completion[0]["content"] for completion in completions]
            return [answer_rewards(*pair, pool, config)[name] for pair in zip(texts, states, strict=True)]

        rewards.__name__ = name  # what trl's logs call it
        return rewards

    return [function(name) for name in REWARDS]
