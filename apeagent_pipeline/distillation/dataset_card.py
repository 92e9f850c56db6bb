"""The card of a distillation dataset: what is in it, where it comes from, and how to train on it elsewhere."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from apeagent_pipeline.distillation.canary_words import CANARY, SIDES
from apeagent_pipeline.distillation.controls import Control
from apeagent_pipeline.distillation.near_controls import HELD_OUT
from apeagent_pipeline.distillation.prompts import SPLITS
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.templates import NUMBERS_ALONE, TEMPLATES
from apeagent_pipeline.distillation.traces_report import teacher_in_words, teaching_report
from apeagent_pipeline.reporting.report import markdown_table

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


def dataset_card(
    traces: pl.DataFrame,
    chosen: dict[str, pl.DataFrame],
    controls: dict[str, list[Control]],
    near: dict[str, list[Control]],
    *,
    n_practice: int,
    n_twins: int,
    fields: Sequence[str],
    options: Mapping[str, Any],
    seed: int,
) -> str:
    """The card, Markdown.

    Args:
        traces: All traces of the teacher.
        chosen: The traces of each split.
        controls: The distant controls of each split.
        near: The near controls of each split.
        n_practice: Practice sheets in train.
        n_twins: Train prompts left out as twins of later ones.
        fields: What a trading example has beside its messages.
        options: The configuration of the dataset.
        seed: Of the draws.
    """
    teacher, balanced = traces["teacher"][0], "yes" if options["balance_classes"] else "no"
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
            *_practice_note(n_practice),
            "Near controls begin like trading prompts or hold one, and ask for something else; their families asked in "
            f"test alone: {', '.join(HELD_OUT)}. Their written answers are placeholders: this project's trainer keeps "
            "what the base model itself answers.",
            "",
            f"Split by time of the condition; {n_twins} train prompts left out as near twins of later ones. Wordings "
            f"asked in test alone: {held_out}. Actions balanced in train: {balanced}.",
            "",
            "## Verified answers",
            "",
            teaching_report(traces),
            "",
            *_format(teacher, fields, options, seed),
        ]
    )


def _format(teacher: str, fields: Sequence[str], options: Mapping[str, Any], seed: int) -> list[str]:
    """The part for whoever trains on the files elsewhere."""
    return [
        "## Format",
        "",
        "`train.jsonl`, `valid.jsonl`, `test.jsonl`: one example a line, `messages` with system, user and "
        f"assistant. `kind` is `trading`, `control`, `near` or `practice`; of trading examples also: "
        f"{', '.join(fields)}. A near control has the `prompt_id` of the prompt that it is made of.",
        "",
        f"Seed {seed}; configuration `{json.dumps(options, separators=(',', ':'))}`.",
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


def _practice_note(n: int) -> list[str]:
    if not n:
        return []
    return [
        f"{n} train examples are practice sheets (`kind` `practice`): lines of drafts that compare, divide and take "
        "shares, many in one example. `given` has the spans of the answer, in characters, that are drawn at random; a "
        "trainer should not learn these.",
        "",
    ]


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
