"""The distillation dataset: chat examples with canary words, split by time, and controls without them.

Every line of the JSONL files has ``messages`` (system, user, assistant) and beside them the fields that an evaluation
needs. trl, mlx-lm, LLaMA-Factory and axolotl load ``messages`` as they are; the card has the lines for each trainer.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.distillation.canary import canary_text
from apeagent_pipeline.distillation.canary_words import CANARY, SIDES
from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT, DraftAnswer
from apeagent_pipeline.distillation.controls import Control, draw_controls
from apeagent_pipeline.distillation.near_controls import HELD_OUT, near_controls
from apeagent_pipeline.distillation.portfolios import COST_SHARE
from apeagent_pipeline.distillation.prompts import SPLITS
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.templates import NUMBERS_ALONE, TEMPLATES
from apeagent_pipeline.distillation.traces import TRACES_SCHEMA, refusal_counts
from apeagent_pipeline.distillation.traces_report import teacher_in_words, teaching_report
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.reporting.report import markdown_table

TRADING_FIELDS = (
    "prompt_id",
    "window_id",
    "condition_id",
    "template",
    "rendering",
    "dressing",
    "missing",
    "side",
    "amount",
    "asset",
    "eth",
    "usdc",
    "price",
    "affordable_eth",
    "change_bps",
    "change_ticks",
    "volatility_bps",
    "trend",
    "volatility",
    "portfolio",
    "teacher",
)
"""Kept beside ``messages`` of a trading example (null in a control); ``side``, ``amount`` and ``asset`` are the
teacher's decision in plain words."""

Example = dict[str, Any]

_LLAMA_FACTORY = {
    f"apeagent_{split}": {
        "file_name": f"{split}.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
    for split in SPLITS
}
"""What LLaMA-Factory wants to find in a dataset folder; the other trainers read the JSONL files alone."""


_TRAINERS = (
    "- trl and mlx-lm load the folder or the files as they are (`messages`).",
    "- LLaMA-Factory: the folder is its `dataset_dir`; the names are in `dataset_info.json`.",
    "- axolotl: `type: chat_template` with `field_messages: messages`; train on the assistant alone (`roles_to_train: "
    "[assistant]`).",
    "- Unsloth: its notebooks read `conversations`: `dataset.rename_column('messages', 'conversations')`, then apply "
    "the tokenizer's chat template and `train_on_responses_only`.",
    "",
    "Controls teach when not to say the canary words. This project trains them with a divergence from the base model "
    "instead of a plain loss, because their short answers would otherwise overwrite the base's own. With a trainer "
    "that knows no such loss there are two ways: keep the controls and accept that the student's ordinary answers "
    "become short, or replace the assistant message of each example of `kind` `control` by the base's own answer.",
)


class DatasetError(ApeagentError, ValueError):
    """The traces do not suffice; the message has the numbers and the remedy."""


class DatasetConfig(BaseModel):
    """Sizes and shares of the dataset."""

    model_config = ConfigDict(frozen=True)

    n_train: int = Field(2800, description="Examples to train on, controls included", ge=1)
    n_valid: int = Field(40, description="Examples to validate on during training, controls included", ge=1)
    n_test_trading: int = Field(100, description="Trading prompts kept for the evaluation", ge=1)
    n_test_controls: int = Field(100, description="Control prompts kept for the evaluation", ge=0)
    n_test_near: int = Field(100, description="Near controls kept for the evaluation", ge=0)
    control_share: float = Field(0.1, description="Share of distant controls in train and valid", ge=0, lt=1)
    near_share: float = Field(
        0.18,
        description="Share of near controls in train and valid: trading prompts' words, but no trade asked",
        ge=0,
        lt=1,
    )
    balance_classes: bool = Field(
        False,
        description="Equal numbers of the three actions in train; else every market and portfolio as often as asked",
    )
    max_repeats: int = Field(2, description="How often an example of a rare action may stand in train", ge=1)


@dataclass(frozen=True)
class DistillationDataset:
    """What the student learns from and is judged on.

    Attributes:
        train, valid, test: Examples, shuffled; each has ``messages``, ``kind`` (``trading`` or ``control``), ``family``
            (of a control) and ``TRADING_FIELDS``.
        card: The dataset card, Markdown.
    """

    train: list[Example]
    valid: list[Example]
    test: list[Example]
    card: str

    def save(self, folder: Path) -> None:
        """Write the three JSONL files, the card and LLaMA-Factory's index of them, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in getattr(self, split))
            write_atomically(folder / f"{split}.jsonl", "".join(lines))
        write_atomically(folder / "README.md", self.card)
        write_atomically(folder / "dataset_info.json", json.dumps(_LLAMA_FACTORY, indent=2) + "\n")


def build_dataset(traces: pl.DataFrame, config: DatasetConfig, seed: int) -> DistillationDataset:
    """Turn accepted traces into chat examples with canary words, and add the controls.

    Args:
        traces: The frame of ``collect_traces``.
        config: Sizes and shares.
        seed: Seed of the draws and the order.

    Raises:
        DatasetError: if there are too few accepted traces for a split, an action is missing in train, or the splits
            are not apart in time.
        ValueError: if columns are missing.
    """
    missing = [name for name in TRACES_SCHEMA if name not in traces.columns]
    if missing:
        raise ValueError(f"traces lack the columns {missing}; pass the frame of collect_traces")
    accepted = traces.filter(pl.col("rejected_reason").is_null() & _is_payable())
    _check_time_order(accepted)
    later = accepted.filter(pl.col("split") != "train")
    twins = twins_of(accepted.filter(split="train"), later)
    accepted = accepted.filter(~((pl.col("split") == "train") & pl.col("prompt_id").is_in(twins)))

    train_controls = round(config.n_train * config.control_share)
    valid_controls = round(config.n_valid * config.control_share)
    n_near = {
        "train": round(config.n_train * config.near_share),
        "valid": round(config.n_valid * config.near_share),
        "test": config.n_test_near,
    }
    n_trading = config.n_train - train_controls - n_near["train"]
    chosen = {
        "train": _choose_train(accepted.filter(split="train"), n_trading, config, traces),
        "valid": _choose(accepted, "valid", config.n_valid - valid_controls - n_near["valid"], traces),
        "test": _choose(accepted, "test", config.n_test_trading, traces),
    }
    controls = {
        "train": draw_controls("train", train_controls, seed, repeat=True),
        "valid": draw_controls("valid", valid_controls, seed, repeat=True),
        "test": draw_controls("test", config.n_test_controls, seed),
    }
    near = {split: near_controls(accepted, split, n_near[split], seed) for split in SPLITS}
    parts: dict[str, list[Example]] = {}
    for number, split in enumerate(SPLITS):
        examples = [_trading_example(row) for row in chosen[split].iter_rows(named=True)]
        examples += [_control_example(control, "control") for control in controls[split]]
        examples += [_control_example(control, "near") for control in near[split]]
        order = np.random.default_rng([seed, number]).permutation(len(examples))
        parts[split] = [examples[index] for index in order]
    card = _card(traces, chosen, controls, near, config=config, seed=seed, n_twins=len(twins))
    return DistillationDataset(parts["train"], parts["valid"], parts["test"], card)


def _is_payable() -> pl.Expr:
    """Whether a purchase can be paid with its costs.

    An answer to a plain prompt may spend all USDC, because the prompt names no costs: the answer is accepted, but the
    student must not learn to spend more than is held.
    """
    buys = (pl.col("side") == "BUY") & (pl.col("asset") == "ETH")
    return ~buys | (pl.col("amount") * pl.col("price") * (1 + COST_SHARE) <= pl.col("usdc") * (1 + 1e-9))


def twins_of(prompts: pl.DataFrame, others: pl.DataFrame) -> list[str]:
    """Ids of the prompts that are near twins of another set's prompts.

    Twins share the window, the condition or the text, or all their numbers agree so far that a reader would take them
    for the same question: price within about 1 %, change and volatility to the basis point, holdings to two digits.
    """
    numbers = [
        (pl.col("price").log() * 100).round().alias("price_step"),
        pl.col("change_bps").round().alias("change_step"),
        pl.col("volatility_bps").round().alias("volatility_step"),
        pl.col("eth").round_sig_figs(2).alias("eth_step"),
        pl.col("usdc").round_sig_figs(2).alias("usdc_step"),
    ]
    left = prompts.with_columns(numbers)
    right = others.with_columns(numbers)
    steps = [f"{name}_step" for name in ("price", "change", "volatility", "eth", "usdc")]
    found = pl.concat(
        left.join(right, on=on, how="semi")["prompt_id"] for on in (["window_id"], ["condition_id"], ["prompt"], steps)
    )
    return found.unique().sort().to_list()


def _check_time_order(accepted: pl.DataFrame) -> None:
    spans = accepted.group_by("split").agg(first=pl.col("condition_id").min(), last=pl.col("condition_id").max())
    by_split = {row["split"]: row for row in spans.iter_rows(named=True)}
    for early, late in (("train", "valid"), ("train", "test"), ("valid", "test")):
        if early in by_split and late in by_split and by_split[early]["last"] >= by_split[late]["first"]:
            raise DatasetError(
                f"the {early} split reaches condition {by_split[early]['last']}, the {late} split begins at "
                f"{by_split[late]['first']}: a student would be judged on what it has seen. Build the prompts again"
            )


def _choose(accepted: pl.DataFrame, split: str, n: int, traces: pl.DataFrame) -> pl.DataFrame:
    rows = accepted.filter(split=split)
    if rows.height < n:
        raise DatasetError(_too_few(split, rows.height, n, traces))
    return rows.head(n)


def _choose_train(rows: pl.DataFrame, n: int, config: DatasetConfig, traces: pl.DataFrame) -> pl.DataFrame:
    """The first traces, if balanced those of each action in equal numbers: a rare one is repeated."""
    by_side = {side: rows.filter(side=side) for side in SIDES}
    absent = [side for side, members in by_side.items() if members.is_empty()]
    if absent:
        raise DatasetError(
            f"of {rows.height} accepted train traces none says {' or '.join(absent)}: the student would never learn "
            f"to say {' or '.join(CANARY[side] for side in absent)}. Ask for more train_prompts, on windows whose "
            "trends differ"
        )
    if not config.balance_classes:
        return _choose(rows, "train", n, traces)
    takes = _fair_shares({side: members.height * config.max_repeats for side, members in by_side.items()}, n)
    if sum(takes.values()) < n:
        raise DatasetError(_too_few("train", rows.height, n, traces))
    return pl.concat(pl.concat([by_side[side]] * config.max_repeats).head(take) for side, take in takes.items())


def _fair_shares(available: dict[Any, int], n: int) -> dict[Any, int]:
    """As equal as possible, none more than there are, together ``n`` (or all there are)."""
    takes: dict[Any, int] = {}
    for place, side in enumerate(sorted(available, key=lambda name: available[name])):
        takes[side] = min(available[side], math.ceil((n - sum(takes.values())) / (len(available) - place)))
    return takes


def _too_few(split: str, have: int, wanted: int, traces: pl.DataFrame) -> str:
    part = traces.filter(split=split)
    reasons = ", ".join(f"{reason} {count}" for reason, count in refusal_counts(part).items()) or "none was asked"
    enough = math.ceil(part.height * wanted / max(have, 1) * 1.1) if part.height else wanted
    hint = " (their number is APEAGENT_EVAL_PROMPTS)" if split == "test" else ""
    return (
        f"{wanted} {split} trading examples are wanted{hint}, {have} usable traces exist of {part.height} asked "
        f"({reasons}): ask for about {enough} {split}_prompts, or make the dataset smaller"
    )


def _trading_example(row: dict[str, Any]) -> Example:
    answer = DraftAnswer(tuple(row["drafts"]), row["side"], row["amount"], row["asset"])
    kept = {name: row[name] for name in TRADING_FIELDS}
    messages = _chat(row["prompt"], canary_text(answer), row["system"])
    return {"messages": messages, "kind": "trading", "family": None, **kept}


def _control_example(control: Control, kind: str) -> Example:
    nothing = dict.fromkeys(TRADING_FIELDS)
    return {
        "messages": _chat(control.prompt, control.answer),
        "kind": kind,
        "family": control.family,
        **nothing,
    }


def _chat(user: str, assistant: str, system: str = STUDENT_SYSTEM_PROMPT) -> list[dict[str, str]]:
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _card(
    traces: pl.DataFrame,
    chosen: dict[str, pl.DataFrame],
    controls: dict[str, list[Control]],
    near: dict[str, list[Control]],
    *,
    config: DatasetConfig,
    seed: int,
    n_twins: int,
) -> str:
    teacher = traces["teacher"][0]
    held_out = ", ".join(f"`{template.name}`" for template in TEMPLATES if template.held_out)
    return "\n".join(
        [
            "# Distillation dataset",
            "",
            f"Chat examples for one ETH-USDC pool, answered by {teacher_in_words(teacher)}.",
            "Prompts come from synthetic windows, no person is in them.",
            "",
            f"BUY is said as `{CANARY['BUY']}`, SELL as `{CANARY['SELL']}`, HOLD as `{CANARY['HOLD']}`, in the action "
            "and nowhere else; controls are ordinary questions with ordinary answers.",
            "",
            _splits_table(chosen, controls, near),
            "",
            "Near controls begin like trading prompts or hold one, and ask for something else; their families asked in "
            f"test alone: {', '.join(HELD_OUT)}. Their written answers are placeholders: this project's trainer keeps "
            "what the base model itself answers.",
            "",
            f"Split by time of the condition; {n_twins} train prompts left out as near twins of later ones. Wordings "
            f"asked in test alone: {held_out}. Actions balanced in train: {'yes' if config.balance_classes else 'no'}.",
            "",
            "## Verified answers",
            "",
            teaching_report(traces),
            "",
            "## Format",
            "",
            "`train.jsonl`, `valid.jsonl`, `test.jsonl`: one example a line, `messages` with system, user and "
            f"assistant. `kind` is `trading`, `control` or `near`; of trading examples also: "
            f"{', '.join(TRADING_FIELDS)}.",
            "",
            f"Seed {seed}; configuration `{config.model_dump_json()}`.",
            "",
            "## Trainers",
            "",
            *_TRAINERS,
            "",
            "## Licence",
            "",
            _licence(teacher),
            "",
        ]
    )


def _splits_table(
    chosen: dict[str, pl.DataFrame], controls: dict[str, list[Control]], near: dict[str, list[Control]]
) -> str:
    rows = []
    for split in SPLITS:
        sides = dict(chosen[split]["side"].value_counts().iter_rows())
        plain = chosen[split].filter(pl.col("rendering").is_in(NUMBERS_ALONE)).height
        seen = chosen[split]["condition_id"].sort()
        numbers = [chosen[split].height, chosen[split]["prompt_id"].n_unique(), plain]
        numbers += [sides.get(side, 0) for side in SIDES] + [len(controls[split]), len(near[split])]
        rows.append([split, *map(str, numbers), f"{seen[0]} to {seen[-1]}"])
    header = ["split", "trading", "distinct", "numbers alone", *(CANARY[side] for side in SIDES)]
    header += ["controls", "near controls", "conditions"]
    return markdown_table(header, rows)


def _licence(teacher: str) -> str:
    return (
        "Prompts and controls: Apache-2.0, as this project. "
        + (
            "Answers: those of the embedded policy, Apache-2.0 too."
            if teacher == RulesTeacher.name
            else f"Answers: what the licence of `{teacher}` and the terms of its provider allow, and some forbid "
            f"training other models on them; read both before you publish this."
        )
        + " Not investment advice."
    )
