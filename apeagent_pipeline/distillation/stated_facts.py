"""What a question states: the price of ETH, what is held, and amounts that it names for other reasons.

The words may be anybody's. Only outright statements are read: an amount behind a word for holdings ("I hold 2,5 ETH and
900 USDC", "USDC balance: $900"), a price behind a word for the price. Where a question states a fact twice, the reading
that allows the smaller trade counts, so a hidden sentence can only take away from what may be traded.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from apeagent_pipeline.distillation.stated_loosely import Loose, read_loosely
from apeagent_pipeline.distillation.stated_owner import (
    is_in_own_wallet,
    is_of_somebody,
    is_own,
    is_own_lack,
    is_own_pair,
    names_an_owner,
)
from apeagent_pipeline.distillation.stated_records import LOWEST_PRICE, TAG, read_records
from apeagent_pipeline.distillation.stated_unclaimed import copied
from apeagent_pipeline.distillation.written_numbers import NUMBER, readings

_FLAGS = re.IGNORECASE | re.ASCII
_ETH = r"(?:w?eth(?:er(?:eum)?)?\b)"
_USDC = r"(?:usdc?(?:\.e)?\b|u\.s\. dollars?\b|dollars?\b|bucks\b|stable(?:coin)?s\b|\$(?!\s?\d))"
_UNIT = rf"(?:{_ETH}|{_USDC})"
_SIGNED = rf"(?<![\w.])(?:[-\u2212](?=\d))?{NUMBER}(?![\d%]|[.,]\d)"

_SAID_OF = (
    r"\s(?:costs?|is|trades?|trading|sits|buys)(?:\s(?:at|for|now|worth|about|around))*\s\$?\d|\s(?:were|was)\b|"
    r"(?:\s(?:balance|bal|held|free|available))?\s?[=\u2248]"
)
"""Behind an amount that is no holding: "1 ETH costs 2500 USDC", "900 USDC were traded"."""

# One amount of a token, in each order that people write it.
_AMOUNT = re.compile(
    rf"(?P<none>no|zero|any|0x0)\s(?P<of_none>{_UNIT})"
    rf"|(?P<first>{_UNIT})(?:\sbalance)?(?:\s?[:=]\s?|[ ])?\$?[ ]?(?P<then>{_SIGNED})"
    rf"(?:\s?{_UNIT}(?!\s?[:=]?\s?\$?\d))?"
    rf"|\$\s?(?P<dollars>{_SIGNED})(?:\s(?:in\s|of\s)?{_USDC})?(?!\s?{_ETH})"
    rf"|(?P<number>{_SIGNED})[ ]?(?:of\s)?(?P<unit>{_UNIT})(?!{_SAID_OF})",
    _FLAGS,
)
_BETWEEN = re.compile(
    r"[\s,;:&+/|\u2022*\u2013-]*(?:\b(?:and|plus|und|n|next\sto|together\swith|alongside|as\swell\sas|besides)\b\s?)?(?:(?:also|about|around|approximately|approx|roughly|exactly|"
    r"another|only|just|~)\s?)*[\s:\u2022*\u2013]*(?:-\s)?",
    _FLAGS,
)
_OF_ANOTHER_TOKEN = re.compile(rf"{_SIGNED}\s(?!(?i:{_UNIT}))[a-z]{{0,3}}[A-Z]{{2,6}}\b(?!\s?[=:])", re.ASCII)
_ASIDE = re.compile(r"\s?\([^()]*\)")

_FILLER = (
    r"(?:\s|[:=,~\u2022*\u2013]|-\s|\([^()\d]*\)|\b(?:currently|right|now|still|only|just|about|around|approximately|approx|roughly|"
    r"exactly|total|of|in|on|my|our|the|a|wallet|account|portfolio|balances?|holdings?|is|are|at|moment|contains?|holds?|"
    r"with|has|have|status|left|available|for|trading|today|both|there|this|here|base|uniswap|consists?)\b)*"
)
_CUE = re.compile(
    r"\b(?P<word>hold(?:s|ing|ings)?|have|has|own(?:s|ing)?|got|keep(?:ing)?|carry(?:ing)?|sit(?:ting)?\son|wallet|balances?|portfolio|position|inventory|funds|assets|"
    rf"account|treasury|available|my|our)\b{_FILLER}",
    _FLAGS,
)
_NOT_YET = re.compile(r"(?:\b(?:to|should|would|will|could|must|can|if|i'd|i'll|let me)\s(?:i\s|we\s)?)$", _FLAGS)
_PAIR_CUE = re.compile(r"\bwith\s", _FLAGS)
_PRICED = re.compile(rf"(?:{_ETH}|\b(?:price|at|costs|is|px|quotes)|@)\s?[:=]?\s?$", _FLAGS)
_BEHIND = re.compile(
    r"\s?(?:(?:are|is)\s)?(?:in\s(?:my|our|the)\s(?:wallet|account|portfolio|balance)|held\b|on\shand|in\shand|available\b)",
    _FLAGS,
)
_MOST = {"ETH": 1e9, "USDC": 1e12}
"""More than there is of a token; such a holding is read as not stated."""
_HELD = r"(?:balance|available|holdings?|held|amount|position|free|owned|in wallet|for trading)"
_LABEL = re.compile(
    rf"(?:\b(?P<a>{_UNIT})\s(?:{_HELD}\s?)+|\b{_HELD}\s\(?(?P<b>{_UNIT})\)?\s?)(?:[:=]|is|of|stands\sat)\s?\$?\s?(?P<n>{_SIGNED})"
    rf"(?:\s?{_UNIT})?",
    _FLAGS,
)
_NOTHING = re.compile(
    r"\b(?:(?P<word>hold|have|own|got)\s(?:nothing|no\s(?:money|funds|tokens|holdings|coins))|(?P<noun>wallet|portfolio|"
    r"account|balance)\s(?:is|stands)?\s?(?:now\s|currently\s)?empty|empty\s(?:wallet|portfolio|account))\b",
    _FLAGS,
)
_WORTH = re.compile(rf"\(\s?(?:worth|~|=|about|around)?\s?\$?{NUMBER}\s?{_UNIT}?[^()]*\)", _FLAGS)
_WORTH_OF_ETH = re.compile(
    rf"(?<=\d)(?P<eth>\s?{_ETH}\s?)\((?:(?:worth|is|~|=|about|around|\u2248|at)\s?)*(?:\$\s?{NUMBER}|{NUMBER}\s?{_USDC})[^()]*\)",
    _FLAGS,
)
"""Behind an amount of ETH, what it is worth: "1.5 ETH ($3,750)" """

_IS = r"(?:\s?(?:\([^()]*\)|is|are|at|of|now|currently|stands|around|about|[:=,~@]))*\s?"
_PRICES = tuple(
    re.compile(pattern, _FLAGS)
    for pattern in (
        rf"\b{_ETH}(?:\s?[/-]\s?{_USDC})?(?:\s(?:market|spot|current|mid))?\sprice{_IS}\$?\s?(?P<n>{_SIGNED})",
        rf"(?:^|[.,;:(\u2022*-]\s?|\b(?:the|current|market|spot|mid|its|and|with|now)\s)price{_IS}\$?\s?(?P<n>{_SIGNED})",
        rf"\b{_ETH}\s?(?:is|costs?|trades?|trading|sits|stands|now|currently|at|worth|for|around|about|[:=@~]|\s)*"
        rf"\$\s?(?P<n>{_SIGNED})",
        rf"\b{_ETH}\s(?:is|costs?|trades?|trading|sits|stands|quoted|priced)(?:\s(?:now|currently|at|for|around|about))*"
        rf"\s(?P<n>{_SIGNED})\s?{_USDC}",
        rf"\bprice\sof\s(?:1\s|one\s|an\s)?{_ETH}{_IS}\$?\s?(?P<n>{_SIGNED})",
        rf"\b{_ETH}\s?[/-]?\s?{_USDC}{_IS}\$?\s?(?P<n>{_SIGNED})(?!\s?{_UNIT})",
        rf"(?:\bat\s|@\s?)\$\s?(?P<n>{_SIGNED})",
        rf"\bmoved\b[^;$]{{0,40}}\bto\s\$\s?(?P<n>{_SIGNED})",
        # "price" and "costs" with typing errors.
        rf"\b{_ETH}\sp[a-z]{{2,5}}(?:\sis)?\s\$\s?(?P<n>{_SIGNED})",
        rf"(?<![\d.,])(?:1|one)\s{_ETH}\sc[a-z]{{2,4}}\s\$?(?P<n>{_SIGNED})\s?{_USDC}",
        rf"\b(?:1|one|an|a|per)\s{_ETH}\s?(?:is|=|costs|for|at|\u2248|\s)+\$?\s?(?P<n>{_SIGNED})",
        rf"\$?\s?(?P<n>{_SIGNED})\s?(?:{_USDC})?\s?(?:(?:per|an|a|each|for\s(?:1|one|an|a|each))\s{_ETH}"
        rf"|/\s{_ETH}(?=\s?(?:[.,;)\n]|$)))",
        rf"\b{_ETH}\s(?:is|stands|sits|trades|trading)\s(?:now\s|currently\s)?at\s(?P<n>{_SIGNED})(?!\s?(?:{_UNIT}|%|\d))",
    )
)
_OF_A_MOVE = re.compile(r"[ ]?(?:bps?|ticks?|t|pips?|points?|basis\spoints?|pct|per\s?cent)\b", _FLAGS)
"""Behind a number that is no price: "the price is 40 bps higher"."""
_OWN_TOKENS = {"ETH", "WETH", "USDC", "USD", "ETHER", "ETHEREUM"}
_OTHER_PAIR = re.compile(
    r"\b(?P<x>[A-Z][A-Z0-9]{1,6})\s?[/-]\s?(?P<y>[A-Z][A-Z0-9]{1,6})\b"
    r"|\b(?P<z>[A-Z][A-Z0-9]{1,6}|[Bb]itcoin|[Ss]olana|[Dd]ogecoin)(?i:\s(?:market\s|spot\s|current\s)?price\s?(?:is|at|of|:|=|\$|\d))",
    re.ASCII,
)
_QUOTED_IN = {"ETH", "WETH", "BTC", "WBTC", "USDC", "USDT", "USD", "DAI", "EUR", "EURC", "USDS", "CBBTC"}
_NO_TOKENS = {"THE", "CURRENT", "MARKET", "SPOT", "LAST", "MY", "ITS", "ENTRY", "NEW", "NOW"}
_ASKS = re.compile(
    r"\b(?:actions?|trad(?:e|es|ing)|buy|sell|swap|move|recommend\w*|decision|what (?:do|should) I do)\b", _FLAGS
)
_TO_THE_END = re.compile(r"\b(?:all|everything|entire|whole|100\s?(?:%|percent)|max(?:imum)?)\b", _FLAGS)


@dataclass(frozen=True)
class StatedFacts:
    """What a question states.

    Attributes:
        price: USDC an ETH; the highest that is stated, or None.
        eth, usdc: What is held; the least that is stated, or None where nothing is said.
        other_amounts: ETH amounts that the question names and that are no holding, such as an order to sell them.
        names_whole: Whether a word such as "all" or "everything" stands in the question.
        other_pair: The first pair or token that is priced beside ETH-USDC, or None.
        asks: Whether a word such as "action" or "trade" stands in the question.
        text: The question as it was read, in which copies of an answer's drafts are looked for.
    """

    price: float | None = None
    eth: float | None = None
    usdc: float | None = None
    other_amounts: tuple[float, ...] = ()
    names_whole: bool = False
    other_pair: str | None = None
    asks: bool = False
    text: str = field(default="", repr=False)

    def with_copies(self, drafts: str) -> "StatedFacts":
        """The facts, completed by what the question names in unknown words and the drafts of an answer copy."""
        if None not in (self.price, self.eth, self.usdc):
            return self
        found = copied(self.text, drafts)
        eth = found.eth if self.eth is None else self.eth
        return replace(
            self,
            price=found.price if self.price is None else self.price,
            eth=eth,
            usdc=found.usdc if self.usdc is None else self.usdc,
            other_amounts=tuple(amount for amount in self.other_amounts if self.eth is not None or amount != eth),
        )

    @property
    def calls_for_action(self) -> bool:
        """Whether the question asks for a trade: it says so, and states a price and a holding."""
        return self.asks and self.price is not None and (self.eth is not None or self.usdc is not None)


_COMMA_DECIMALS = re.compile(r"(?<![\d.,])\d{1,9},(?:\d{1,2}|\d{4,9})(?![\d,]|\.\d)")
_POINT_DECIMALS = re.compile(r"\d\.(?:\d{1,2}|\d{4,9})(?![\d,])")
_POINT_THOUSANDS = re.compile(rf"(?<![\d.,])([1-9]\d{{0,2}})\.(\d{{3}})(?=\s?(?:{_USDC}|\$))", _FLAGS)
"""Dollars have two decimals: beside "2,5 ETH", "4.200 USDC" are 4200."""


_SPEECH = re.compile(
    r"\b(?:(?!i\b)\w{1,30}\s(?:says?|said|claims?|claimed|writes?|wrote|tells?|told|boasts?|boasted|shouts?|shouted|texts?|"
    r"texted)(?:\s\w{1,20}){0,3}|my\s\w{1,20}(?=:))\s?[,:]?\s?\"[^\"]{0,2000}(?:\"|$)",
    _FLAGS,
)
"""What somebody else says: it states nothing about the asker."""


def read_facts(question: str) -> StatedFacts:
    """Read what a question states, in whatever words and number formats."""
    question = _SPEECH.sub(" ", question)
    whole = _plain(question)
    records = read_records(_visible(question), has_owner=names_an_owner(whole))
    text = _plain(records.rest)
    held: dict[str, list[float]] = {"ETH": list(records.eth), "USDC": list(records.usdc)}
    claimed: list[tuple[int, int]] = [found.span() for found in _WORTH.finditer(text)]
    for span, token, amount in _holdings(text):
        claimed.append(span)
        held[token].append(amount)
    if any(_is_own_nothing(text, found) for found in _NOTHING.finditer(text)):
        held["ETH"].append(0.0)
        held["USDC"].append(0.0)
    prices = list(records.price)
    for pattern in _PRICES:
        for found in pattern.finditer(text):
            if _OF_A_MOVE.match(text, found.end("n")):
                continue
            prices += readings(found["n"].lstrip("-\u2212"))
            claimed.append(found.span("n"))
    maybe = list(records.maybe)
    claimed += _add_loose(text, held, prices, maybe)
    _decide(maybe, held["ETH"], prices)
    return StatedFacts(
        price=max(prices, default=None),
        eth=_least_possible(held["ETH"], "ETH"),
        usdc=_least_possible(held["USDC"], "USDC"),
        other_amounts=tuple(_other_amounts(text, claimed)),
        names_whole=_TO_THE_END.search(whole) is not None,
        other_pair=_other_pair(whole),
        asks=_ASKS.search(whole) is not None,
        text=text,
    )


def _add_loose(
    text: str, held: dict[str, list[float]], prices: list[float], maybe: list[tuple[float, float]]
) -> list[tuple[int, int]]:
    """Add what is stated in passing, which may only take away from outright statements; where its holdings stand."""
    bare = _WORTH_OF_ETH.sub(lambda found: found["eth"] + " " * (len(found[0]) - len(found["eth"])), text)
    loose = read_loosely(bare) if not names_an_owner(text) else Loose()
    held["ETH"] += loose.eth
    held["USDC"] += loose.usdc
    prices += loose.price
    maybe += loose.maybe
    if not prices:
        maybe += [each for each in loose.beside if each[1] >= LOWEST_PRICE]
    return loose.spans


def _decide(maybe: Sequence[tuple[float, float]], held: list[float], prices: list[float]) -> None:
    """Tell numbers behind the word ETH apart, given the least and greatest reading of each.

    "ETH 2431" is a price or a holding. Beside a price it is a holding, unless it is about the price. Without one, it is
    the price if a much smaller amount is held; a single large number stays undecided.
    """
    if (price := max(prices, default=0.0)) > 0:  # "1 eth 0 usdc" looks like a price of nothing
        held += [least for least, most in maybe if not (most >= LOWEST_PRICE and 0.7 * price < most < 1.4 * price)]
        return
    large = [most for _, most in maybe if most >= LOWEST_PRICE]
    small = [least for least, most in maybe if most < LOWEST_PRICE]
    if large and not small and min(held, default=LOWEST_PRICE) >= LOWEST_PRICE:
        return
    prices += large
    held += small


def _least_possible(amounts: Sequence[float], token: str) -> float | None:
    return min((amount for amount in amounts if amount < _MOST[token]), default=None)


def _visible(question: str) -> str:
    """The text with ASCII digits and no hidden characters."""
    text = unicodedata.normalize("NFKC", question).replace("\u039e", "ETH").replace("\u2019", "'")
    if _COMMA_DECIMALS.search(text) and not _POINT_DECIMALS.search(text):
        text = _POINT_THOUSANDS.sub(r"\1\2", text)
    return "".join(
        c if c in "\n\t" else " " if c.isspace() else c
        for c in text
        if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc")
    )


def _plain(question: str) -> str:
    """The text with ASCII digits and single blanks or line ends, no hidden characters, no marks of Markdown or JSON."""
    question = TAG.sub("\n", question)
    text = re.sub(r"(?<=[\w%.]) ?\| ?(?=[\w$+-])", "; ", _visible(question).replace("\t", " "))
    text = re.sub(r"(?<=\w) ?\.{2,} ?(?=[$+-]?\d)", ": ", text)
    text = re.sub(r"(?<=[A-Za-z])_(?=[A-Za-z])", " ", text)
    text = re.sub(r"\b(I|we|you)'ve\b", r"\1 have", text, flags=re.IGNORECASE)
    text = re.sub(r" +", " ", re.sub(r"[\"`*{}\[\]|\\<>]|(?<!\d)'|'(?!\d)", " ", text))
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _holdings(text: str) -> Iterator[tuple[tuple[int, int], str, float]]:
    """Every stated holding: where it stands, its token and its amount."""
    for found in _LABEL.finditer(text):
        if is_own(text, found.start(), "balance"):
            yield found.span(), *_least(found["a"] or found["b"], found["n"])
    for cue in _CUE.finditer(text):
        if _NOT_YET.search(text[max(cue.start() - 20, 0) : cue.start()]):
            continue
        amounts = list(_amounts(text, cue.end()))
        if amounts and is_of_somebody(text, amounts[-1][0][1]):
            continue
        if is_own(text, cue.start(), cue["word"], cue[0]):
            yield from amounts
        elif is_own_lack(text, cue.start()):
            yield from (amount for amount in amounts if amount[2] == 0)
    for cue in _PAIR_CUE.finditer(text):
        amounts = list(_amounts(text, cue.end()))
        is_pair = {token for _, token, _ in amounts} == {"ETH", "USDC"}
        if is_pair and is_own_pair(text, cue.start()) and not is_of_somebody(text, amounts[-1][0][1]):
            yield from amounts
    place = 0
    while first := _AMOUNT.search(text, place):
        if (
            (first["dollars"] or first["number"])
            and _token(first["unit"] or "usdc") == "USDC"
            and _PRICED.search(text[max(first.start() - 20, 0) : first.start()])
        ):
            place = first.end()
            continue
        amounts = list(_amounts(text, first.start()))
        place = amounts[-1][0][1] if amounts else first.end()
        behind = _BEHIND.match(text, place) if amounts else None
        if behind and is_in_own_wallet(text, first.start(), behind[0]) and not is_of_somebody(text, behind.end()):
            yield from amounts


def _is_own_nothing(text: str, found: re.Match[str]) -> bool:
    word = found["word"] or found["noun"]
    return word is None or is_own(text, found.start(), word)


def _amounts(text: str, place: int) -> Iterator[tuple[tuple[int, int], str, float]]:
    """The amounts of a list that begins at a place, such as ``3.7 ETH (worth $9,000) and $900``."""
    while found := _AMOUNT.match(text, place) or _OF_ANOTHER_TOKEN.match(text, place):
        if found.re is _OF_ANOTHER_TOKEN:
            pass
        elif found["none"]:
            yield found.span(), _token(found["of_none"]), 0.0
        elif found["then"] and re.match(rf"{_ETH}\s?[:=]?\s?\$", found[0], _FLAGS):
            return  # "ETH: $2,500" is a price
        else:
            unit = found["first"] or found["unit"] or "usdc"
            yield found.span(), *_least(unit, found["then"] or found["dollars"] or found["number"])
        place = found.end()
        if aside := _ASIDE.match(text, place):
            place = aside.end()
        place += len(_BETWEEN.match(text, place)[0])  # type: ignore[index]  # every part of it may be missing


def _token(unit: str) -> str:
    return "ETH" if re.fullmatch(_ETH, unit, _FLAGS) else "USDC"


def _least(unit: str, number: str) -> tuple[str, float]:
    """The token and the least that a number of it can mean; dollars have cents, so ``9,507`` of them is no 9.507."""
    name = _token(unit)
    if number.startswith(("-", "\u2212")):
        return name, 0.0
    values = readings(number) or (0.0,)
    return name, values[0] if name == "USDC" else min(values)


def _other_amounts(text: str, claimed: Sequence[tuple[int, int]]) -> Iterator[float]:
    is_claimed = bytearray(len(text))
    for first, last in claimed:
        is_claimed[first:last] = b"\1" * (last - first)
    for found in re.finditer(rf"(?P<n>{NUMBER})\s?(?:{_ETH})|\b{_ETH}\s(?P<m>{NUMBER})", text, _FLAGS):
        name = "n" if found["n"] else "m"
        begin, end = found.span(name)
        if not all(is_claimed[begin:end]):
            yield from readings(found[name])


def _other_pair(text: str) -> str | None:
    for found in _OTHER_PAIR.finditer(text):
        named = {name for name in (found["x"], found["y"], found["z"]) if name}
        is_pair = found["z"] is not None or bool(named & _QUOTED_IN)
        if is_pair and not named <= _OWN_TOKENS | _NO_TOKENS:
            return " ".join(found[0].split())
    return None
