"""Numbers as people write them: thousands separators of every kind, decimal commas, exponents, ``10k``."""

import math
import re

_GROUPS = r"\d{1,3}(?:[ '_]\d{3})+(?!\d)"
_SCALE = r"(?:\s?(?:k|thousand|million|mio|mn)\b|M\b)?"
NUMBER = rf"(?:{_GROUPS}(?:[.,]\d+)?|\d[\d.,]{{0,30}}\d|\d|\.\d+)(?:[eE][-+]?\d{{1,2}})?{_SCALE}"
"""A regular expression without groups, for ASCII text in which every blank is a space."""

_EXPONENT = re.compile(r"[eE]([-+]?\d{1,2})$")
_MULTIPLIER = re.compile(r"\s?(k|thousand|M|million|mio|mn)$")
_TIMES = {"k": 1e3, "thousand": 1e3}


def readings(text: str) -> tuple[float, ...]:
    """Every value that a written number may have, the most usual first; empty if the text is no number.

    ``1,250`` may be 1250 or 1.25; ``9,507.14``, ``9.507,14`` and ``2,5`` have one value each.
    """
    multiplier = _MULTIPLIER.search(text)
    factor = _TIMES.get(multiplier[1], 1e6) if multiplier else 1.0
    bare = text[: multiplier.start()] if multiplier else text
    exponent = _EXPONENT.search(bare)
    if exponent:
        factor *= 10.0 ** int(exponent[1])
        bare = bare[: exponent.start()]
    found = (_value(digits) for digits in _decimal_forms(re.sub(r"[ '_]", "", bare)))
    return tuple(value * factor for value in found if value is not None and math.isfinite(value * factor))


def _decimal_forms(digits: str) -> tuple[str, ...]:
    """The digits with a point before the decimals, in every way that they can be meant."""
    commas, points = digits.count(","), digits.count(".")
    without = digits.replace(",", "")
    if not commas:
        return (digits.replace(".", "") if points > 1 else digits,)
    if points:
        return (without if digits.rfind(".") > digits.rfind(",") else digits.replace(".", "").replace(",", "."),)
    if commas > 1:
        return (without,)
    decimal = digits.replace(",", ".")
    before, _, after = digits.partition(",")
    return (without, decimal) if len(after) == 3 and 0 < len(before) <= 3 and before[0] != "0" else (decimal,)


def _value(digits: str) -> float | None:
    try:
        return float(digits)
    except ValueError:
        return None
