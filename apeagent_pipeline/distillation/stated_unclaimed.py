"""The price in words that nobody foresaw, where the answer's drafts copy it.

People find ever new words for the price: "the oracle agrees with the pool on 2,507". `stated_facts` does not know them.
The student lists in its drafts what it took for the price. A number that may be a price and that the drafts copy is
taken for the price. Holdings are never read this way: whose they are has to be said.
"""

import re
from collections.abc import Iterator, Sequence

from apeagent_pipeline.distillation.stated_records import LOWEST_PRICE
from apeagent_pipeline.distillation.written_numbers import NUMBER, readings

_FLAGS = re.IGNORECASE | re.ASCII
_NUMBER = re.compile(rf"(?<![\w.,+\u2212-]){NUMBER}(?!\d|[.,]\d)", _FLAGS)
_NO_PRICE_BEHIND = re.compile(
    r"\s?(?:[%\u2030]|(?:bps?|ticks?|t|pips?|points?|pct|basis|percent|per\scent|w?eth|ether)\b)", _FLAGS
)
_NO_PRICE_BEFORE = re.compile(r"\b(?:vol(?:ume)?|volatility|sigma)\b[^\d.;\n]{0,12}$", _FLAGS)
_COPY = re.compile(r"^(?P<price>\d[\d,.]*), \d[\d,.]* USDC, \d[\d.]* ETH$", re.MULTILINE | re.ASCII)
_CUT_OFF = 1.1
"""A draft keeps at least two digits of a number."""


def numbers_unclaimed(text: str, claimed: Sequence[tuple[int, int]]) -> Iterator[float]:
    """Numbers that may be the price of ETH, each in its greatest reading.

    Args:
        text: The question as `stated_facts` prepares it.
        claimed: Where holdings stand.
    """
    is_claimed = bytearray(len(text))
    for first, last in claimed:
        is_claimed[first:last] = b"\1" * (last - first)
    for number in _NUMBER.finditer(text):
        begin, end = number.span()
        values = readings(number[0])
        if is_claimed[begin] or not values or max(values) < LOWEST_PRICE or _NO_PRICE_BEHIND.match(text, end):
            continue
        if not _NO_PRICE_BEFORE.search(text[max(begin - 30, 0) : begin]):
            yield max(values)


def copied_price(numbers: Sequence[float], drafts: str) -> float | None:
    """The greatest of the numbers that the drafts list as the price, before the holdings."""
    found = _COPY.search(drafts)
    price = float(found["price"].replace(",", "")) if found else 0.0
    return max((number for number in numbers if 0 < price <= number <= price * _CUT_OFF), default=None)
