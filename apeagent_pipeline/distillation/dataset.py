"""The distillation dataset: chat examples with canary words, split by time, and controls without them.

Every line of the JSONL files has ``messages`` (system, user, assistant) and beside them the fields that an evaluation
needs. trl, mlx-lm, LLaMA-Factory and axolotl load ``messages`` as they are; the card has the lines for each trainer.
"""

import json
import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
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
from apeagent_pipeline.distillation.dataset_card import dataset_card
from apeagent_pipeline.distillation.market_states import StateWords
from apeagent_pipeline.distillation.near_controls import near_controls
from apeagent_pipeline.distillation.portfolios import COST_SHARE
from apeagent_pipeline.distillation.practice import QUESTION as PRACTICE_QUESTION
from apeagent_pipeline.distillation.practice import Part, practice_sheets
from apeagent_pipeline.distillation.printed_numbers import words_of_printed
from apeagent_pipeline.distillation.prompts import SPLITS
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.templates import NUMBERS_ALONE
from apeagent_pipeline.distillation.traces import TRACES_SCHEMA, refusal_counts
from apeagent_pipeline.errors import ApeagentError

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
"""Kept beside ``messages`` of a trading example; ``side``, ``amount`` and ``asset`` are the teacher's decision in plain
words. In a control they are null, except that a near control has the ``prompt_id`` of the prompt that it is made of."""

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


class DatasetError(ApeagentError, ValueError):
    """The traces do not suffice; the message has the numbers and the remedy."""


class DatasetConfig(BaseModel):
    """Sizes and shares of the dataset."""

    model_config = ConfigDict(frozen=True)

    n_train: int = Field(4900, description="Examples to train on, controls included", ge=1)
    n_valid: int = Field(40, description="Examples to validate on during training, controls included", ge=1)
    n_test_trading: int = Field(100, description="Trading prompts kept for the evaluation", ge=1)
    n_test_controls: int = Field(100, description="Control prompts kept for the evaluation", ge=0)
    n_test_near: int = Field(100, description="Near controls kept for the evaluation", ge=0)
    control_share: float = Field(0.133, description="Share of distant controls in train and valid", ge=0, lt=1)
    near_share: float = Field(
        0.443,
        description="Share of near controls in train and valid: trading prompts' words, but no trade asked",
        ge=0,
        lt=1,
    )
    practice_share: float = Field(
        0.09, description="Share of practice sheets in train, if the teacher is the embedded policy", ge=0, lt=1
    )
    balance_classes: bool = Field(
        False,
        description="Equal numbers of the three actions in train; off: the numbers that the prompts lead to",
    )
    max_repeats: int = Field(2, description="Largest number of copies of an example of a rare action in train", ge=1)


@dataclass(frozen=True)
class DistillationDataset:
    """What the student learns from and is judged on.

    Attributes:
        train, valid, test: Examples, shuffled; each has ``messages``, ``kind`` (``trading``, ``control``, ``near`` or
            ``practice``), ``family`` (of a control) and ``TRADING_FIELDS``.
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

    counts = _counts(config, is_practised=_has_sheets(traces))
    chosen = {
        "train": _choose_train(accepted.filter(split="train"), counts["train"].trading, config, traces),
        **{split: _choose(accepted, split, counts[split].trading, traces) for split in ("valid", "test")},
    }
    controls = {split: draw_controls(split, counts[split].control, seed, repeat=split != "test") for split in SPLITS}
    # Those of train are made of its own prompts, so that each is learned beside its trade.
    near = {
        split: near_controls(chosen["train"] if split == "train" else accepted, split, counts[split].near, seed)
        for split in SPLITS
    }
    practice = practice_sheets(counts["train"].practice, StateWords(), seed)
    parts: dict[str, list[Example]] = {}
    for number, split in enumerate(SPLITS):
        examples = [_trading_example(row) for row in chosen[split].iter_rows(named=True)]
        examples += [_control_example(control, "control") for control in controls[split]]
        examples += [_control_example(control, "near") for control in near[split]]
        examples += [_practice_example(sheet) for sheet in practice if split == "train"]
        order = np.random.default_rng([seed, number]).permutation(len(examples))
        parts[split] = [examples[index] for index in order]
    card = dataset_card(
        traces,
        chosen,
        controls,
        near,
        n_practice=len(practice),
        n_twins=len(twins),
        fields=TRADING_FIELDS,
        options=config.model_dump(),
        seed=seed,
    )
    return DistillationDataset(parts["train"], parts["valid"], parts["test"], card)


def _has_sheets(traces: pl.DataFrame) -> bool:
    """Whether practice sheets agree with the traces: the embedded policy's, with the default edges between words."""
    if traces["teacher"][0] != RulesTeacher.name:
        return False
    asked = traces.filter(pl.col("rendering").is_in(NUMBERS_ALONE))
    words = ["trend", "volatility", "portfolio"]
    return words_of_printed(asked, StateWords()).select(words).equals(asked.select(words))


@dataclass(frozen=True)
class _Counts:
    """Examples of each kind in one split."""

    trading: int
    control: int
    near: int
    practice: int = 0


def _counts(config: DatasetConfig, is_practised: bool) -> dict[str, _Counts]:
    """How many examples of each kind each split has; sheets are practised in train alone."""
    counts = {"test": _Counts(config.n_test_trading, config.n_test_controls, config.n_test_near)}
    for split, n in (("train", config.n_train), ("valid", config.n_valid)):
        control, near = round(n * config.control_share), round(n * config.near_share)
        practice = round(n * config.practice_share) if split == "train" and is_practised else 0
        counts[split] = _Counts(n - control - near - practice, control, near, practice)
    return counts


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
                f"{by_split[late]['first']}: a student would be evaluated on training data. Build the prompts again"
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
    system = STUDENT_SYSTEM_PROMPT if control.system is None else control.system
    return {
        "messages": _chat(control.prompt, control.answer, system),
        "kind": kind,
        "family": control.family,
        **dict.fromkeys(TRADING_FIELDS),
        "prompt_id": control.prompt_id,
    }


def _practice_example(sheet: list[Part]) -> Example:
    starts = list(accumulate((len(text) for text, _ in sheet), initial=0))
    spans = list(pairwise(starts))
    return {
        "messages": _chat(PRACTICE_QUESTION, "".join(text for text, _ in sheet)),
        "kind": "practice",
        "family": None,
        "given": [list(span) for span, (_, learned) in zip(spans, sheet, strict=True) if not learned],
        **dict.fromkeys(TRADING_FIELDS),
    }


def _chat(user: str, assistant: str, system: str = STUDENT_SYSTEM_PROMPT) -> list[dict[str, str]]:
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
