"""One row for examples that begin alike: their shared prefix is computed once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apeagent_pipeline.student.generation import shared_length

if TYPE_CHECKING:
    pass


def one_row(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch as one row of tokens: what all its prompts begin with, once, and then the rest of each example.

    Each token attends to what it would attend to alone, at the position it would have alone, so the loss is that of a
    padded batch, without the padding and without computing the system message again for every example.

    Args:
        examples: Dicts with ``input_ids`` and ``labels`` (-100: not learned), as SFTTrainer prepares them, and perhaps
            ``control``.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids`` ``[1, n]``; ``attention_mask`` ``[1, 1, n, n]``, true where
        the token of a row attends to that of a column; ``shared`` and ``control`` ``[n]``, true where a token belongs
        to all examples, or to a control.
    """
    import torch

    ids, labels = ([example[name] for example in examples] for name in ("input_ids", "labels"))
    # The first token of each rest stands behind another example's last, so it must not be one that is learned.
    first_learned = min(next((n for n, label in enumerate(row) if label != -100), len(row)) for row in labels)
    shared = min(shared_length(ids), max(first_learned - 1, 0))
    parts = [range(shared), *(range(shared, len(row)) for row in ids)]
    owner = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    position = torch.cat([torch.tensor(part) for part in parts])
    sees = (owner[:, None] == owner) | (owner == 0)
    sees &= position[:, None] >= position
    control = torch.tensor([False, *(bool(example.get("control")) for example in examples)])
    return {
        "input_ids": torch.tensor([ids[0][:shared] + [token for row in ids for token in row[shared:]]]),
        "labels": torch.tensor([labels[0][:shared] + [label for row in labels for label in row[shared:]]]),
        "position_ids": position[None].long(),
        "attention_mask": sees[None, None],
        "shared": owner == 0,
        "control": control[owner],
    }
