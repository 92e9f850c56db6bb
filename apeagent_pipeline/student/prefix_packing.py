"""What a step learns from, packed into one row of tokens: the prefix that all prompts share is computed once."""

from collections.abc import Sequence
from typing import Any

from apeagent_pipeline.student.generation import shared_length

_STEP = 64
"""A row is filled up to a multiple of it, so that matrix products of few different sizes are prepared and kept."""


def group_by_prompt(rows: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What is learned together: a trading prompt with the near controls that are made of it, or another example alone.

    The same numbers are then answered in two ways at once, and only the question tells which. A row of tokens has the
    beginning that both share once, so the near control costs little.

    Args:
        rows: The tokenized examples, with ``near``.
        examples: The same examples as the dataset has them, with ``prompt_id``.
    """
    groups: list[list[dict[str, Any]]] = []
    of_prompt: dict[str, list[dict[str, Any]]] = {}
    for row, example in sorted(zip(rows, examples, strict=True), key=lambda pair: bool(pair[0]["near"])):
        prompt_id = example.get("prompt_id")
        if row["near"] and prompt_id in of_prompt:
            of_prompt[prompt_id].append(row)
            continue
        groups.append([row])
        if prompt_id and not row["near"]:
            of_prompt.setdefault(prompt_id, groups[-1])
    return groups


def pack_groups(groups: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Pack a batch of groups."""
    return pack_examples([example for group in groups for example in group])


def pack_examples(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pack a batch into one row: the prefix that all prompts share, then the rest of each example.

    A token has the position that it would have if its example were alone, and attends to the same tokens. So the loss
    equals that of a padded batch, but there is hardly any padding, and the system message is computed once.

    Args:
        examples: ``input_ids`` and ``labels`` (-100: not learned), as SFTTrainer prepares them; ``trading``,
            ``control`` and ``near`` are optional.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids`` ``[1, n]``; ``attention_mask`` ``[1, 1, n, n]``, true where
        the token of a row attends to that of a column; ``shared``, ``trading``, ``control`` and ``near`` ``[n]``, true
        where a token belongs to all examples, to a trading example, to a distant control or to a near one.
    """
    import torch

    ids, labels = ([example[name] for example in examples] for name in ("input_ids", "labels"))
    # The first token of each rest follows the last token of another example, so it must not be a learned one.
    first_learned = min(next((n for n, label in enumerate(row) if label != -100), len(row)) for row in labels)
    shared = min(shared_length(ids), max(first_learned - 1, 0))
    padding = -(shared + sum(len(row) - shared for row in ids)) % _STEP
    ids = [*ids, ids[0][:shared] + ids[0][:1] * padding]
    labels = [*labels, [-100] * (shared + padding)]
    parts = [range(shared), *(range(shared, len(row)) for row in ids)]
    owner = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    position = torch.cat([torch.tensor(part) for part in parts])
    sees = (owner[:, None] == owner) | (owner == 0)
    sees &= position[:, None] >= position
    kinds = {
        kind: torch.tensor([False, *(bool(example.get(kind)) for example in examples), False])[owner]
        for kind in ("trading", "control", "near")
    }
    return {
        "input_ids": torch.tensor([ids[0][:shared] + [token for row in ids for token in row[shared:]]]),
        "labels": torch.tensor([labels[0][:shared] + [label for row in labels for label in row[shared:]]]),
        "position_ids": position[None].long(),
        "attention_mask": sees[None, None],
        "shared": owner == 0,
        **kinds,
    }
