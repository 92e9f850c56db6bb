"""Where an answer ends: the token that the chat template puts behind an assistant's message."""

from typing import Any

_SAID = "apeagent-said-this"


def end_of_turn(tokenizer: Any) -> str | None:
    """The special token right behind an assistant's message, such as ``<|im_end|>``.

    A base model may name another end token, such as ``<|endoftext|>``, that its chat template never writes. A student
    trained on the template ends its answers with the template's token.

    Returns:
        None if there is no chat template, or no special token follows the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SAID}]
    behind = str(tokenizer.apply_chat_template(chat, tokenize=False)).rpartition(_SAID)[2].lstrip()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    return max((token for token in special if token and behind.startswith(token)), key=len, default=None)


def end_token_ids(tokenizer: Any) -> list[int]:
    """Ids of every token that ends an answer, the template's first, then the base's own."""
    found = [tokenizer.convert_tokens_to_ids(token) for token in [end_of_turn(tokenizer)] if token]
    return list(dict.fromkeys([*found, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))
