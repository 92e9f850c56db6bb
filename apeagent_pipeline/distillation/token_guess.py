"""An estimate of the tokens of a text, for where no server has counted them."""

import re


def token_guess(text: str) -> int:
    """An estimate of the tokens of a text: one for each word, digit and sign."""
    return len(re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]", text))
